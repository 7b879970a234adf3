"""One network at a time in plain PyTorch: the oracle. It takes any module.

``torch.nn`` layers, autograd and ``torch.optim`` under deterministic algorithms. With the paper's study under torch
2.13.0 on an x86-64 CPU it gives the published program's results to the last bit, whatever the number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from natal.determinism import deterministic, single_threaded
from natal.lab.engines.engine import Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.state import State
from natal.lab.trial import Course, History, Trained, Trial, conclude, measure
from natal.pruning.mask import Mask
from natal.study import Optimiser

WORTH_A_JOB = 5e9
"""Operations worth handing to a worker: some tenths of a second."""


class Torch:
    """The engine ``torch``; see the module."""

    name = "torch"
    revision = 1
    portable = False
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
        started = time.perf_counter() - trial.taken
        training, task = trial.training, trial.task
        rows = trial.rows(device)
        x, y = rows["fit"]
        net = trial.born().to(device).to(memory_format=trial.layout(device))  # type: ignore[call-overload]
        course = Course(trial, trial.mask)
        removed = _removed(net, trial.mask)
        batches, augment, augmented = trial.batches(device), trial.split.augment, trial.stream("augment")
        loss_of = trial.loss()
        optimiser = optimiser_of(training.optimiser, net, trial.learning_rate)
        if trial.start is not None:
            _remind(optimiser, net, trial.start.optimiser)
        evaluations = set(training.evaluations(trial.rows_to_fit))
        history = History(training, trial.settled, trial.so_far)
        regrows = trial.cuts is not None and trial.cuts.regrow == "gradient"
        gradient: dict[str, Tensor] | None = None
        best = (
            _state(net) if trial.so_far is None else {n: v.to(device) for n, v in trial.so_far.best.items()}
        )
        losses: list[Tensor] = []

        def measured(part: str) -> tuple[float, float]:
            inputs, targets = rows[part]
            outputs = measure(net, inputs)
            return task.loss.value(outputs, targets).item(), task.metric.value(outputs, targets)

        def snapshot(step: int) -> State:
            return _snapshot(step, net, optimiser, course.mask, trial, augmented, device)

        def keep(step: int, last: bool = False) -> None:
            clocks = [clock for clock, at in trial.clocks.items() if (last if clock == "end" else at == step)]
            if clocks:
                course.states.update(dict.fromkeys(clocks, snapshot(step)))

        net.train()
        with dropout_from(trial, device):
            keep(trial.first)
            factors = training.factors(trial.rows_to_fit)[trial.first :]
            for step, factor in enumerate(factors, start=trial.first + 1):
                batch = next(batches)
                inputs, targets = (x, y) if batch is None else (x[batch], y[batch])
                if augment is not None:
                    inputs = augment(inputs, augmented)
                for group in optimiser.param_groups:
                    group["lr"] = trial.learning_rate * factor
                if step == trial.first + 1:
                    course.begin(_state(net), optimiser.param_groups[0]["lr"], not optimiser.state, batch)
                optimiser.zero_grad()
                loss = loss_of(net(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                if regrows and step in trial.cut_after:
                    gradient = _gradient(net, trial.mask)
                if training.clip is not None:
                    # a removed weight has no gradient in the network that is left
                    for weight, gone in removed:
                        if weight.grad is not None:
                            weight.grad.masked_fill_(gone, 0)
                    nn.utils.clip_grad_norm_(net.parameters(), training.clip)
                optimiser.step()
                with torch.no_grad():
                    for weight, gone in removed:
                        # not a product, for of what has overflowed that would leave NaN
                        weight.masked_fill_(gone, 0)
                losses.append(loss.detach())
                if step in trial.cut_after:
                    _forget(optimiser, net, course.cut(step, net, gradient))
                    removed = _removed(net, course.mask)
                keep(step)
                if step not in evaluations:
                    continue
                course.look(dict(net.named_parameters()))
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
                if course.due(step):
                    course.leave(history, snapshot(step), best, time.perf_counter() - started)
            keep(step, last=True)

        seconds = time.perf_counter() - started
        return conclude(trial, history, best, seconds, made_by(self, device), course)


def _removed(net: nn.Module, mask: Mask) -> list[tuple[Tensor, Tensor]]:
    """Return every parameter that loses weights, with which of them, laid out alike."""
    parameters = dict(net.named_parameters())
    return [
        (
            parameters[name],
            torch.empty_like(parameters[name], dtype=torch.bool, requires_grad=False).copy_(~kept),
        )
        for name, kept in mask.items().items()
        if not kept.all()
    ]


def _gradient(net: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """Return the gradient of all prunable weights, removed ones too: they are zeros of a plain network."""
    parameters = dict(net.named_parameters())
    gradients = {name: parameters[name].grad for name in mask.weights}
    return {
        name: torch.zeros_like(parameters[name]) if g is None else g.detach().clone()
        for name, g in gradients.items()
    }


def _forget(optimiser: torch.optim.Optimizer, net: nn.Module, regrown: Mapping[str, Tensor]) -> None:
    """Let an optimiser remember nothing of weights that came back."""
    parameters = dict(net.named_parameters())
    for name, back in regrown.items():
        for moment in optimiser.state.get(parameters[name], {}).values():
            if isinstance(moment, Tensor) and moment.shape == back.shape:
                moment.masked_fill_(back, 0)


def _snapshot(
    step: int,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    mask: Mask,
    trial: Trial,
    augmented: torch.Generator,
    device: str,
) -> State:
    """Return the state after ``step`` steps; inside `dropout_from`, whose generators it reads."""
    kept = mask.items()

    def own(tensor: Tensor, name: str) -> Tensor:
        copied = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        masked = name in kept and kept[name].shape == copied.shape
        return copied.masked_fill_(~kept[name], 0) if masked else copied

    remembered = {
        f"{name}/{key}": own(value, name)
        for name, parameter in net.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    streams = trial.drawn({"augment": augmented.get_state(), "dropout": torch.default_generator.get_state()})
    if device != "cpu":
        streams["dropout:cuda"] = torch.cuda.get_rng_state(device)
    tensors = {name: own(value, "") for name, value in net.state_dict().items()}
    return State(step, tensors, remembered, {name: m.clone() for name, m in kept.items()}, streams)


def _remind(optimiser: torch.optim.Optimizer, net: nn.Module, remembered: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what it remembered of a network's parameters."""
    for name, parameter in net.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = remembered.get(f"{name}/{key}")
            if value is not None:
                # moments lie as their parameter does; the number of steps stays on the CPU
                placed = (
                    torch.empty_like(parameter, requires_grad=False).copy_(value)
                    if value.ndim
                    else value.clone()
                )
                optimiser.state[parameter][key] = placed


@contextmanager
def dropout_from(trial: Trial, device: str) -> Iterator[None]:
    """Let whatever draws from torch's global generator meanwhile draw from the run's own stream."""
    devices = [] if device == "cpu" else [torch.device(device)]
    with torch.random.fork_rng(devices=devices):
        generator = trial.stream("dropout")
        torch.default_generator.set_state(generator.get_state())
        streams = {} if trial.start is None else trial.start.streams
        for number in devices:
            with torch.cuda.device(number):
                torch.cuda.manual_seed(generator.initial_seed())
            if "dropout:cuda" in streams:
                torch.cuda.set_rng_state(streams["dropout:cuda"], number)
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
