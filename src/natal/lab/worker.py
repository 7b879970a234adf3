"""What a worker process does: make trials, train them, hand the outcomes back."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from natal.errors import NatalError
from natal.lab import DATA, birth, states
from natal.lab.checkpoints import Checkpoints
from natal.lab.connectivity import along
from natal.lab.engines import ENGINES, Engine, Pending, made_by
from natal.lab.networks import networks
from natal.lab.state import State
from natal.lab.tasks import tasks, unspoilt
from natal.lab.trial import Trained, Trial
from natal.pruning.criteria import criteria
from natal.registry import did_you_mean
from natal.store import MASK, Failure, Outcome, Place
from natal.study import STRATEGIES, Run, Study
from natal.wording import told

if TYPE_CHECKING:
    from natal.lab.plan import Job


@dataclass(frozen=True)
class Made:
    """What comes of a training: its outcome, the states that were asked for, by clock, as the content of files, and of
    one that is compared with another, what was measured between the two."""

    outcome: Outcome
    states: Mapping[str, bytes] = field(default_factory=dict)
    line: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of the training."""
        return self.outcome.key


MISHAPS = (Exception, SystemExit)
"""What goes wrong inside a training and fails it alone; Ctrl-C stops the command."""


def away(job: Job) -> Iterator[Made | Failure]:
    """Train the stages of a job in a worker process, where no Ctrl-C gets: a plugin has raised it; see `each`."""
    if job.trainings:
        yield from each(job, (*MISHAPS, KeyboardInterrupt))


def each(job: Job, mishaps: tuple[type[BaseException], ...] = MISHAPS) -> Iterator[Made | Failure]:
    """Train the stages of a job and yield what comes of each as it finishes: one that goes wrong stops no other."""
    study, engine = job.study, ENGINES[job.engine]
    if job.data:
        os.environ[DATA] = job.data
    load_plugins(study)
    keys, maker = birth.keys_of(study), made_by(engine, job.device)
    for pending in job.trainings:
        # a run that natal 0.2 stored has a key of its own, but is never pending
        if keys.of_stage(pending.stage, maker, of=pending.run) != pending.key:
            raise NatalError(
                "a plugin was edited after this program had imported it; start the program again, and what the "
                "plugin made is trained again"
            )
    found: dict[Place, states.Kept] = {}
    stages: dict[str, tuple[Pending, birth.Staged]] = {}
    for pending in job.trainings:
        try:
            for place in pending.needs:
                found[place] = found.get(place) or states.unpack(job.states[place], f"state {place}")
            staged = birth.staged(study, pending, found, precise=engine.portable)
            unspoilt(staged.trial.task, staged.trial.split)
        except mishaps as error:
            yield Failure(pending.key, said(error))
        else:
            stages[pending.key] = pending, staged
    trials = [_going_on(staged.trial, job.checkpoints) for _, staged in stages.values()]
    for trained in _trained(engine, trials, job.device, mishaps):
        if isinstance(trained, Failure):
            del stages[trained.key]
            yield trained
            continue
        pending, staged = stages.pop(trained.outcome.key)
        try:
            unspoilt(staged.trial.task, staged.trial.split)
        except NatalError as error:
            yield Failure(pending.key, said(error))
            rest = tuple(pending for pending, _ in stages.values())
            yield from each(replace(job, trainings=rest), mishaps)  # with data that are loaded anew
            return
        try:
            made = _made(pending, staged, trained)
            if pending.stage.order:
                made = replace(made, line=_line(study, pending, staged, trained, found))
        except mishaps as error:
            yield Failure(pending.key, said(error))
        else:
            yield made


def _going_on(trial: Trial, checkpoints: Checkpoints | None) -> Trial:
    """Return a trial that leaves checkpoints, and goes on from the last that it has left."""
    trial = replace(trial, checkpoints=checkpoints)
    last = None if checkpoints is None else checkpoints.last(trial.key)
    return trial if last is None else trial.resumed(last)


def _trained(
    engine: Engine, trials: Sequence[Trial], device: str, mishaps: tuple[type[BaseException], ...]
) -> Iterator[Trained | Failure]:
    """Train trials together; if that goes wrong, what is left in halves, until the one that does it stands alone."""
    left, reason = {trial.key: trial for trial in trials}, "the engine gave no result"
    try:
        for trained in engine.train(trials, device):
            del left[trained.outcome.key]
            yield trained
    except mishaps as error:
        reason = said(error)
    rest = list(left.values())
    if len(rest) == 1:
        yield Failure(rest[0].key, reason)
    elif rest:
        # the error is forgotten by now, and with it the memory that its frames held
        for part in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            yield from _trained(engine, part, device, mishaps)


