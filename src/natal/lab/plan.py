"""What a study would train: its grid compared with what the directory already holds. Trains nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from natal.errors import NatalError
from natal.lab import DATA, data_in
from natal.lab.fresh import begun, is_of
from natal.machine import cores
from natal.notebook import Rows, Shown
from natal.store import FILE, Failure, NetworkFacts, Place, States, Store, TaskFacts
from natal.study import Maker, Run, Setting, Stage, Study, load_study, stage_of
from natal.study.stages import Known
from natal.wording import plural

if TYPE_CHECKING:
    from natal.lab import engines
    from natal.lab.chains import Growth
    from natal.lab.checkpoints import Checkpoints
    from natal.lab.engines import Engine, Pending

SMALL = 20e9
"""Operations that are not worth starting processes for: about a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Job:
    """Trainings that one worker does in one go, of one setting, by one engine; ``data``: the folder of data files.

    ``states``: what they start from, as the content of files; ``checkpoints``: where they leave
    some. Both are given when the job is handed out.
    """

    study: Study
    engine: str
    device: str
    trainings: tuple[Pending, ...]
    data: str
    states: Mapping[Place, bytes] = field(default_factory=dict, repr=False)
    checkpoints: Checkpoints | None = None


class Grid(Sequence[tuple[Run, str]]):
    """Every row of a study with a key, of which there may be millions: ``behind``, the keys of their trainings."""

    def __init__(self, runs: Sequence[Run], behind: Sequence[str]) -> None:
        self.runs, self.behind = runs, behind

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, position: int) -> tuple[Run, str]: ...
    @overload
    def __getitem__(self, position: slice) -> Grid: ...
    def __getitem__(self, position: int | slice) -> tuple[Run, str] | Grid:
        if isinstance(position, slice):
            return Grid(self.runs[position], self.behind[position])
        return self.runs[position], self.behind[position]

    def __iter__(self) -> Iterator[tuple[Run, str]]:
        return zip(self.runs, self.behind, strict=True)


@dataclass(frozen=True)
class Chosen:
    """One setting with the engine that trains it, and why each preferred one does not."""

    setting: engines.Setting
    engine: Engine
    refused: Mapping[str, str]


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a command would do: the grid with each row's key, the trainings behind it, and which are still to do.

    ``engine``: the name asked for, perhaps ``auto``; ``settings`` hold each setting's own. ``grid``: every row with
    the key of its training; a row that chooses among learning rates has the first one's, and ``tried`` those of all,
    by the row's position. ``jobs``: the trainings still to be done, in the portions that workers take, in the order
    they are started. ``flops``: about what is to be computed at most, were no training to stop early. ``outdated``:
    trainings stored in the directory that another engine's revision or another version of torch or NumPy made. They
    are kept, but never mixed with this one's. ``part``: of the study, if only that is to be trained here. ``stored``:
    the status of every training in the directory, by key. ``failed``: those pending that failed before.
    """

    study: Study
    directory: Path
    engine: str
    device: str
    workers: int
    grid: Grid
    tried: Mapping[int, Mapping[float, str]]
    jobs: list[Job] = field(repr=False)
    flops: float
    outdated: int
    settings: Mapping[Setting, Chosen] = field(repr=False)
    tasks: Mapping[str, TaskFacts] = field(repr=False)
    networks: Sequence[NetworkFacts] = field(repr=False)
    again: frozenset[str] = frozenset()
    kept: frozenset[Place] = field(default=frozenset(), repr=False)
    chains: Sequence[str] = field(default=(), repr=False)
    lines: Mapping[str, list[tuple[str, int, str]]] = field(default_factory=dict, repr=False)
    state_bytes: tuple[int, int] = (0, 0)
    part: str | None = None
    stored: Mapping[str, str] = field(default_factory=dict, repr=False)
    failed: Mapping[str, Failure] = field(default_factory=dict, repr=False)

    def _line(self) -> str:
        todo = f"{plural(len(self.pending), 'training')} to do in {plural(len(self.jobs), 'job')}"
        return f"study {self.study.name!r} in {str(self.directory)!r}, {len(self.grid)} runs, {todo}"

    def _table(self) -> Rows:
        yield "runs", len(self.grid)
        yield "trainings", self.trainings
        yield "done", f"{plural(len(self.done), 'run')}"
        yield "to do", f"{len(self.pending)} in {plural(len(self.jobs), 'job')}"
        yield "where", f"{self.device}, {plural(self.workers, 'worker')}"

    @cached_property
    def pending(self) -> list[Pending]:
        """The trainings still to be done, each once."""
        return [training for job in self.jobs for training in job.trainings]

    @cached_property
    def trainings(self) -> int:
        """Number of different trainings behind the grid's rows."""
        return len({key for keys in self._keys() for key in keys})

    @cached_property
    def shared(self) -> int:
        """Number of rows that reuse another row's training."""
        return len(self.grid) - len(set(self.grid.behind))

    @cached_property
    def done(self) -> list[tuple[Run, str]]:
        """The rows whose trainings are all stored already."""
        stored = self.stored.keys()
        return [row for row, keys in zip(self.grid, self._keys(), strict=True) if stored >= keys]

    def _keys(self) -> Iterator[set[str]]:
        for position, key in enumerate(self.grid.behind):
            yield {key, *self.tried.get(position, {}).values()}


