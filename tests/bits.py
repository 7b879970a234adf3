"""Trains a few networks with the compiled engine and prints a digest of each one's bits: `python tests/bits.py`.

Everything in them is made of uniform numbers, sums and products, so the digests are the same on every processor.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys

import numba
import torch
from chains import CLASSES, NUMBERS, train, trial, ways
from numba.core import codegen

from natal.lab.engines.compiled import vectors


def digests() -> dict[str, str]:
    sgd = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    adamw = {"name": "adamw", "weight_decay": 0.1}
    single = torch.float32
    trials = {
        "dense, minibatches": trial(
            1, ways(batch=60, length="40it"), [50, 33, 21, 10], [1.0] * 3, fit=500, dtype=single
        ),
        "sparse, minibatches": trial(
            2, ways(batch=60, optimiser=adamw, schedule="cosine", label_smoothing=0.1), [50, 40, 30, 10],
            [0.1, 0.3, 0.7], fit=500, dtype=single,
        ),
        "one-hot, full batch": trial(
            3, ways(length="30it"), [96, 48, 40], [1.0, 0.5], ones=2, fit=1500, without=0.2, dtype=single
        ),
        "squared error": trial(
            4, ways(optimiser=sgd, batch=32), [20, 64, 64, 3], [0.6, 0.2, 1.0], task=NUMBERS, dtype=single
        ),
    }  # fmt: skip
    assert trials["squared error"].task is not CLASSES
    found = {}
    for name, one in trials.items():
        (trained,) = train("compiled", one)
        o = trained.outcome
        numbers = [o.train_metric, o.val_metric, o.test_metric, o.final_loss]
        digest = hashlib.sha256(repr(numbers).encode())
        for array in (*o.curves.values(), *(p.numpy() for p in trained.state.values())):
            digest.update(array.tobytes())
        found[name] = digest.hexdigest()[:16]
    return found


def where() -> str:
    """What the kernels were compiled for, and what torch chose."""
    target = numba.config.CPU_NAME or codegen.get_host_cpu_features and platform.machine()
    return f"{target}, panels of {vectors.PANEL}, torch {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    json.dump({"where": where(), "digests": digests()}, sys.stdout)
