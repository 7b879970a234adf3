"""Studies of networks with layers that can only lose whole units: recurrent ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import natal
from natal.lab.networks import network
from natal.reading.validate import validate

NEURONS = {"criterion": "magnitude", "granularity": "neuron"}
STUDY: dict[str, Any] = {
    "name": "recurrent",
    "tasks": ["digits"],
    "networks": ["reader"],
    "strategies": [
        {"name": "weights", "criterion": "magnitude"},
        {"name": "neurons", **NEURONS},
        {"name": "new", **NEURONS, "control": "reinit"},
        {"name": "small", **NEURONS, "control": "small-dense"},
        {"name": "gradual", **NEURONS, "at": {"from": "0ep", "to": "2ep", "every": "1ep"}},
        {"name": "ticket", **NEURONS, "at": "end", "rewind": "init", "rounds": "levels"},
    ],
    "sparsities": [0.0, 0.3, 0.5],
    "seeds": [1],
    "keep": ["init", "end"],
    "training": {"epochs": 3, "patience": "none", "target": "none"},
}


class Reader(nn.Module):
    """Reads an image row by row."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.rows = nn.GRU(inputs, width, batch_first=True)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rows(x.flatten(0, -3))
        out: Tensor = self.out(self.hidden(states[:, -1]).relu())
        return out


@pytest.mark.usefixtures("forgotten", "no_report")
@pytest.mark.slow
def test_neurons_go_from_recurrent_layers_and_single_weights_do_not(tmp_path: Path) -> None:
    @network("reader")
    def reader(shape: tuple[int, ...], outputs: int, *, width: int = 6) -> nn.Module:
        return Reader(shape[-1], outputs, width)

    results = natal.run(STUDY, tmp_path / "out", workers=1)
    found = [line for line in validate(tmp_path / "out") if "rebuilds it" not in line]
    assert [line for line in found if "does not learn" not in line] == []
    recurrent = {"rows.weight_ih_l0", "rows.weight_hh_l0"}
    for run in results.runs:
        if run.sparsity == 0:
            continue
        cut = {name for name, density in run.densities.items() if density < 1}
        if run.strategy == "weights":
            assert set(run.densities) == {"hidden", "out"}
            continue
        assert set(run.densities) == recurrent | {"hidden", "out"}
        if run.strategy in ("gradual", "ticket", "neurons", "new"):
            assert cut & recurrent or run.sparsity == 0.3, run
            mask = results.mask(run)
            assert mask.kept == run.kept
            # a hidden unit goes from all three gates, from what it reads and from what reads it
            stays = mask.weights["rows.weight_ih_l0"].any(1).view(3, -1)
            assert stays.eq(stays[0]).all()
            assert not mask.weights["rows.weight_hh_l0"][:, ~stays[0]].any()
            assert not mask.weights["hidden.weight"][:, ~stays[0]].any()
    by = {(run.strategy, run.sparsity): run for run in results.runs}
    # as natal.prune cuts them
    net = Reader(8, 10, 6)
    net.load_state_dict(dict(results.state(by["neurons", 0.5], "init").tensors))
    mask = natal.prune(net, 0.5, "magnitude", "global", "neuron", batch=(torch.rand(2, 1, 8, 8), None))
    theirs = results.mask(by["neurons", 0.5]).items()
    assert all(torch.equal(kept, theirs[name]) for name, kept in mask.items().items())
