"""Are lottery tickets here those of open_lth (github.com/facebookresearch/open_lth), round by round?

    git clone https://github.com/facebookresearch/open_lth PATH
    python benchmarks/against_open_lth.py PATH                            its LeNet-300-100, shortened: half a minute
    python benchmarks/against_open_lth.py PATH --iterations 1160 --rounds 12     its 40 epochs on these rows

Both get the same arrays (`mnist-5k`: real MNIST digits), initial weights and order of the data, and each does all else
with its own code: open_lth's runner of lottery tickets, its training, its pruning (`sparse_global`) and its branch
`randomly_reinitialize`; natal's chain of the same protocol with the engine torch. The protocol is open_lth's default:
SGD 0.1, batch 128, 20 % of all that is left a round, the output layer whole, weights and clock back to birth.

Compared are masks, last weights and test accuracy, of every round's ticket and of its reinitialised control. First at
open_lth's own numbers of weights, then at natal's, 1 - 0.8^k: open_lth removes ceil(0.2 n) + 1 of n, for its threshold
is the first weight that should stay, and what stays has to exceed it.

Of the checkout nothing is changed. What it imports and does not use here, torchvision and torch's data parallelism
(today's cannot be inherited from as it does), is replaced by blanks; NumPy's `product`, gone since NumPy 2, is given
back.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import natal
from machine import hardware
from natal.lab.tasks import Split, load
from natal.reading.results import Results
from natal.reading.rows import Row
from natal.streams import stream

TASK, FRACTION, BATCH, RATE = "mnist-5k", 0.1, 128, 0.1
LAYERS = {"fc_layers.0": "hidden1", "fc_layers.1": "hidden2", "fc": "output"}
"""What open_lth's layers are called here."""


@dataclass
class Ticket:
    """A ticket or its control after training: what is kept of each weight, the last weights, the test accuracy."""

    mask: dict[str, Tensor]
    weights: dict[str, Tensor]
    accuracy: float

    @property
    def kept(self) -> int:
        return sum(int(part.sum()) for part in self.mask.values())


# -- natal -------------------------------------------------------------------------------------------------------------


def study(sparsities: list[float], iterations: int, seed: int) -> dict[str, Any]:
    """Return open_lth's protocol as a study."""
    ticket = {
        "criterion": "magnitude",
        "scope": {"output": 1.0},
        "at": "end",
        "rounds": "levels",
        "rewind": "init",
    }
    return {
        "name": "open-lth",
        "tasks": [TASK],
        "networks": [{"network": "lenet-300-100", "init": "kaiming-normal"}],
        "strategies": [{**ticket, "name": "ticket"}, {**ticket, "name": "reinit", "control": "reinit"}],
        "sparsities": [0.0, *sparsities],
        "seeds": [seed],
        "keep": ["init", "end"],
        "training": {
            "optimiser": "sgd", "learning_rate": RATE, "batch": BATCH, "length": f"{iterations}it",
            "evaluate": f"{iterations}it", "decide": "end", "patience": "none", "target": "none",
            "validation_fraction": FRACTION,
        },
    }  # fmt: skip


def rows_of(results: Results, strategy: str) -> list[Row]:
    """Return a strategy's rows, the dense one first."""
    return sorted((row for row in results.runs if row.strategy == strategy), key=lambda row: row.sparsity)


def ours(results: Results, strategy: str) -> list[Ticket]:
    """Return a strategy's networks, the dense one first."""

    def read(row: Row) -> Ticket:
        state, mask = results.state(row, "end"), results.mask(row)
        assert row.test_metric is not None
        return Ticket(dict(mask.weights), dict(state.tensors), row.test_metric)

    return [read(row) for row in rows_of(results, strategy)]


def births(results: Results) -> dict[str, list[dict[str, Tensor]]]:
    """Return what every network of a strategy began with, as open_lth names it."""
    return {
        name: [_there(dict(results.state(row, "init").tensors)) for row in rows_of(results, name)]
        for name in ("ticket", "reinit")
    }


# -- open_lth ----------------------------------------------------------------------------------------------------------


