"""The machine a benchmark runs on, and how it takes times."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil


def hardware() -> str:
    """Return processor, cores and memory in a line."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
        model = facts.get("model name", model)
        if "cpu family" in facts:  # a cloud's name for a processor may not say which generation it is
            model += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def in_turn(*calls: Callable[[], object], rounds: int) -> list[float]:
    """Return the median seconds of each call, all of them once a round, after a round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if number:
                own.append(time.perf_counter() - started)
    return [median(own) for own in times]
