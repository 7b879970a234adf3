"""What is shown while a study runs names every run, whatever its network is called."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

import reference_store
from natal.progress import View, line
from natal.study import Run

RUN = Run("digits", "snip", 0.9, 7, "lenet-5")
OUTCOME = reference_store.reference_outcomes()[Run("modular", "random", 0.5, 7)]


def test_a_line_names_the_network_but_the_papers() -> None:
    trained = replace(OUTCOME, test_metric=0.25)
    assert line(3, 9, RUN, trained, "acc") == (
        "[3/9] task=digits, network=lenet-5, strategy=snip, sparsity=90%, seed=7 ... test_acc=0.2500"
    )
    assert line(3, 9, RUN._replace(network="mlp"), trained, "acc").startswith(
        "[3/9] task=digits, strategy=snip"
    )
    lost = replace(reference_store.diverged(OUTCOME, 7), steps_per_epoch=3)
    assert line(3, 9, RUN, lost, "acc").endswith("... diverged at epoch 2.33")


def test_the_live_view_shows_a_cell_once() -> None:
    view = View(Console(file=io.StringIO(), force_terminal=True, width=200))
    view.training([RUN, RUN._replace(seed=8), RUN._replace(network="mlp"), RUN._replace(sparsity=0.5)])
    view.live.get_renderable()
    assert view.now.plain == "training  digits lenet-5 snip 90%, digits snip 90%, digits lenet-5 snip 50%"
