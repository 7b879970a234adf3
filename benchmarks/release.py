"""What an earlier release takes for a study, and what this one takes: both commands in turn, in one session.

    python benchmarks/release.py                              the paper's study, five rounds
    python benchmarks/release.py controls criteria --rounds 3

Both run the same seeds: presets that compare have more today. Every figure is that of ``natal run STUDY`` and ``natal
validate``, as ``make study`` has them, in fresh processes and directories. CPU seconds are those of all processes that
a command started. The first round of each does not count: it compiles. The earlier release is taken from this
repository's history.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from machine import hardware

ROOT = Path(__file__).parents[1]
RELEASE = "45fa36c"
"""The commit of natal 0.2.0."""
PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """Seconds of processors and of the clock."""

    cpu: float
    wall: float


def unpacked(commit: str, folder: Path) -> Path:
    """Return the ``src`` of a commit, written below ``folder``."""
    packed = subprocess.run(
        ["git", "archive", "--format=tar", commit, "src"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def cost(source: Path, study: str, seeds: str, folder: Path) -> Cost:
    """Run and validate a study with the natal of ``source``; every process that it leaves behind is waited for."""
    out = tempfile.mkdtemp(dir=folder)
    environment = {**os.environ, "PYTHONPATH": str(source)}
    before, started = _processors(), time.perf_counter()
    for words in (["run", study, "--seeds", seeds, "--out", out, "--quiet"], ["validate", out]):
        command = [sys.executable, "-m", "natal.cli", *words]
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"{' '.join(command)} of {source} failed")
    wall = time.perf_counter() - started
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    return Cost(_processors() - before, wall)


def _processors() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="*", default=["paper"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", default="42,123,7", help="of both; those that 0.2.0's own studies had")
    parser.add_argument("--commit", default=RELEASE, help="the earlier release")
    asked = parser.parse_args()
    # workers of a fork server that ends become this process's own
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("this machine cannot count the seconds of a command's grandchildren")
    print(f"machine     {hardware()}; load before: {os.getloadavg()[0]:.2f}")
    print(
        f"versions    torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {asked.commit: unpacked(asked.commit, folder), "this tree": ROOT / "src"}
        for study in asked.studies:
            rounds: dict[str, list[Cost]] = {of: [] for of in sources}
            for number in range(asked.rounds + 1):
                for of, source in sources.items():
                    taken = cost(source, study, asked.seeds, folder)
                    if number:
                        rounds[of].append(taken)
                        print(
                            f"  {study} {number}: {of:10} {taken.cpu:7.1f} s CPU {taken.wall:7.1f} s",
                            flush=True,
                        )
            (then, now) = (Cost(*map(median, zip(*costs, strict=True))) for costs in rounds.values())
            print(
                f"{study:12}{asked.commit} {then.cpu:.1f} s CPU, {then.wall:.1f} s; this tree {now.cpu:.1f} s CPU, "
                f"{now.wall:.1f} s; medians of {asked.rounds}: {now.cpu / then.cpu:.2f} of the CPU seconds, "
                f"{then.wall / now.wall:.2f}x as fast by the clock"
            )


if __name__ == "__main__":
    main()