def peer(checkout: Path) -> Any:
    """Import what is used of open_lth."""
    if not (checkout / "open_lth.py").exists():
        raise SystemExit(
            f"{checkout} is no checkout of open_lth; clone github.com/facebookresearch/open_lth there"
        )
    sys.path.insert(0, str(checkout))
    for name in ("", ".datasets", ".models", ".transforms"):
        blank = ModuleType(f"torchvision{name}")
        sys.modules.setdefault(blank.__name__, blank)
    vision: Any = sys.modules["torchvision"]
    vision.datasets = SimpleNamespace(CIFAR10=object)
    vision.models = SimpleNamespace(ResNet=nn.Module)
    if not hasattr(np, "product"):
        np.product = np.prod  # type: ignore[attr-defined]
    modules = (
        "datasets.base", "datasets.registry", "foundations.hparams", "foundations.paths", "lottery.runner",
        "lottery.branch.randomly_reinitialize", "models.initializers", "models.mnist_lenet", "models.registry",
        "platforms.local", "pruning.mask",
    )  # fmt: skip
    parallel: Any = torch.nn.parallel
    there, parallel.DistributedDataParallel = parallel.DistributedDataParallel, nn.DataParallel
    try:
        return SimpleNamespace(**{name.replace(".", "_"): importlib.import_module(name) for name in modules})
    finally:
        parallel.DistributedDataParallel = there


@dataclass
class Fed:
    """What open_lth is given: rows, the order of every epoch, and the weights that its next network is born with."""

    split: Split
    orders: list[list[int]]
    born: dict[str, Tensor] = field(default_factory=dict)


def fed_with(seed: int, iterations: int) -> Fed:
    """Return natal's rows and order of them; the weights are still to come."""
    split, generator = load(TASK, seed, FRACTION), stream(seed, "order")
    epochs = iterations * BATCH // len(split.fit) + 2
    return Fed(split, [torch.randperm(len(split.fit), generator=generator).tolist() for _ in range(epochs)])


def feed(lth: Any, fed: Fed) -> None:
    """Register the rows, their order and the initial weights with open_lth, by its own registries."""
    data, fit = fed.split.data, fed.split.fit
    rows = {True: (data.inputs[fit], data.targets[fit]), False: (data.test_inputs, data.test_targets)}

    class Rows(lth.datasets_base.Dataset):  # type: ignore[misc]
        num_train_examples = staticmethod(lambda: len(fit))
        num_test_examples = staticmethod(lambda: len(data.test_inputs))
        num_classes = staticmethod(lambda: data.outputs)
        get_train_set = staticmethod(lambda augmented: Rows(*rows[True]))
        get_test_set = staticmethod(lambda: Rows(*rows[False]))

    class Ordered(lth.datasets_base.ShuffleSampler):  # type: ignore[misc]
        # open_lth shuffles by data_order_seed + epoch, and rows that are measured not at all
        def __iter__(self) -> Any:
            return iter(range(self._num_examples) if self._seed == -1 else fed.orders[self._seed])

    def given(module: nn.Module) -> None:
        if isinstance(module, lth.models_mnist_lenet.Model):
            module.load_state_dict(fed.born)

    lth.datasets_base.ShuffleSampler = Ordered
    lth.datasets_registry.registered_datasets[TASK] = SimpleNamespace(
        Dataset=Rows, DataLoader=lth.datasets_base.DataLoader
    )
    lth.models_initializers.given = given


