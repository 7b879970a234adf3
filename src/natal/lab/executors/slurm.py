"""Jobs of Slurm, through submitit: they and the command share a folder of the results directory."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time as clock
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from natal.errors import NatalError
from natal.lab.executors.workers import Workers
from natal.lab.parcel import Parcel, pack, work_into

P = ParamSpec("P")
R = TypeVar("R")

FOLDER = "slurm"
"""What jobs write, in the results directory: submitit's own files, and what came of each job."""
POLL = 1.0
"""Seconds between two looks at the folder."""
ASK = 15.0
"""Seconds between two questions to Slurm: which jobs are there?"""


class Slurm(Workers):
    """Jobs of Slurm, at most ``jobs`` at a time, each of many trainings, so that few wait in Slurm's queue.

    ``partition``: Slurm's, by default its own; ``time``: the most that a job may take, such as ``90m`` or ``2h``.
    ``cluster``: ``slurm``, or submitit's ``local`` for processes on this machine. What came of a job lies in the folder
    until it is stored: a command that died meanwhile takes it over when it is given again.
    """

    forgets = True
    answers = False

    def __init__(
        self,
        directory: Path,
        *,
        partition: str | None = None,
        time: str = "1h",
        jobs: int = 10,
        cluster: str = "slurm",
    ) -> None:
        if jobs < 1:
            raise NatalError(f"--jobs must be at least 1, got {jobs}")
        self._folder = directory.absolute() / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count, self._cluster = jobs, cluster
        asked: dict[str, Any] = {"timeout_min": minutes(time), "cpus_per_task": 1, "name": "natal"}
        if partition is not None and cluster == "slurm":
            asked["slurm_partition"] = partition
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise NatalError(
                "--on slurm: there is no sbatch here; run the command where Slurm's jobs are submitted"
            )
        self._executor = submitit.AutoExecutor(self._folder / "jobs", cluster=cluster)
        self._executor.update_parameters(**asked)
        self._waiting: dict[Future[Any], submitit.Job[Any]] = {}
        self._lock = threading.Lock()
        self._seen: list[Path] = []
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def count(self) -> int:
        """As many jobs as were asked for."""
        return self._count

    def portion(self, ready: int) -> int:
        """So many that each job gets a few portions in all: large ones first, small ones at the end."""
        return max(1, ready // (2 * self._count))

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand ``fn`` to Slurm."""
        future: Future[Any] = Future()
        try:
            (parcel,) = args
            assert isinstance(parcel, Parcel)
            if parcel.errand is None:  # nobody waits in Slurm's queue to be made ready
                future.set_result(pack([]))
                return future
            job = self._executor.submit(work_into, parcel, self._folder, uuid.uuid4().hex)
        except (FailedSubmissionError, FailedJobError, OSError) as error:
            said = " ".join(str(error).split())
            raise NatalError(f"Slurm takes no job: {said}; see --partition and --time") from None
        with self._lock:
            self._waiting[future] = job
        return future

    def _watch(self) -> None:
        """Let futures know what came of their jobs.

        submitit asks Slurm's accounting alone what became of a job, and not every cluster has one: a job that Slurm
        lists no more, two times in a row as files may come late, and that has left no result, was killed.
        """
        missing: set[str] = set()
        asked = clock.monotonic()
        while not self._over.wait(POLL):
            with self._lock:
                waiting = list(self._waiting.items())
            lost: set[str] = set()
            if waiting and self._cluster == "slurm" and clock.monotonic() - asked > ASK:
                before, missing = missing, _unlisted(job.job_id for _, job in waiting)
                lost, asked = before & missing, clock.monotonic()
            for future, job in waiting:
                if not job.done() and job.job_id not in lost:
                    continue
                with self._lock:
                    self._waiting.pop(future, None)
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    if not job.done():
                        raise UncompletedJobError(f"Slurm lists job {job.job_id} no more")
                    future.set_result(job.result())
                except BaseException as error:
                    future.set_exception(_cause(error))

    def lost(self, error: BaseException) -> bool:
        """Whether a job ended without a result: killed, out of time or memory, its node gone."""
        return isinstance(error, UncompletedJobError) or super().lost(error)

    def kept(self) -> Iterable[bytes]:
        """Return what has come of jobs, whichever command has submitted them; files that were seen before go."""
        for path in self._seen:
            path.unlink(missing_ok=True)
        self._seen = sorted(self._folder.glob("*.came"))
        return [path.read_bytes() for path in self._seen]

    def stop(self) -> None:
        """Cancel what still runs."""
        self._over.set()
        with self._lock:
            for job in self._waiting.values():
                job.cancel(check=False)
        if not self._waiting and not any(self._folder.glob("*.came")):
            shutil.rmtree(self._folder, ignore_errors=True)


def _unlisted(jobs: Iterable[str]) -> set[str]:
    """Return which of some jobs Slurm neither runs nor will run; none if it does not say."""
    command = ["squeue", "--me", "--noheader", "--format=%A"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return set()
    return set(jobs) - set(listed.split())


def _cause(error: BaseException) -> BaseException:
    """Return a NatalError that a job raised as itself: submitit tells it as text."""
    said = re.findall(r"natal\.errors\.NatalError: (.+)", str(error))
    return NatalError(said[-1]) if said else error


def minutes(words: str) -> int:
    """Return the minutes that ``90m``, ``2h`` or ``1d`` means; raise NatalError if it is none of them."""
    match = re.fullmatch(r"(\d+)([mhd])", words)
    if match is None or int(match[1]) < 1:
        raise NatalError(f"--time {words!r}: write it as 90m, 2h or 1d")
    return int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]]