def plan(
    study: str | Path | Mapping[str, Any] | Study = "paper",
    out: str | Path = "results",
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    fresh: bool = False,
    data: str | Path | None = None,
    part: str | None = None,
    only: Collection[Run] | None = None,
    beyond: bool = False,
) -> Plan:
    """Return what `natal.run` with the same arguments would do; trains and writes nothing.

    Every task and network of the study is tried out once, and every strategy if anything is left to train. ``part``:
    such as ``3/8``, to train a part of the study on a machine that shares nothing with those that train the others;
    chains stay whole, and `natal merge` joins the parts. ``only``: train these rows, and what they start from.
    ``beyond``: whether workers are other programs than this one's. Raises NatalError for the first that does not work.
    """
    with _uncollected(), data_in(data):
        return _plan(study, out, overrides, workers, engine, device, fresh, part, only, beyond)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Make many objects that all stay: to look among them for some that could go would take a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _plan(
    study: str | Path | Mapping[str, Any] | Study,
    out: str | Path,
    overrides: Sequence[str],
    workers: int | None,
    engine: str,
    device: str,
    fresh: bool,
    part: str | None,
    only: Collection[Run] | None,
    beyond: bool,
) -> Plan:
    study = load_study(study, overrides)
    directory = writable(out, workers)
    of_parts = None if part is None else part_of(part)
    from natal.lab import birth, worker
    from natal.lab.chains import Growth, drawn
    from natal.lab.engines import choose, engine_named

    asked = engine_named(engine)
    check_device(device)
    worker.load_plugins(study)
    worker.check_names(study)
    settings = {}
    for name in study.settings():
        with worker.named(f"task={name.task}, network={name.network}"):
            at = birth.setting(study, *name)
            settings[name] = Chosen(at, *choose(asked, at, device))

    if fresh:
        directory = begun(directory, study)
    goes_on = (directory / FILE).exists() and (not fresh or is_of(directory, study))
    makers: Mapping[Maker, int] = {}
    statuses: dict[str, str] = {}
    failures: Mapping[str, Failure] = {}
    if goes_on:
        with Store.read(directory) as store:
            makers, statuses, failures = store.makers(), store.statuses(), store.failures()
    runs: list[Run] = []
    first: list[str] = []
    tried: dict[int, dict[float, str]] = {}
    growth = Growth(study, device, settings, statuses, *States(directory).there())
    early = {own.engine: _early(own.engine, device, makers) for own in settings.values()}
    for position, (run, own, keys, stage_at) in enumerate(_rows(study, settings, growth)):
        for rate, key in keys.items():
            if key not in statuses and early[own.engine]:
                old = _stored_by_0_2(study, run, early[own.engine], rate, statuses)
                if old is not None:
                    keys[rate] = old
                    continue
            if only is not None and run not in only:
                continue
            stage = stage_at(rate)
            if stage is not None and _in_part(growth, stage, key, of_parts):
                growth.ask(run, stage, key)
        runs.append(run)
        first.append(next(iter(keys.values())))
        if len(keys) > 1:
            tried[position] = keys
    pending = growth.pending()
    if pending:
        worker.check(study)
    jobs, flops = _jobs(study, device, pending, settings)
    kept, passing = growth.bytes(pending)
    _check_space(directory, kept + passing)
    return Plan(
        study,
        directory,
        asked,
        device,
        _workers(workers, device, flops, len(jobs), study, beyond),
        Grid(runs, first),
        tried,
        jobs,
        flops,
        _outdated(makers, {own.engine for own in settings.values()}, device),
        settings,
        *_facts(study, settings),
        again=frozenset(growth.again),
        kept=frozenset(growth.kept),
        chains=drawn(study, growth.chained),
        lines=growth.lines,
        state_bytes=(kept, passing),
        part=part,
        stored=statuses,
        failed={t.key: failures[t.key] for t in pending if t.key in failures},
    )


