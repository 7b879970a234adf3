"""How often a mask depends on the processor: masks under the instructions of other ones, float32 scores and precise.

    python benchmarks/masks.py [--seeds 20]

Every criterion that computes its scores, on the paper's two tasks and on real digits with LeNet-300-100, a tenth of the
weights kept. Each mask is made by this processor as it is and as libraries would on narrower ones (environment
variables tell them so), and compared: how many masks differ at all, and how many kept weights do in all. `precise` is
what the compiled engine asks for: scores in float64, rounded to float32's digits before they are ranked.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys

import numpy as np
import torch

from machine import hardware
from natal import load_study
from natal.lab import birth
from natal.pruning.criteria import criteria, traits

NARROWER = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
STUDY = {
    "name": "masks",
    "tasks": ["modular", "regression", "digits"],
    "networks": ["mlp", "lenet-300-100"],
    "sparsities": [0.9],
    "training": {"batch": 64, "length": "1ep", "patience": "none", "target": "none"},
}


def masks(seeds: int) -> dict[str, str]:
    """Return every mask's bits, by kind of scores, criterion, task and seed."""
    scored = [name for name in criteria if traits[name].needs != "nothing"]
    study = load_study({**STUDY, "strategies": scored, "seeds": list(range(seeds))})
    found = {}
    for run in study.runs():
        if (run.task == "digits") == (run.network == "mlp"):
            continue  # the paper's network is for its own tasks
        for kind in ("float32", "precise"):
            kept = birth.trial(study, run, 0.01, precise=kind == "precise").mask.weights.values()
            bits = np.packbits(np.concatenate([k.numpy().ravel() for k in kept]))
            found[f"{kind}/{run.strategy}/{run.task}/{run.seed}"] = base64.b64encode(bits.tobytes()).decode()
    return found


def on(environment: dict[str, str], seeds: int) -> dict[str, np.ndarray]:
    """Return the same of a process of its own under an environment."""
    command = [sys.executable, __file__, "--seeds", str(seeds), "--masks"]
    said = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True).stdout
    bits = {name: base64.b64decode(packed) for name, packed in json.loads(said).items()}
    return {name: np.unpackbits(np.frombuffer(packed, np.uint8)) for name, packed in bits.items()}


def main(seeds: int) -> None:
    print(f"{hardware()}; torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    here = on({}, seeds)
    names = sorted({name.split("/")[1] for name in here})
    print(f"{'masks that differ':<22}" + "".join(f"{kind:>36}" for kind in ("float32", "precise")))
    for processor, environment in NARROWER.items():
        there = on(environment, seeds)
        for criterion in names:
            line = f"{criterion:<17}{processor:>5}"
            for kind in ("float32", "precise"):
                own = [name for name in here if name.startswith(f"{kind}/{criterion}/")]
                apart = [int((here[name] & ~there[name]).sum()) for name in own]
                kept = sum(int(here[name].sum()) for name in own)
                line += f"{np.count_nonzero(apart):>8} of {len(own):>4}, {sum(apart):>5} of {kept} weights"
            print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--masks", action="store_true", help="print this process's masks as JSON and end")
    asked = parser.parse_args()
    if asked.masks:
        json.dump(masks(asked.seeds), sys.stdout)
    else:
        main(asked.seeds)
