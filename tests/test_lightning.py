"""The callback in the real Lightning does what the schedule does in a loop by hand."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from natal import NatalError, PruningSchedule

pytestmark = pytest.mark.slow

T = 6
LOTTERY = {"criterion": "magnitude", "scope": "layerwise", "at": "end", "rounds": 2, "rewind": "2it"}
STRATEGIES: dict[str, Any] = {
    "birth": "snip",
    "lottery": LOTTERY,
    "rigl": {
        "criterion": "magnitude",
        "at": {"from": "init", "to": "4it", "every": "2it"},
        "regrow": "gradient",
    },
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(40, 8, generator=generator), torch.randint(3, (40,), generator=generator)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def optimiser_of(net: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def fit(callback: Any, steps: int, interval: str = "step", **keys: Any) -> tuple[nn.Module, list[float]]:
    """Train with Lightning on one batch of all rows; return the network and the learning rate of every step."""
    import pytorch_lightning as lightning

    rates: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            optimizer: Any = self.optimizers()
            rates.append(optimizer.param_groups[0]["lr"])
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = optimiser_of(self)
            return [optimizer], [{"scheduler": scheduler, "interval": interval}]

    module = Module()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, **keys,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and logging
        trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=40))
    return module.net, rates


@pytest.mark.parametrize("kind", STRATEGIES)
def test_it_trains_as_a_loop_by_hand_does_bit_for_bit(kind: str) -> None:
    from natal.lightning import PruningCallback

    net, (x, y) = network(), data()
    optimizer, scheduler = optimiser_of(net)
    schedule = PruningSchedule(
        net, optimizer, STRATEGIES[kind], 0.6, steps=T, batch=(x, y), scheduler=scheduler
    )
    rates = []
    while not schedule.done:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        schedule.step()

    callback = PruningCallback(STRATEGIES[kind], 0.6, steps=T, batch=(x, y))
    theirs, seen = fit(callback, schedule.total)
    assert seen == rates
    for name, value in net.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name
    assert callback.schedule is not None
    assert callback.schedule.proofs == schedule.proofs
    assert callback.schedule.proofs["held"] is True
    assert callback.schedule.proofs["rewound"] is True
    if kind == "lottery":
        # rounds that begin again at step 2: what Lightning's own reset missed for years
        assert schedule.total == T + 2 * (T - 2)
        assert [r["clock"] for r in schedule.proofs["restarted"]] == [2, 2]


def test_batches_that_are_gathered_are_one_step() -> None:
    from natal.lightning import PruningCallback

    callback = PruningCallback("magnitude", 0.5, steps=3)
    fit(callback, 3, accumulate_grad_batches=2, max_epochs=20)
    assert callback.schedule is not None
    assert callback.schedule.taken == 3


def test_what_it_cannot_do_is_refused_in_one_line() -> None:
    from natal.lightning import PruningCallback

    with pytest.raises(NatalError, match="takes 6 steps and the schedule 14; set max_steps=14"):
        fit(PruningCallback(LOTTERY, 0.6, steps=T), T)
    with pytest.raises(NatalError, match='set interval="step"'):
        fit(PruningCallback(LOTTERY, 0.6, steps=T), 14, interval="epoch")
    with pytest.raises(NatalError, match="is later than the cut"):
        fit(PruningCallback({**LOTTERY, "at": "1it"}, 0.6, steps=T), 14)
    with pytest.raises(NatalError, match="the trainer's own scheduler; leave scheduler out"):
        PruningCallback("magnitude", 0.5, steps=3, scheduler=None)
    with pytest.raises(NatalError, match=r"batch must be a pair \(inputs, targets\), got Tensor"):
        fit(PruningCallback("snip", 0.5, steps=3, batch=data()[0]), 3)


def test_an_error_while_training_leaves_the_model_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from natal.lightning import PruningCallback

    def stumble(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise ZeroDivisionError

    callback = PruningCallback("magnitude", 0.5, steps=5)
    monkeypatch.setattr(callback, "on_train_batch_start", stumble)
    with pytest.raises(ZeroDivisionError):
        fit(callback, 5)
    assert callback.schedule is not None
    assert callback.schedule.taken == 2
    assert not callback.schedule.optimizer._optimizer_step_post_hooks


def test_the_callback_can_be_copied_before_training() -> None:
    from natal.lightning import PruningCallback

    assert copy.deepcopy(PruningCallback("magnitude", 0.5, steps=3)).schedule is None
