"""The README's figure: what a network is worth, and what a step of it costs, against the share of weights kept.

    natal run lottery --out lottery
    python benchmarks/ticket.py lottery --figure docs/ticket.png

Left, from any results of the study `lottery`: test accuracy of every strategy, mean over seeds with a 95 % interval
where there are two seeds or more. Right, measured here: milliseconds a step of LeNet-300-100 at batch 60, natal's
compiled engine against plain PyTorch with masks multiplied in, one thread.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from density import DENSITIES, network
from machine import hardware
from natal.determinism import one_thread
from natal.lab.networks.mlp import mlp
from natal.reading import stats
from natal.reading.figures import possible
from natal.reading.results import Results, load
from natal.wording import plural

SHOWN = ("ticket", "reinit", "shuffle", "snip", "synflow", "magnitude", "random")


def accuracies(results: Results) -> dict[str, list[tuple[float, stats.Summary]]]:
    """Return each strategy's test metric by density, densest first."""
    (setting,) = results.study.settings()
    names = [recipe.name for recipe in results.study.strategies if recipe.name in SHOWN]
    return {
        name: [(1 - c.sparsity, c.test) for c in stats.cells(results.runs, setting, name)] for name in names
    }


def costs(rounds: int) -> list[float]:
    """Return milliseconds a step at each of `DENSITIES`, and those of plain PyTorch."""
    torch.manual_seed(0)
    rows, labels = torch.randn(15_000, 784), torch.randint(0, 10, (15_000,))
    with one_thread():
        return network(
            "LeNet-300-100, batch 60", mlp((784,), 10, hidden=[300, 100]), rows, labels, 60, rounds
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, help="a directory of the study lottery")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--figure", type=Path, help="write the figure")
    asked = parser.parse_args()
    results = load(asked.results)
    found = accuracies(results)
    print(f"machine     {hardware()}; trained on {results.manifest['processor']}")
    print(f"study       {results!r}, {plural(len(results.study.seeds), 'seed')}")
    print(f"{'density':10}" + "".join(f"{density:8.3f}" for density, _ in next(iter(found.values()))))
    for name, line in found.items():
        print(f"{name:10}" + "".join(f"{test.mean:8.3f}" for _, test in line))
    *ours, plain = costs(asked.rounds)
    if asked.figure:
        draw(found, results, ours, plain, asked.figure)


def draw(
    found: dict[str, list[tuple[float, stats.Summary]]],
    results: Results,
    ours: list[float],
    plain: float,
    path: Path,
) -> None:
    """Draw accuracy and cost side by side over one logarithmic axis of density."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.2, 3.6), layout="constrained")
    # Okabe and Ito's, for the colour-blind
    palette = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#555555")
    colours = dict(zip(SHOWN, palette, strict=True))
    seeds = len(results.study.seeds)
    (setting,) = results.study.settings()
    metric = results.tasks[setting.task].metric
    for name, line in found.items():
        densities = [density for density, _ in line]
        width = 2.4 if name == "ticket" else 1.3
        left.plot(
            densities, [test.mean for _, test in line], "o-", ms=3, lw=width, color=colours[name], label=name
        )
        if not math.isnan(line[0][1].low):
            low, high = zip(*(possible(metric, test.low, test.high) for _, test in line), strict=True)
            left.fill_between(densities, low, high, color=colours[name], alpha=0.12, lw=0)
    title = f"What it is worth: {setting.network} on {setting.task}, {plural(seeds, 'seed')}"
    left.set(ylabel="test accuracy", title=title)
    left.legend(frameon=False, fontsize=8, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    right.plot(DENSITIES, ours, "o-", ms=4, lw=2.4, color="#0072B2", label="natal, compiled")
    right.axhline(plain, color="0.4", ls="--", label="plain PyTorch, masked")
    right.set(ylabel="ms a step", ylim=(0, None), title="What a step costs: batch 60, one thread")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="share of weights kept")
        axis.xaxis.set_major_locator(FixedLocator([1, 0.5, 0.2, 0.1, 0.05, 0.02]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.invert_xaxis()
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    spread = f"n = {seeds}: mean and 95 % t-interval" if seeds > 1 else "n = 1: no interval"
    figure.text(
        1,
        0,
        f"{spread}; trained on {results.manifest['processor']}, timed on {hardware()}",
        ha="right",
        va="bottom",
        fontsize=7,
        color="0.35",
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
