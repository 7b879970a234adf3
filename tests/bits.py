"""Trains a few networks with the compiled engine and prints a digest of each one's bits: `python tests/bits.py`.

Everything in them is made of uniform numbers, sums and products, so the digests are the same on every processor.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace

import torch

from chains import NUMBERS, train, trial, ways
from natal import Run, load_study
from natal.lab import birth
from natal.lab.engines.compiled import vectors
from natal.lab.networks import born
from natal.lab.networks.init import SCHEMES
from natal.study import Network


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
    study = load_study("paper")
    found = {}
    for strategy, sparsity in (("random", 0.0), ("random", 0.5), ("random", 0.9)):
        one = birth.trial(study, Run("modular", strategy, sparsity, 42), 0.01)
        trials[f"modular, {strategy} {sparsity}"] = replace(one, training=ways(length="5it", evaluate="1it"))
    for name, one in trials.items():
        (trained,) = train("compiled", one)
        o = trained.outcome
        assert o.status == "finished"
        numbers = [o.train_metric, o.val_metric, o.test_metric, o.final_loss]
        digest = hashlib.sha256(repr(numbers).encode())
        for array in (*o.curves.values(), *(p.numpy() for p in trained.state.values())):
            digest.update(array.tobytes())
        found[name] = digest.hexdigest()[:16]
    for scheme in SCHEMES:
        net = born(
            Network.model_validate({"network": "mlp", "hidden": [300, 100], "init": {"scheme": scheme}}),
            (784,),
            10,
            seed=5,
        )
        digest = hashlib.sha256()
        for weights in net.parameters():
            digest.update(weights.detach().numpy().tobytes())
        found[f"initial weights, {scheme}"] = digest.hexdigest()[:16]
    return found


if __name__ == "__main__":
    paths = {"panel": vectors.PANEL, "torch": torch.backends.cpu.get_cpu_capability()}
    json.dump({**paths, "digests": digests()}, sys.stdout, indent=1)
