"""One network at a time in plain PyTorch: the oracle. It takes any module.

``torch.nn`` layers, autograd and ``torch.optim`` under deterministic algorithms. With the paper's study under torch
2.13.0 on an x86-64 CPU it gives the published program's results to the last bit, whatever the number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from natal.determinism import deterministic, single_threaded
from natal.lab.engines.engine import Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.trial import History, Trained, Trial, conclude, measure
from natal.pruning.mask import Mask
from natal.study import Optimiser

WORTH_A_JOB = 5e9
"""Operations worth handing to a worker: some tenths of a second."""


class Torch:
    """The engine ``torch``; see the module."""

    name = "torch"
    revision = 1
    devices = ("cpu", "cuda")

    def refuses(self, setting: Setting) -> str:
        """Return ``""``: it trains whatever is a module."""
        return ""

    def cost(self, pending: Pending, setting: Setting) -> float:
        """Return about how many operations a training takes; a mask saves none."""
        return setting.flops()

    def jobs(self, pending: Sequence[Pending], setting: Setting, device: str) -> list[list[Pending]]:
        """Return as many trainings a job as are worth a worker's while."""
        size = max(1, int(WORTH_A_JOB // setting.flops()))
        return [list(pending[i : i + size]) for i in range(0, len(pending), size)]

    def prepare(self, device: str) -> None:
        """Do nothing: torch is loaded."""

    def train(self, trials: Sequence[Trial], device: str) -> Iterator[Trained]:
        """Train each on its own, in order.

        After every step removed weights are set to zero again; the best evaluation's weights are restored before the
        final measurement.
        """
        for trial in trials:
            with deterministic(device), single_threaded(), torch.enable_grad():
                trained = self._train_one(trial, device)
            yield trained

    def _train_one(self, trial: Trial, device: str) -> Trained:
        started = time.perf_counter()
        training, task = trial.training, trial.task
        rows = trial.rows(device)
        x, y = rows["fit"]
        net = trial.born().to(device).to(memory_format=trial.layout(device))  # type: ignore[call-overload]
        removing = _removing(net, trial.mask)
        batches, augment, augmented = trial.batches(device), trial.split.augment, trial.stream("augment")
        loss_of = trial.loss()
        optimiser = optimiser_of(training.optimiser, net, trial.learning_rate)
        evaluations = set(training.evaluations(trial.rows_to_fit))
        history = History(training)
        best = _state(net)
        losses: list[Tensor] = []

        def measured(part: str) -> tuple[float, float]:
            inputs, targets = rows[part]
            outputs = measure(net, inputs)
            return task.loss.value(outputs, targets).item(), task.metric.value(outputs, targets)

        net.train()
        with dropout_from(trial, device):
            for step, factor in enumerate(training.factors(trial.rows_to_fit), start=1):
                batch = next(batches)
                inputs, targets = (x, y) if batch is None else (x[batch], y[batch])
                if augment is not None:
                    inputs = augment(inputs, augmented)
                optimiser.zero_grad()
                loss = loss_of(net(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                if training.clip is not None:
                    # a removed weight has no gradient in the network that is left
                    for weight, kept in removing:
                        if weight.grad is not None:
                            weight.grad.mul_(kept)
                    nn.utils.clip_grad_norm_(net.parameters(), training.clip)
                for group in optimiser.param_groups:
                    group["lr"] = trial.learning_rate * factor
                optimiser.step()
                with torch.no_grad():
                    for weight, kept in removing:
                        weight.mul_(kept)
                losses.append(loss.detach())
                if step not in evaluations:
                    continue
                # what the loss is, the device says here for the first time since the last evaluation
                mean = torch.stack(losses).mean().item() if losses[1:] else losses[0].item()
                losses.clear()
                val_loss = val_metric = test_metric = math.nan
                if math.isfinite(mean):
                    net.eval()
                    val_loss, val_metric = measured("val")
                    if training.test_curve:
                        _, test_metric = measured("test")
                    net.train()
                if history.record(step, mean, val_loss, val_metric, test_metric):
                    best = _state(net)
                if history.over:
                    break

        return conclude(trial, history, best, time.perf_counter() - started, made_by(self, device))


def _removing(net: nn.Module, mask: Mask) -> list[tuple[Tensor, Tensor]]:
    """Return every parameter that loses weights, with 1 for what is kept and 0 for the rest, laid out alike."""
    parameters = dict(net.named_parameters())
    return [
        (parameters[name], torch.empty_like(parameters[name], requires_grad=False).copy_(kept))
        for name, kept in mask.items().items()
        if not kept.all()
    ]


@contextmanager
def dropout_from(trial: Trial, device: str) -> Iterator[None]:
    """Let whatever draws from torch's global generator meanwhile draw from the run's own stream."""
    devices = [] if device == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        seed = trial.stream("dropout").initial_seed()
        torch.default_generator.manual_seed(seed)
        for number in devices:
            with torch.cuda.device(number):
                torch.cuda.manual_seed(seed)
        yield


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def optimiser_of(rule: Optimiser, net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of a network's parameters that a study asks for."""
    if rule.name == "sgd":
        return torch.optim.SGD(
            net.parameters(),
            lr=learning_rate,
            momentum=rule.momentum,
            nesterov=rule.nesterov,
            weight_decay=rule.weight_decay,
        )
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.name]
    return kind(net.parameters(), lr=learning_rate, betas=rule.betas, weight_decay=rule.weight_decay)
