"""What a study would train: its grid compared with what the directory already holds. Trains nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natal.errors import NatalError
from natal.registry import did_you_mean
from natal.store import FILE, Store
from natal.study import Run, Study, load_study

ENGINES = ("batched", "sequential")


SECONDS_PER_FLOP = {"batched": 1 / 190e9, "sequential": 1 / 70e9}  # measured on one Zen 5 core, and on two


SMALL = 20e9  # floating-point operations that are not worth starting processes for: a tenth of a second


@dataclass(frozen=True)
class Plan:
    """What a command would do: the grid with each row's key, the trainings behind it, and which are still to do.

    ``pending``: one row for each training still to be done, in the order they will be started. ``jobs``: the same,
    in the batches that workers take. ``flops``: about what is to be computed at most, were no training to stop early.
    ``outdated``: trainings stored in the directory that another version of natal, torch or NumPy made. They are kept,
    but never mixed with this version's.
    """

    study: Study
    directory: Path
    engine: str
    device: str
    workers: int
    grid: list[tuple[Run, str]]
    pending: list[tuple[Run, str]]
    jobs: list[list[tuple[Run, str]]] = field(repr=False)
    flops: float
    outdated: int
    tasks: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def trainings(self) -> int:
        """Number of different trainings behind the grid's rows."""
        return len({key for _, key in self.grid})

    @property
    def shared(self) -> int:
        """Number of rows that reuse another row's training."""
        return len(self.grid) - self.trainings

    @property
    def seconds(self) -> float:
        """About how long the pending trainings take at most, were none to stop early, on a current server core."""
        return self.flops * SECONDS_PER_FLOP[self.engine] / self.workers

    @property
    def done(self) -> list[tuple[Run, str]]:
        """The rows whose training is stored already."""
        missing = {key for _, key in self.pending}
        return [(run, key) for run, key in self.grid if key not in missing]


def plan(
    study: str | Path | Mapping[str, Any] | Study = "paper",
    out: str | Path = "results",
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    engine: str = "batched",
    device: str = "cpu",
    fresh: bool = False,
) -> Plan:
    """Return what `run` with the same arguments would do; trains and writes nothing.

    Every task and strategy of the study is tried out once. Raises NatalError for the first that does not work.
    """
    study = load_study(study, overrides)
    directory = writable(out, engine, workers)
    from natal.lab import worker
    from natal.lab.engines import compiled
    from natal.lab.trial import MADE_WITH

    compiled.check(device)
    worker.check(study)
    about = {name: _about(study, name) for name in study.tasks}
    grid = [(row, worker.key(study, row, engine, device)) for row in study.runs()]
    finished: set[str] = set()
    outdated = 0
    if (directory / FILE).exists() and not fresh:
        with Store.read(directory) as store:
            finished = store.finished()
            outdated = sum(not set(MADE_WITH).issubset(by.split(", ")) for by in store.made_by())
    missing: dict[str, Run] = {}
    for row, key in grid:
        if key not in finished:
            missing.setdefault(key, row)
    pending = [(row, key) for key, row in missing.items()]
    cost = {key: _flops(study, row, about[row.task]) for row, key in pending}
    if engine == "batched":
        # longest first keeps all workers busy to the end
        pending.sort(key=lambda row: -cost[row[1]])
        jobs = _lane_jobs(study, pending, about, device)
        jobs.sort(key=lambda job: -sum(cost[key] for _, key in job))
        pending = [row for job in jobs for row in job]
    else:
        jobs = [[row] for row in pending]
    flops = sum(cost.values())
    return Plan(
        study,
        directory,
        engine,
        device,
        _workers(workers, engine, device, flops, len(jobs), study),
        grid,
        pending,
        jobs,
        flops,
        outdated,
        about,
    )


