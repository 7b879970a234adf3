"""Networks given back: the states, masks and modules behind a study's rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from natal.errors import NatalError
from natal.lab import birth, states, worker
from natal.lab.engines import ENGINES, Pending
from natal.lab.state import State
from natal.lab.tasks import load
from natal.pruning.mask import Mask, dense, prunable
from natal.store import MASK, Place, States
from natal.study import Maker, Run, Stage, Study, Timeline, moment, stage_of
from natal.wording import describe

Module = nn.Module

__all__ = ["Mask", "Module", "State", "damaged", "mask", "network", "state"]


def state(study: Study, directory: Path, run: Run, key: str, clock: str) -> State:
    """Return the state of a row's training at a clock; raise NatalError if it is not stored, with the cure."""
    stage, timeline = _stage(study, run)
    try:
        at = timeline.steps(moment(clock))
    except ValueError as error:
        raise NatalError(f"clock {clock!r} {error}") from None
    if at > timeline.total:
        raise NatalError(f"clock {clock!r} is beyond the {timeline.total} steps of {describe(run)}; lower it")
    if at < stage.first:
        raise NatalError(
            f"clock {clock!r} is before step {stage.first}, at which the training of {describe(run)} begins; what came "
            "before is the dense network's"
        )
    cure = f'run the study again with keep = ["{clock}"] in the study'
    if at in map(timeline.steps, study.keep):
        cure = "it diverged before, or the same `natal run` makes it again"
    return _kept(
        directory, Place(key, timeline.name(clock)), f"the state at {clock!r} of {describe(run)}", cure
    ).state


def mask(study: Study, directory: Path, run: Run, key: str, maker: Maker) -> Mask:
    """Return the mask that a row's training ended with: made again where it was cut at birth, else as stored."""
    stage, _ = _stage(study, run)
    worker.load_plugins(study)
    if stage.beyond_birth:
        kept = _kept(
            directory, Place(key, MASK), f"the mask of {describe(run)}", "the same `natal run` makes it again"
        )
        split = load(study.task(run.task), run.seed, study.training.validation_fraction)
        net = birth.newborn(study, run, split)
        return kept.mask(net) or dense(prunable(net))
    pending = Pending(run, key, study.recipe(run.strategy), stage)
    return birth.staged(study, pending, {}, precise=_precise(maker)).trial.mask


def network(study: Study, directory: Path, run: Run, key: str, maker: Maker, clock: str) -> Module:
    """Return a row's network at a clock as a plain module in evaluation mode, removed weights 0."""
    found = state(study, directory, run, key, clock)
    worker.load_plugins(study)
    if study.recipe(run.strategy).control == "small-dense" and run.sparsity:
        net = birth.trial(study, run, 0.0, precise=_precise(maker)).network
    else:
        split = load(study.task(run.task), run.seed, study.training.validation_fraction)
        net = birth.newborn(study, run, split)
    net.load_state_dict(dict(found.tensors))
    return net.eval()


def _precise(maker: Maker) -> bool:
    """Whether the engine that trained a row scored its mask to be the same everywhere; its first revision did not."""
    engine = ENGINES.get(maker.engine)
    return engine is not None and engine.portable and maker.revision == engine.revision


def damaged(directory: Path) -> Iterator[str]:
    """Yield what is wrong with the states and masks that a directory keeps, a line each."""
    there = States(directory)
    for place in sorted(there.there()[0]):
        try:
            states.unpack(there.read(place), f"state {place}")
        except NatalError as error:
            yield str(error)


def _stage(study: Study, run: Run) -> tuple[Stage, Timeline]:
    worker.load_plugins(study)
    split = load(study.task(run.task), run.seed, study.training.validation_fraction)
    stage = stage_of(study, run, 1.0, len(split.fit))
    return stage, Timeline(study.training.steps_per_epoch(len(split.fit)), stage.steps)


def _kept(directory: Path, place: Place, what: str, cure: str) -> states.Kept:
    found = States(directory)
    if place not in set().union(*found.there()):
        raise NatalError(f"{what} is not stored; {cure}")
    return states.unpack(found.read(place), f"state {place}")
