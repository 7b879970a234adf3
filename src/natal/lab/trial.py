"""What goes into a training and what comes out: a `Trial`, its `History`, and a `Trained` network.

Engines differ in how they do the arithmetic. What is measured when, which evaluation is the best, when training ends
and what is written down of it, they all have from here.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natal.errors import NatalError
from natal.lab.checkpoints import Checkpoint, Checkpoints
from natal.lab.state import State
from natal.lab.states import Kept
from natal.lab.tasks import Split, Task, spoilt
from natal.pruning.choose import problem_of
from natal.pruning.criteria import Problem
from natal.pruning.cuts import Cuts
from natal.pruning.doctor import is_constant
from natal.pruning.mask import Mask
from natal.store import Outcome
from natal.streams import stream
from natal.study import Maker, Training
from natal.study.clock import steps

SCORED_A_CLASS = 10
"""Training rows a class that a criterion sees where a study trains on small batches, if a batch is not larger."""

CHUNK = 1000
"""Rows of images or tokens that are measured at once; flat rows are measured all at once."""


@dataclass(frozen=True)
class Trial:
    """A network about to be trained: initial weights, mask, data, and how.

    ``network``: at birth, not yet masked; treat it as read-only. ``seed``: the run's, from which every stream is
    drawn. ``before``: prunable weights and all parameters of the network it stands for, where it is itself a smaller
    one (the control ``small-dense``). ``diagnosis``: what the mask doctor said, JSON-ready. ``start``: the state that
    training goes on from, at the clock ``start.step``, under ``mask``; None: from birth. ``keep``: clocks
    (``"500it"``, ``"end"`` for the last step taken) whose states are wanted. ``cuts``: those inside this training.
    ``order``: which order of the data, and which random changes of its rows; another number is another order.
    ``precise``: how cuts during training are scored, see `natal.pruning.criteria.Problem`. ``checkpoints``: where
    training leaves some if it is long. ``so_far``: the one that it goes on from, see `resumed`.
    """

    key: str
    task: Task
    split: Split
    network: nn.Module
    mask: Mask
    training: Training
    learning_rate: float
    seed: int = 0
    before: tuple[int, int] | None = None
    diagnosis: Mapping[str, Any] = field(default_factory=dict)
    start: State | None = None
    keep: frozenset[str] = frozenset()
    cuts: Cuts | None = None
    order: int = 0
    precise: bool = False
    checkpoints: Checkpoints | None = None
    so_far: Checkpoint | None = None

    def __post_init__(self) -> None:
        total = self.training.total_steps(self.rows_to_fit)
        if not self.first < total:
            raise NatalError(
                f"training.length = {self.training.length!r} ends at step {total}, and this stage starts at step "
                f"{self.first}: no step is left; lengthen it"
            )
        if self.cuts is not None and not 0 <= self.cuts.start < self.cuts.stop <= total:
            raise NatalError(
                f"at goes from step {self.cuts.start} to step {self.cuts.stop} here; they must come in this order, "
                f"within the {total} steps of training"
            )
        begun = 0 if self.so_far is not None else self.first
        for clock, step in self.clocks.items():
            if not begun <= step <= total:
                raise NatalError(
                    f"keep names {clock!r}, step {step} here, and this stage goes from step {self.first} to {total}"
                )

    def resumed(self, at: Checkpoint) -> Trial:
        """Return this trial as it goes on from a checkpoint that it has left."""
        kept, weights = at.now.state.mask, self.mask.weights
        biases = {name: part for name, part in kept.items() if name not in weights}
        under = replace(self.mask, weights={n: kept[n] for n in weights}, biases=biases, units=at.now.units)
        return replace(self, start=at.now.state, mask=under, so_far=at)

    def born(self) -> nn.Module:
        """Return a copy of the network as training begins: at birth, or as ``start`` has it, under the mask."""
        net = copy.deepcopy(self.network)
        if self.start is not None:
            net.load_state_dict(dict(self.start.tensors))
        self.mask.apply_(dict(net.named_parameters()))
        return net

    @property
    def first(self) -> int:
        """The steps taken when training begins, on its clock."""
        return 0 if self.start is None else self.start.step

    @property
    def taken(self) -> float:
        """The seconds that training has taken before the checkpoint that it goes on from."""
        return 0.0 if self.so_far is None else self.so_far.seconds

    @property
    def settled(self) -> int:
        """The step from which on the network has its last mask."""
        return 0 if self.cuts is None else self.cuts.stop

    @property
    def cut_after(self) -> frozenset[int]:
        """The steps after which this training cuts."""
        steps = () if self.cuts is None else self.cuts.steps
        return frozenset(step for step in steps if step > self.first)

    @property
    def clocks(self) -> dict[str, int]:
        """The numbers of steps after which states are kept, by clock; ``"end"`` may come earlier."""
        rows, training = self.rows_to_fit, self.training
        return {
            clock: steps(clock, training.steps_per_epoch(rows), training.total_steps(rows))
            for clock in self.keep
        }

    def begun_as_told(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are, bit for bit, the tensors that training begins with: the proof ``rewound``."""
        told = self.network.state_dict() if self.start is None else self.start.tensors
        masks = self.mask.items()

        def expected(name: str) -> Tensor:
            whole = told[name].to(tensors[name].dtype)
            return whole.masked_fill(~masks[name], 0) if name in masks else whole

        return told.keys() == tensors.keys() and all(
            torch.equal(value.cpu(), expected(name)) for name, value in tensors.items()
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision it is trained in."""
        return next(self.network.parameters()).dtype

    @property
    def rows_to_fit(self) -> int:
        """Number of rows trained on."""
        return len(self.split.fit)

    def rows(self, device: str | torch.device = "cpu") -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return (inputs, targets) of the rows trained on (``fit``), ``val``, ``train`` (both) and ``test``.

        In the network's precision, on a device. They belong to all trainings of the split; treat them as read-only.
        """
        return _rows(self.split, self.dtype, torch.device(device), self.layout(device))

    def layout(self, device: str | torch.device) -> torch.memory_format:
        """Return how images and kernels lie in memory: on a CPU convolutions like channels last."""
        convolves = any(p.ndim == 4 for p in self.network.parameters())
        last = convolves and torch.device(device).type == "cpu" and self.split.data.inputs.ndim == 4
        return torch.channels_last if last and not _too_narrow(self.network) else torch.contiguous_format

    def problem(self, net: nn.Module) -> Problem:
        """Return what a criterion sees of this trial's network as ``net`` has it now, on its device."""
        device = next(net.parameters()).device
        x, y = self.rows(device)["fit"]
        count = scored_rows(self.split, self.training)
        return problem_of(
            net,
            self.seed,
            whole=self.cuts is not None and self.cuts.recipe.granularity == "neuron",
            inputs=x[:count],
            targets=y[:count],
            loss=self.task.loss.value,
            precise=self.precise,
        )

    def stream(self, purpose: str) -> torch.Generator:
        """Return this run's generator for one purpose, ``order``, ``augment`` or ``dropout``, as training begins."""
        name = self.named(purpose)
        generator = stream(self.seed, name)
        if self.start is not None and name in self.start.streams:
            generator.set_state(self.start.streams[name])
        return generator

    def named(self, purpose: str) -> str:
        """Return the name of the stream for a purpose; another ``order`` has streams of its own."""
        return f"{purpose}/{self.order}" if self.order and purpose in ("order", "augment") else purpose

    def drawn(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, of the states of generators by purpose, those that are not the streams' first ones, by name."""
        return {
            self.named(purpose): state
            for purpose, state in states.items()
            if not torch.equal(state, stream(self.seed, self.named(purpose)).get_state())
        }

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what is minimised: the task's loss, with the study's label smoothing."""
        smoothing = self.training.label_smoothing
        return partial(F.cross_entropy, label_smoothing=smoothing) if smoothing else self.task.loss.value

    def batches(self, device: str | torch.device = "cpu") -> Iterator[Tensor | None]:
        """Yield the positions, among the rows to fit, of each step's batch; None: all of them, in their order.

        Every epoch draws a new order from the stream ``order`` and cuts it into batches; the last may be short. Those
        of the steps that ``start`` has behind it are passed over.
        """
        rows, size = self.rows_to_fit, self.training.batch
        if size is None or size >= rows:
            while True:
                yield None
        generator = self.stream("order")
        epochs, begun = divmod(self.first, self.training.steps_per_epoch(rows))
        for _ in range(epochs):
            torch.randperm(rows, generator=generator, device="cpu")
        while True:
            order = torch.randperm(rows, generator=generator, device="cpu")
            yield from islice(torch.split(order.to(device), size), begun, None)
            begun = 0


def _too_narrow(network: nn.Module) -> bool:
    """Whether oneDNN's AVX2 kernels would write past their memory, were the channels of this network last.

    They do, in the backward pass of a convolution of single pixels with a stride, of fewer inputs than a register
    holds (torch 2.13.0, oneDNN 3.12): the process dies then, or goes on with broken memory.
    """
    return any(
        isinstance(m, nn.Conv2d)
        and m.groups == 1
        and m.in_channels < 8
        and m.kernel_size == (1, 1)
        and max(m.stride) > 1
        for m in network.modules()
    )


def scored_rows(split: Split, training: Training, most: int | None = None) -> int | None:
    """Return how many rows to fit a criterion sees: all, or ``most``, or of small batches a few a class."""
    if training.batch is None:
        return most
    return min(most or len(split.fit), max(training.batch, SCORED_A_CLASS * split.data.outputs))


# data are cut up and placed once for all the trainings that follow each other on them
@functools.lru_cache(maxsize=4)
def _rows(
    split: Split, dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> Mapping[str, tuple[Tensor, Tensor]]:
    def placed(rows: Tensor, part: Tensor | None = None) -> Tensor:
        rows = rows.to(device, dtype if rows.is_floating_point() else None)
        if part is None:
            return rows
        rows = rows[part.to(device)]
        return rows.contiguous(memory_format=layout) if rows.ndim == 4 else rows

    x, y, data = split.data.inputs, split.data.targets, split.data
    return {
        "fit": (placed(x, split.fit), placed(y, split.fit)),
        "val": (placed(x, split.val), placed(y, split.val)),
        "train": (placed(x), placed(y)),
        "test": (placed(data.test_inputs), placed(data.test_targets)),
    }


class History:
    """A training as it unfolds: its curves, and which evaluation was the best so far.

    A strictly better one (`Training.decide`) is a new best. Training ends after ``patience`` evaluations without one,
    at ``target``, or when a loss, of training or validation, is no longer finite. ``since``: the step of the last cut;
    what is measured before is not the network that was asked for, so it is neither best nor a reason to stop.
    ``so_far``: the checkpoint that it goes on from.
    """

    def __init__(self, training: Training, since: int = 0, so_far: Checkpoint | None = None) -> None:
        self.training, self.since = training, since
        names = ["step", "train_loss", "val_loss", "val_metric", *["test_metric"] * training.test_curve]
        self.curves: dict[str, list[float]] = {name: [] for name in names}
        self.best = -math.inf
        self.best_step = 0
        self.diverged = False
        self._waited = 0
        if so_far is not None:
            self.curves = {name: list(so_far.curves[name]) for name in names}
            self.best, self.best_step, self._waited = so_far.seen["history"]

    @property
    def seen(self) -> Sequence[float]:
        """What it remembers beside its curves, for a checkpoint."""
        return self.best, self.best_step, self._waited

    def record(
        self, step: int, train_loss: float, val_loss: float, val_metric: float, test_metric: float = math.nan
    ) -> bool:
        """Add the evaluation after ``step`` steps; return whether it is a new best."""
        values = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "val_metric": val_metric}
        for name, curve in self.curves.items():
            curve.append(float(values.get(name, test_metric)))
        self.diverged = not (math.isfinite(train_loss) and math.isfinite(val_loss))
        value = {"val-metric": val_metric, "val-loss": -val_loss, "end": float(step)}[self.training.decide]
        better = value > self.best and not self.diverged and step >= self.since
        self._waited = 0 if better or step < self.since else self._waited + 1
        if better:
            self.best, self.best_step = value, step
        return better

    @property
    def over(self) -> bool:
        """Whether training ends before its length does."""
        training, metric = self.training, self.curves["val_metric"][-1]
        if self.curves["step"][-1] < self.since:
            return self.diverged
        return (
            self.diverged
            or (training.patience is not None and self._waited >= training.patience)
            or (training.target is not None and metric >= training.target)
        )


@dataclass(frozen=True)
class Trained:
    """A trained network: its outcome for the store and its state (best weights and buffers, by name).

    ``mask``: the one that training ended with. ``states``: those that the trial asked for, by clock; a clock that
    training ended before has none.
    """

    outcome: Outcome
    state: Mapping[str, Tensor]
    mask: Mask
    states: Mapping[str, State] = field(default_factory=dict)


@torch.no_grad()
def measure(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a network in evaluation mode."""
    if inputs.ndim == 2 or len(inputs) <= CHUNK:
        out: Tensor = net(inputs)
        return out
    return torch.cat([net(part) for part in torch.split(inputs, CHUNK)])


@dataclass(frozen=True)
class Finals:
    """The best weights of a training, measured: the metric of the parts of the data, the loss on all training rows, and
    whether all test rows get the same outputs. Nothing, of a training that diverged."""

    metric: Mapping[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(("train", "val", "test"))
    )
    loss: float | None = None
    constant: bool = False


def finals(trial: Trial, state: Mapping[str, Tensor]) -> Finals:
    """Measure the best weights of a training, in torch, on the device where they are."""
    device = next(iter(state.values())).device
    net = copy.deepcopy(trial.network).to(device).eval()
    net.load_state_dict(dict(state))
    rows = trial.rows(device)
    outputs = {part: measure(net, rows[part][0]) for part in ("train", "val", "test")}
    return Finals(
        {part: trial.task.metric.value(out, rows[part][1]) for part, out in outputs.items()},
        trial.task.loss.value(outputs["train"], rows["train"][1]).item(),
        is_constant(outputs["test"]),
    )


@dataclass
class Course:
    """What is seen of a training beside its curves: the ``mask`` it has now, the states that are kept, the proofs.

    ``held``: removed weights were exactly 0 whenever somebody looked. Of a trial that goes on from a checkpoint, the
    course goes on too.
    """

    trial: Trial
    mask: Mask
    held: bool = True
    rewound: bool = False
    restarted: dict[str, Any] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = time.monotonic()
        if (so_far := self.trial.so_far) is not None:
            self.held, self.rewound, self.restarted = so_far.seen["course"]
            self.states = dict(so_far.states)

    def begin(self, tensors: Mapping[str, Tensor], rate: float, fresh: bool, batch: Tensor | None) -> None:
        """Note what training really begins with: ``tensors`` before the first step, its learning rate and batch, and
        whether the optimiser remembers nothing."""
        if self.trial.so_far is not None:  # it began before
            return
        self.rewound = self.trial.begun_as_told(tensors)
        rows = "all" if batch is None else hashlib.sha256(batch.cpu().numpy().tobytes()).hexdigest()[:16]
        self.restarted = {
            "step": self.trial.first,
            "learning_rate": float(rate),
            "optimiser": "fresh" if fresh else "kept",
            "batch": rows,
        }

    def look(self, parameters: Mapping[str, Tensor]) -> None:
        """See whether what the mask removes is exactly 0."""
        gone = [
            parameters[name].detach()[~kept.to(parameters[name].device)].any()
            for name, kept in self.mask.items().items()
        ]
        self.held = self.held and not (gone and bool(torch.stack(gone).any()))

    def due(self, step: int) -> bool:
        """Whether it is time to leave a checkpoint after a step; what wrote into its data leaves none."""
        to, trial = self.trial.checkpoints, self.trial
        if to is None or time.monotonic() - self._left < to.every:
            return False
        return step < trial.training.total_steps(trial.rows_to_fit) and not spoilt(trial.split)

    def leave(self, history: History, now: State, best: Mapping[str, Tensor], seconds: float) -> None:
        """Leave a checkpoint after an evaluation with which training is not over.

        ``now``: the state after it; ``best``: the best parameters and buffers; ``seconds``: that training has taken.
        """
        to, self._left = self.trial.checkpoints, time.monotonic()
        assert to is not None
        seen = {"history": history.seen, "course": (self.held, self.rewound, self.restarted)}
        state = Kept(now, self.mask.units)
        to.leave(self.trial.key, Checkpoint(state, best, self.states, history.curves, seen, seconds))

    @torch.no_grad()
    def cut(self, step: int, net: nn.Module, gradient: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Cut a network as it is after ``step`` steps: what goes, and what comes back, becomes 0 in it.

        ``gradient``: the dense one of the step's batch, where the cuts ask for it. Returns which weights came back, by
        parameter name. A network that has overflowed is left alone: its next evaluation ends it.
        """
        cuts = self.trial.cuts
        assert cuts is not None
        if not all(bool(p.isfinite().all()) for p in [*net.parameters(), *(gradient or {}).values()]):
            return {}
        moved = cuts.at(step, self.trial.problem(net), self.mask, gradient)
        self.mask, parameters = moved.mask.to("cpu"), dict(net.named_parameters())
        for name, kept in moved.mask.items().items():
            parameters[name].masked_fill_(~kept, 0)
        for name, back in moved.regrown.items():
            parameters[name].masked_fill_(back, 0)
        return dict(moved.regrown)

    @property
    def proofs(self) -> dict[str, Any]:
        """What was proven, JSON-ready; see `natal.store.Outcome`."""
        return {
            "held": self.held,
            "rewound": self.rewound,
            "restarted": self.restarted,
            "sparsity": self.mask.sparsity,
        }


def conclude(
    trial: Trial,
    history: History,
    state: Mapping[str, Tensor],
    seconds: float,
    made_by: Maker,
    course: Course,
    measured: Finals | None = None,
) -> Trained:
    """Sum up a training, whose best weights are measured here unless the engine has ``measured`` them itself.

    Train metric and loss are over all training rows, validation rows included.
    """
    if measured is None:
        measured = Finals() if history.diverged else finals(trial, state)
    mask, fit = course.mask, trial.rows_to_fit
    removed = mask.total - mask.kept + sum(int((~kept).sum()) for kept in mask.biases.values())
    remaining = sum(p.numel() for p in trial.network.parameters()) - removed
    prunable, total = trial.before or (mask.total, remaining + removed)
    return Trained(
        Outcome(
            key=trial.key,
            status="diverged" if history.diverged else "finished",
            total_params=total,
            nonzero_params=remaining,
            prunable=prunable,
            kept=mask.kept,
            densities={name.removesuffix(".weight"): d for name, d in mask.densities().items()},
            steps_per_epoch=trial.training.steps_per_epoch(fit),
            steps_planned=trial.training.total_steps(fit),
            steps_trained=int(history.curves["step"][-1]),
            best_step=history.best_step,
            learning_rate=trial.learning_rate,
            train_metric=measured.metric["train"],
            val_metric=measured.metric["val"],
            test_metric=measured.metric["test"],
            final_loss=measured.loss,
            constant=measured.constant,
            seconds=seconds,
            made_by=made_by,
            diagnosis=dict(trial.diagnosis),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            curves={name: np.array(curve, dtype=np.float64) for name, curve in history.curves.items()},
            proofs=course.proofs,
        ),
        {name: value.cpu().contiguous() for name, value in state.items()},
        course.mask,
        course.states,
    )
