"""Tasks: what is learned."""

from natal.lab.tasks.task import (
    LOSSES,
    METRICS,
    MODULUS,
    Data,
    Loss,
    Metric,
    Split,
    Task,
    accuracy,
    load,
    r2,
    task,
    tasks,
)

__all__ = [
    "LOSSES", "METRICS", "MODULUS", "Data", "Loss", "Metric", "Split", "Task", "accuracy", "load", "r2", "task",
    "tasks",
]  # fmt: skip
