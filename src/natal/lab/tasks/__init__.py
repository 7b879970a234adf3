"""Tasks: what is learned, from which data, and by what it is judged."""

from natal.lab.tasks.data import Augment, Data, Split
from natal.lab.tasks.generated import mnist_1d
from natal.lab.tasks.images import cifar_10, digits, fashion_mnist, mnist, mnist_5k
from natal.lab.tasks.task import (
    LOSSES,
    METRICS,
    Loss,
    Metric,
    Task,
    accuracy,
    load,
    options,
    r2,
    spoilt,
    task,
    tasks,
    unspoilt,
)
from natal.lab.tasks.tiny import modular, regression, sparse_parity

__all__ = [
    "LOSSES",
    "METRICS",
    "Augment",
    "Data",
    "Loss",
    "Metric",
    "Split",
    "Task",
    "accuracy",
    "cifar_10",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "mnist_1d",
    "mnist_5k",
    "modular",
    "options",
    "r2",
    "regression",
    "sparse_parity",
    "spoilt",
    "task",
    "tasks",
    "unspoilt",
]