def theirs(
    lth: Any, fed: Fed, born: dict[str, list[dict[str, Tensor]]], iterations: int, rounds: int
) -> dict[str, list[Ticket]]:
    """Run open_lth's lottery and its branch, each network born as ``born`` says."""
    hparams = lth.foundations_hparams
    desc = lth.models_mnist_lenet.Model.default_hparams()
    desc.model_hparams = hparams.ModelHparams("mnist_lenet_300_100", "given", "uniform")
    desc.dataset_hparams = hparams.DatasetHparams(TASK, BATCH)
    desc.training_hparams.training_steps = f"{iterations}it"
    desc.training_hparams.data_order_seed = 0
    runner = lth.lottery_runner.LotteryRunner(1, rounds, desc, verbose=False, evaluate_every_epoch=False)
    branch = lth.lottery_branch_randomly_reinitialize.Branch
    found: dict[str, list[Ticket]] = {"ticket": [], "reinit": []}

    def read(folder: str) -> Ticket:
        model = lth.models_registry.load(folder, desc.train_end_step, desc.model_hparams, desc.train_outputs)
        mask = lth.pruning_mask.Mask.load(folder)
        lines = Path(lth.foundations_paths.logger(folder)).read_text("utf-8").split("\n")
        accuracy = next(line for line in lines if line.startswith(f"test_accuracy,{iterations},"))
        weights = {_here(name): value for name, value in model.state_dict().items()}
        return Ticket(
            {_here(name): part.bool() for name, part in mask.items()}, weights, float(accuracy.split(",")[2])
        )

    with tempfile.TemporaryDirectory() as folder:

        class Here(lth.platforms_local.Platform):  # type: ignore[misc]
            root, device_str = folder, "cpu"

        def run() -> None:
            fed.born = born["ticket"][0]
            runner.run()
            found["ticket"] = [read(desc.run_path(1, level)) for level in range(rounds + 1)]
            found["reinit"] = found["ticket"][:1]
            for level in range(1, rounds + 1):
                fed.born = born["reinit"][level]
                one = branch.create_from_hparams(1, [level], desc, branch.BranchHparams())
                one.run()
                found["reinit"].append(read(one.branch_root))

        Here().run_job(run)
    return found


def _here(name: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{LAYERS[layer]}.{part}"


def _there(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = ("weight", "bias")
    return {f"{there}.{part}": tensors[f"{here}.{part}"] for there, here in LAYERS.items() for part in parts}


# -- both --------------------------------------------------------------------------------------------------------------


def ladder(total: int, rounds: int) -> list[int]:
    """Return how many weights are left after each of open_lth's rounds."""
    left = [total]
    for _ in range(rounds):
        left.append(left[-1] - ceil(0.2 * left[-1]) - 1)
    return left[1:]


def compare(mine: list[Ticket], other: list[Ticket], what: str) -> bool:
    """Print a line a round; return whether everything is equal."""
    same = True
    for level, (a, b) in enumerate(zip(mine, other, strict=True)):
        apart = sum(int((a.mask[name] != b.mask[name]).sum()) for name in a.mask)
        furthest = max(float((a.weights[name] - b.weights[name]).abs().max()) for name in a.weights)
        numbers = f"{apart:13}{furthest:15.2g}{a.accuracy:12.4f}{b.accuracy:9.4f}"
        print(f"{what:8}{level:7}{a.kept:11}{b.kept:9}{numbers}")
        same &= apart == 0 and furthest == 0 and abs(a.accuracy - b.accuracy) < 1e-6
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkout", type=Path, help="a clone of github.com/facebookresearch/open_lth")
    parser.add_argument("--iterations", type=int, default=300, help="of each training")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lth = peer(asked.checkout.resolve())
    fed = fed_with(asked.seed, asked.iterations)
    feed(lth, fed)
    print(f"machine     {hardware()}")
    print(f"work        {asked.rounds} rounds of {asked.iterations} iterations, seed {asked.seed}\n")

    total = 784 * 300 + 300 * 100 + 100 * 10
    left = ladder(total, asked.rounds)
    # half a weight more: what is removed is rounded down
    counted = [(total - kept + 0.5) / total for kept in left]
    own = [1 - 0.8**k for k in range(1, asked.rounds + 1)]
    heads = f"{'':8}{'round':>7}{'kept here':>11}{'there':>9}{'masks apart':>13}{'weights apart':>15}"
    there: dict[str, list[Ticket]] = {}
    equal = True
    for title, sparsities in (("open_lth's numbers of weights", counted), ("natal's, 1 - 0.8^k", own)):
        with tempfile.TemporaryDirectory() as out:
            asking = study(sparsities, asked.iterations, asked.seed)
            results = natal.run(asking, out, engine="torch", workers=1)
            here = {name: ours(results, name) for name in ("ticket", "reinit")}
            there = there or theirs(lth, fed, births(results), asked.iterations, asked.rounds)
        print(f"{title}\n{heads}{'accuracy':>12}{'there':>9}")
        same = [compare(here[name], there[name], name) for name in here]
        if sparsities is counted:
            equal = all(same)
            print(f"{'equal' if equal else 'NOT EQUAL'}: masks, weights, accuracies\n")
    raise SystemExit(not equal)


if __name__ == "__main__":
    main()