def _rows(
    study: Study, settings: Mapping[Setting, Chosen], growth: Growth
) -> Iterator[tuple[Run, Chosen, dict[float, str], Callable[[float], Stage | None]]]:
    """Yield each row of a study's grid, how its setting is trained, its key at each learning rate, and its own stage.

    Instead of a stage None comes where the row's training is stored and nothing else could be wanted of it.
    """
    from natal.lab.tasks import tasks

    known: Known = {}
    cell = None
    for run in study.runs():
        if cell != (run.task, run.network, run.strategy, run.sparsity):
            cell = run.task, run.network, run.strategy, run.sparsity
            own = settings[run.setting]
            rates = study.learning_rates(run, tasks[study.task(run.task).entry].learning_rate)
            rows = len(own.setting.split.fit)
            stages = {rate: stage_of(study, run, rate, rows, known) for rate in rates}
            # a cut at birth knows of its seed by its run alone
            alone = run.sparsity > 0 and all(stage.parent is None for stage in stages.values())
            key_of = {rate: growth.of_seeds(stage) for rate, stage in stages.items()} if alone else {}
            more = growth.keeps or any(stage.beyond_birth for stage in stages.values())
        if alone:
            keys = {rate: make(run) for rate, make in key_of.items()}
            wanted = more or not growth.statuses.keys() >= set(keys.values())
            # all seeds share the stage, but those that others are compared with
            stage_at = partial(_likewise, stages, run) if growth.compares else stages.get
            yield run, own, keys, stage_at if wanted else _nothing
        else:
            stages = {rate: stage_of(study, run, rate, rows, known) for rate in rates}
            yield run, own, {rate: growth.key(stage) for rate, stage in stages.items()}, stages.get


def _likewise(stages: Mapping[float, Stage], run: Run, rate: float) -> Stage:
    """Return the stage of a cut at birth in another run of its cell."""
    return replace(stages[rate], run=run)


def _nothing(rate: float) -> None:
    """Return that no stage is wanted."""


def _in_part(growth: Growth, stage: Stage, key: str, part: tuple[int, int] | None) -> bool:
    """Whether a row's chain belongs to a part, which the key of the stage that it begins with decides; ``key``: of the
    stage itself."""
    if part is None:
        return True
    number, count = part
    begins = key if stage.parent is None else growth.key(stage.trunk)
    return int(begins, 16) % count == number - 1


def part_of(words: str) -> tuple[int, int]:
    """Return which of how many parts ``3/8`` means; raise NatalError if it means none."""
    number, slash, count = words.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise NatalError(f"part {words!r}: write it as 3/8, the third of eight")
    return int(number), int(count)