def _about(study: Study, name: str) -> dict[str, Any]:
    """Return what the right half needs to know of a task, which it cannot import."""
    from natal.lab.tasks import load as load_data
    from natal.lab.tasks import tasks

    task, split = tasks[name], load_data(name, study.seeds[0], study.training.validation_fraction)
    return {
        "metric": task.metric.name, "field": task.metric.field, "chance": split.chance, "loss": task.loss.name,
        "learning_rate": study.learning_rate(name, task.learning_rate),
        "inputs": split.data.inputs.shape[1], "outputs": split.data.outputs,
        "fit_rows": len(split.fit), "val_rows": len(split.val),
        "train_rows": len(split.data.inputs), "test_rows": len(split.data.test_inputs),
    }  # fmt: skip


def _neurons(study: Study, row: Run, outputs: int) -> int:
    """Return how many hidden neurons a run trains: those with an outgoing weight, about so many if weights go."""
    of_neurons = study.recipe(row.strategy).granularity == "neuron"
    share = row.sparsity if of_neurons else row.sparsity**outputs
    return max(1, study.hidden - int(share * study.hidden))


def _flops(study: Study, row: Run, about: Mapping[str, Any]) -> float:
    """Return about how many operations a run takes if it does not stop early.

    Three products a step (forward, backward to the weights, backward to the neurons), two operations a pair; wide
    inputs are taken to be one-hot.
    """
    neurons = _neurons(study, row, about["outputs"])
    pairs = about["fit_rows"] * neurons * (about["outputs"] + min(about["inputs"], 32))
    return 6.0 * study.training.epochs * float(pairs)


def _lane_jobs(
    study: Study, pending: list[tuple[Run, str]], about: Mapping[str, Mapping[str, Any]], device: str
) -> list[list[tuple[Run, str]]]:
    """Return the batches the batched engine would make of the pending runs, each a worker's job, in order."""
    from natal.lab.engines.compiled import lanes_at_once, width

    jobs: list[list[tuple[Run, str]]] = []
    open_jobs: dict[tuple[str, int], list[tuple[Run, str]]] = {}
    for row, key in pending:
        of = about[row.task]
        neurons = width(_neurons(study, row, of["outputs"]))
        lanes = lanes_at_once(of["fit_rows"], neurons, of["outputs"]) if device == "cpu" else len(pending)
        job = open_jobs.get((row.task, neurons))
        if job is None or len(job) == lanes:
            job = open_jobs[row.task, neurons] = []
            jobs.append(job)
        job.append((row, key))
    return jobs


def writable(out: str | Path, engine: str, workers: int | None) -> Path:
    """Return the directory that ``out`` names; raise NatalError for what is wrong with the options."""
    if engine not in ENGINES:
        raise NatalError(f"unknown engine {engine!r}{did_you_mean(engine, ENGINES)}")
    if workers is not None and workers < 1:
        raise NatalError(f"workers must be at least 1, got {workers}")
    if out == "" or (Path(out).exists() and not Path(out).is_dir()):
        raise NatalError(f"{str(out)!r} is not a directory; name one that can be written with --out")
    return Path(out)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(asked: int | None, engine: str, device: str, flops: float, jobs: int, study: Study) -> int:
    """Return how many worker processes to use; 1 means none beside this one."""
    homemade = _homemade(study)
    if asked is not None and asked > 1 and homemade:
        raise NatalError(
            f"workers={asked} cannot import a task or criterion made in this script or notebook; put it in a "
            "module and name that in the study's plugins, or leave workers at 1"
        )
    if asked is not None:
        return asked
    if engine == "sequential" or device != "cpu" or flops < SMALL or homemade:
        return 1
    return max(1, min(cores(), jobs))


def _homemade(study: Study) -> bool:
    """Whether a task or criterion is known to this process alone: made in a script or notebook, not in a plugin."""
    from natal.lab.tasks import tasks
    from natal.pruning.criteria import criteria

    origins = [tasks.origin(tasks[name]) for name in study.tasks]
    origins += [criteria.origin(criteria[r.criterion]) for r in study.strategies]
    importable = {"natal", *(plugin.split(".")[0] for plugin in study.plugins)}
    return any(origin.__module__.split(".")[0] not in importable for origin in origins)