def _made(pending: Pending, staged: birth.Staged, trained: Trained) -> Made:
    """Return a stage's outcome with what is proven of its chain, and its states as they are stored."""
    trial, outcome, rounds = staged.trial, trained.outcome, list(staged.rounds)
    kept = {**trained.states, **dict.fromkeys(birth.begins(pending), _begun(trial, pending.stage.first))}
    mask = trained.mask
    if trial.cuts is not None:
        rounds = [mask.sparsity]
    packed = {
        clock: states.pack(states.Kept(state, mask.units, rounds))
        for clock, state in kept.items()
        # of a training that diverged nothing goes on
        if clock in pending.keep and all(bool(t.isfinite().all()) for t in state.tensors.values())
    }
    lacking = pending.keep - set(packed)
    if lacking and outcome.status != "diverged":
        raise NatalError(
            f"engine {outcome.made_by.engine!r} gave no state at {', '.join(sorted(lacking))}; use --engine torch"
        )
    if pending.stage.beyond_birth:
        alone = State(outcome.steps_trained, {}, mask=mask.items())
        packed[MASK] = states.pack(states.Kept(alone, mask.units, rounds))
        outcome = replace(outcome, proofs={**outcome.proofs, "rounds": rounds, "from": dict(staged.digests)})
    return Made(outcome, packed)


def _line(
    study: Study,
    pending: Pending,
    staged: birth.Staged,
    trained: Trained,
    found: Mapping[Place, states.Kept],
) -> Mapping[str, list[float]]:
    """Return what was measured between a training's end and its parent's; nothing if it diverged."""
    if trained.outcome.status == "diverged" or study.measure.connectivity is None:
        return {}
    ends = found[pending.needs[1]].state, trained.states["end"]
    return along(staged.trial, *ends, study.measure.connectivity["points"])


def _begun(trial: Trial, step: int) -> State:
    """Return what training began with."""
    if trial.start is not None:
        return trial.start
    net = trial.born()
    return State(
        step,
        {name: value.detach().clone() for name, value in net.state_dict().items()},
        mask=trial.mask.items(),
    )


def prepare(study: Study, engines: tuple[str, ...], device: str) -> None:
    """Load what the first training would otherwise wait for: plugins, and what engines need."""
    load_plugins(study)
    for engine in engines:
        ENGINES[engine].prepare(device)


def load_plugins(study: Study) -> None:
    """Import the study's plugin modules, from beside the study file or the Python path.

    What lies beside them by the name of a library is never taken for it. Raises NatalError naming the plugin and what
    its import said.
    """
    folders = ("", study.folder) if study.plugins else ()
    sys.path += [folder for folder in folders if folder not in sys.path]
    for plugin in study.plugins:
        with named(f"plugin {plugin!r} does not import"):
            module = importlib.import_module(plugin)
        found = str(getattr(module, "__file__", None) or "a part of Python")
        for folder in folders:
            meant = Path(folder, plugin.split(".")[0])
            beside = meant.is_dir() or meant.with_suffix(".py").is_file()
            if beside and not found.startswith(str(meant.absolute())):
                raise NatalError(
                    f"plugin {plugin!r} has the name of an installed module, {found}; give it another name"
                )


def check_names(study: Study) -> None:
    """Make sure a study speaks only of what is registered; raise NatalError for the first that is not."""
    for task in study.tasks:
        tasks[task.entry]
    for network in study.networks:
        networks[network.entry]
    rates = study.training.learning_rate
    known = {*study.task_names, *study.network_names, *tasks}
    for name in rates if isinstance(rates, dict) else ():
        if name not in known:
            raise NatalError(
                f"training.learning_rate: unknown task or network {name!r}{did_you_mean(name, known)}"
            )
    for recipe in study.strategies:
        if recipe.name == recipe.criterion and recipe.name not in criteria:
            raise NatalError(
                f"unknown strategy {recipe.name!r}{did_you_mean(recipe.name, [*STRATEGIES, *criteria])}"
            )
        criteria[recipe.criterion]


CHECKED_ROWS = 256
"""Training rows on which `check` tries a criterion: whether it works shows on a few, and sixty rounds are quick."""


def check(study: Study) -> None:
    """Make sure every strategy of a study works, before anything is trained.

    Each makes one mask per setting at the study's highest sparsity, looking at few rows. Raises NatalError for the
    first that does not.
    """
    for task, network in study.settings():
        for recipe in study.strategies:
            run = Run(task, recipe.name, max(study.sparsities), study.seeds[0], network)
            with named(_words(study, run)):
                birth.try_out(study, run, CHECKED_ROWS)


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Turn whatever goes wrong inside a plugin, or for want of memory, into one line that begins with ``doing``."""
    output = sys.stdout
    try:
        yield
    except NatalError:
        raise
    except (Exception, SystemExit) as error:
        raise NatalError(f"{doing}: {said(error)}") from error
    if output is not None and (sys.stdout is None or output.closed):
        sys.stdout = output
        raise NatalError(f"{doing}: it closed the standard output; leave it open")


def said(error: BaseException) -> str:
    """Return what went wrong and where, in one line of printable characters."""
    if isinstance(error, NatalError):
        return told(str(error))
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and not frames[-1].filename.startswith("<frozen importlib")
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if inside else ""
    line = told(f"{type(error).__name__}: {error}".removesuffix(": ")) + place
    short = isinstance(error, MemoryError) or any(word in str(error) for word in _SHORT)
    return f"{line}; a smaller network or batch, or fewer --workers, needs less" if short else line


_SHORT = ("can't allocate memory", "out of memory")
"""What torch says on a CPU, and on an accelerator, when memory is short."""


def _words(study: Study, run: Run) -> str:
    fields = run._asdict()
    if len(study.networks) == 1:
        del fields["network"]
    return ", ".join(f"{name}={value}" for name, value in fields.items())