def _early(engine: Engine, device: str, makers: Mapping[Maker, int]) -> list[Maker]:
    """Return the makers of a store that are natal 0.2, doing what an engine does today."""
    from natal.lab.engines import made_by

    today = made_by(engine, device).identity
    return [maker for maker in makers if maker.natal.startswith("0.2.") and maker.identity == today]


def _stored_by_0_2(
    study: Study, run: Run, early: Sequence[Maker], rate: float, stored: Collection[str]
) -> str | None:
    """Return the key natal 0.2 stored the same training under, None if it did not."""
    from natal.lab import birth

    old = (birth.key_0_2(study, run, maker, rate) for maker in early)
    return next((key for key in old if key in stored), None)


def _jobs(
    study: Study,
    device: str,
    pending: Sequence[Pending],
    settings: Mapping[Setting, Chosen],
) -> tuple[list[Job], float]:
    """Return the jobs, and all operations.

    First come those behind which the longest chain waits, and so of single trainings those that take longest, which
    keeps all workers busy to the end. A job has trainings of one setting, as far from a chain's beginning.
    """
    from natal.lab.chains import depths

    costs: dict[int, float] = {}  # by stage, which the seeds of a cut at birth share

    def cost(training: Pending) -> float:
        which = id(training.stage)
        if which not in costs:
            own = settings[training.run.setting]
            costs[which] = own.engine.cost(training, own.setting) * training.stage.share(own.setting.steps)
        return costs[which]

    behind: dict[str, float] = {}  # what waits for a training's end, one after the other
    for training in reversed(pending):
        for place in training.needs:
            waits = cost(training) + behind.get(training.key, 0.0)
            behind[place.key] = max(behind.get(place.key, 0.0), waits)
    together: dict[tuple[Setting, int], list[Pending]] = {}
    for training, depth in zip(pending, depths(pending), strict=True):
        together.setdefault((training.run.setting, depth), []).append(training)
    jobs: list[tuple[float, Job]] = []
    for (name, _), some in together.items():
        own = settings[name]
        some.sort(key=cost, reverse=True)
        for part in own.engine.jobs(some, own.setting, device):
            waiting = sum(map(cost, part)) + max(behind.get(t.key, 0.0) for t in part)
            jobs.append((waiting, Job(study, own.engine.name, device, tuple(part), os.environ.get(DATA, ""))))
    jobs.sort(key=lambda job: -job[0])
    return [job for _, job in jobs], sum(map(cost, pending))


def _check_space(directory: Path, wanted: int) -> None:
    """Refuse states that the disk has no room for."""
    here = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(here).free
    if wanted > free:
        raise NatalError(
            f"states would take {wanted / 1e9:.3g} GB, and {str(here)!r} has {free / 1e9:.3g} GB left; keep fewer, or "
            "name a directory on another disk with --out"
        )


def _outdated(makers: Mapping[Maker, int], engines: set[Engine], device: str) -> int:
    from natal.lab.engines import made_by

    today = {made_by(engine, device).identity for engine in engines}
    return sum(count for maker, count in makers.items() if maker.identity not in today)


def _facts(
    study: Study, settings: Mapping[Setting, Chosen]
) -> tuple[dict[str, TaskFacts], list[NetworkFacts]]:
    """Return what the reading wing needs to know of tasks and networks, which it cannot import."""
    from natal.pruning.mask import prunable

    about_tasks, about_networks = {}, []
    for (task, network), own in settings.items():
        at, data = own.setting, own.setting.split.data
        about_tasks[task] = TaskFacts(
            metric=at.task.metric.name, field=at.task.metric.field, chance=at.split.chance, loss=at.task.loss.name,
            learning_rate=_rate_of_task(study, task, at.task.learning_rate),
            inputs=at.row.numel(), outputs=data.outputs, fit_rows=len(at.split.fit), val_rows=len(at.split.val),
            train_rows=len(data.inputs), test_rows=len(data.test_inputs),
        )  # fmt: skip
        weights = {
            name.removesuffix(".weight"): tuple(w.shape)
            for name, w in prunable(at.network, whole=True).items()
        }
        single = {name.removesuffix(".weight") for name in prunable(at.network)}
        about_networks.append(
            NetworkFacts(
                task,
                network,
                own.engine.name,
                at.parameters,
                {name: shape for name, shape in weights.items() if name in single},
                at.macs,
                at.steps,
                study.training.steps_per_epoch(len(at.split.fit)),
                {name: shape for name, shape in weights.items() if name not in single},
            )
        )
    return about_tasks, about_networks


def _rate_of_task(study: Study, task: str, own: float) -> float | None:
    """Return the learning rate of every network on a task, None if they have several."""
    run = Run(task, study.strategies[0].name, study.sparsities[0], study.seeds[0])
    rates = {study.learning_rates(run._replace(network=network), own) for network in study.network_names}
    return next(iter(rates))[0] if len(rates) == 1 and len(next(iter(rates))) == 1 else None


def writable(out: str | Path, workers: int | None) -> Path:
    """Return the directory that ``out`` names, wherever a plugin goes; raise NatalError for wrong options."""
    if workers is not None and workers < 1:
        raise NatalError(f"workers must be at least 1, got {workers}")
    if any(ord(letter) < 32 or letter == "\x7f" for letter in str(out)):
        raise NatalError(f"{str(out)!a} is no name for a directory; name one of plain letters with --out")
    if out == "" or (Path(out).exists() and not Path(out).is_dir()):
        raise NatalError(f"{str(out)!r} is not a directory; name one that can be written with --out")
    if not _ours(Path(out)):
        raise NatalError(
            f"{str(out)!r} holds files that are not natal's; name a new or empty directory with --out"
        )
    return Path(out).absolute()


def _ours(directory: Path) -> bool:
    """Whether a directory is new, empty, or one that natal has begun to fill; hidden files are nobody's."""
    if not directory.is_dir():
        return True
    names = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    return not names or any(name.startswith(FILE) for name in names)


def check_device(device: str) -> None:
    """Raise NatalError unless ``device`` is one this machine has."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = ["cpu", *["cuda"][:count], *(f"cuda:{i}" for i in range(count))]
    if device not in has:
        raise NatalError(f"unknown device {device!r}; this machine has: {', '.join(has)}")


def _workers(asked: int | None, device: str, flops: float, jobs: int, study: Study, beyond: bool) -> int:
    """Return how many worker processes to use; 1 means none beside this one."""
    homemade, childless = _homemade(study), multiprocessing.current_process().daemon
    if homemade and (beyond or (asked is not None and asked > 1)):
        who = "other workers" if beyond else f"workers={asked}"
        raise NatalError(
            f"{who} cannot import a task, network or criterion made in this script or notebook; put it "
            "in a module and name that in the study's plugins, or leave workers at 1"
        )
    if childless and not beyond and asked is not None and asked > 1:
        raise NatalError(
            f"workers={asked}: this process is itself a worker of multiprocessing.Pool, which may start no other; "
            "leave workers at 1"
        )
    if asked is not None:
        return asked
    if device != "cpu" or flops < SMALL or homemade or childless:
        return 1
    return max(1, min(cores(), jobs))


def _homemade(study: Study) -> bool:
    """Whether an entry is known to this process alone: made in a script or notebook, not in a plugin."""
    from natal.lab.networks import networks
    from natal.lab.tasks import tasks
    from natal.pruning.criteria import criteria

    origins: list[Callable[..., Any]] = [tasks.origin(tasks[task.entry]) for task in study.tasks]
    origins += [networks.origin(networks[network.entry]) for network in study.networks]
    origins += [criteria.origin(criteria[recipe.criterion]) for recipe in study.strategies]
    importable = {"natal", *(plugin.split(".")[0] for plugin in study.plugins)}
    return any(origin.__module__.split(".")[0] not in importable for origin in origins)
