"""Many networks of one shape at once through ``torch.func``: for accelerators, where launches cost more than sums.

Networks become *lanes*: every tensor has the lane as its first axis, ``torch.func.vmap`` runs the one module over all
of them, and a step costs as many launches for a hundred networks as for one. Lanes never meet: one that diverges
leaves the others alone, and one that is over leaves the stack at an evaluation. Batches, masks, learning rates,
clipping, stopping and the best weights are each lane's own.

Products of many matrices sum in another order than products of one, so results agree with those of `torch` in float64
but are not equal bit for bit, nor the same in any company.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from natal.determinism import deterministic, single_threaded
from natal.errors import NatalError
from natal.lab.engines.engine import Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.state import State
from natal.lab.trial import Course, History, Trained, Trial, conclude
from natal.pruning.mask import Mask
from natal.study import Maker, Optimiser

LANES_ON_CPU = 8
"""Networks a job on a CPU, where a stack saves nothing and every worker wants one."""

ROOM_ON_CPU = 2**31
"""Bytes that a stack may take on a CPU."""

SHARE = 0.8
"""Share of an accelerator's free memory that a stack is planned for."""

MEASURED = 4
"""Rows measured at once, in rows of a step: without gradients they take no more memory than a step does."""

EPS = 1e-8
"""``torch.optim.Adam``'s."""


class Stacked:
    """The engine ``stacked``; see the module."""

    name = "stacked"
    revision = 1
    portable = False
    devices = ("cpu", "cuda")

    def refuses(self, setting: Setting) -> str:
        """Return why a network does not go through ``vmap``, found by trying two lanes on two rows."""
        if "cuts" in setting.stages:
            return "it does not cut networks while they train"
        rows = setting.split.fit[:2]
        inputs, targets = setting.split.data.inputs[rows], setting.split.data.targets[rows]
        try:
            with _settings("cpu"), warnings.catch_warnings():
                # an operation without a batching rule is only warned of, and would run lane by lane
                warnings.simplefilter("error")
                return _differs(setting.network, inputs, targets, setting.task.loss.value)
        except Exception as error:
            said = " ".join(str(error).split()).split(". ")[0]
            return f"torch.func.vmap does not take the network: {said}"

    def cost(self, pending: Pending, setting: Setting) -> float:
        """Return about how many operations a training takes; a mask saves none."""
        return setting.flops()

    def jobs(self, pending: Sequence[Pending], setting: Setting, device: str) -> list[list[Pending]]:
        """Return all trainings as one job; memory is looked at when it is there. On a CPU, a few a job."""
        size = LANES_ON_CPU if device == "cpu" else len(pending)
        return [list(pending[i : i + size]) for i in range(0, len(pending), size)]

    def prepare(self, device: str) -> None:
        """Do nothing: torch is loaded."""

    def train(self, trials: Sequence[Trial], device: str) -> Iterator[Trained]:
        """Train the trials that are alike together, as many as there is memory for; yield each as it ends."""
        groups: dict[Any, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(_likeness(trial), []).append(trial)
        for group in groups.values():
            training = _as_memory_allows(group, torch.device(device), made_by(self, device))
            while True:
                # while the caller has a network in hand, torch's settings are the caller's
                with _settings(device):
                    trained = next(training, None)
                if trained is None:
                    break
                yield trained


@contextmanager
def _settings(device: str) -> Iterator[None]:
    """Set torch for a stack: ``vmap`` knows attention by its formula, not the fused kernels."""
    with deterministic(device), single_threaded(), sdpa_kernel(SDPBackend.MATH):
        yield


def _likeness(trial: Trial) -> Any:
    """Return what lanes of one stack have in common."""
    modules = [
        (
            name,
            type(module),
            sorted((key, value) for key, value in vars(module).items() if _plain(key, value)),
        )
        for name, module in trial.network.named_modules()
    ]
    tensors = [(name, value.shape, value.dtype) for name, value in trial.network.state_dict().items()]
    split = trial.split
    rows = len(split.fit), len(split.val), len(split.data.test_inputs), split.data.inputs.shape[1:]
    return repr((modules, tensors, trial.training, trial.task.name, rows, trial.first, _taken(trial)))


def _taken(trial: Trial) -> int:
    """Return how many steps the optimiser counts when training begins."""
    remembered = {} if trial.start is None else trial.start.optimiser
    return max((int(t) for name, t in remembered.items() if name.endswith("/step")), default=0)


def _plain(key: str, value: object) -> bool:
    """Whether an attribute of a module is one of its settings."""
    return key[0] != "_" and isinstance(value, bool | int | float | str | tuple | list | None)


# -- memory ----------------------------------------------------------------------------------------------------


def _as_memory_allows(trials: Sequence[Trial], device: torch.device, maker: Maker) -> Iterator[Trained]:
    """Train trials that are alike, a stack after the other; one that memory does not hold is halved."""
    waiting = list(trials)
    size = max(1, _room(device) // _bytes_a_lane(waiting[0]))
    while waiting:
        stack, short = waiting[:size], False
        over: set[str] = set()
        try:
            for trained in _train(stack, device, maker):
                over.add(trained.outcome.key)
                yield trained
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            short = True
        # not in the handler, whose traceback holds the tensors of the stack
        if short:
            if len(stack) == 1:
                raise NatalError(
                    f"one network does not fit in the memory of {device}; choose a smaller training.batch or network"
                )
            size = len(stack) // 2
            if device.type == "cuda":
                torch.cuda.empty_cache()
        waiting = [trial for trial in stack if trial.key not in over] * short + waiting[len(stack) :]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _room(device: torch.device) -> int:
    """Return the bytes a stack may take."""
    if device.type != "cuda":
        return ROOM_ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return int(SHARE * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))


def _bytes_a_lane(trial: Trial) -> int:
    """Return about how much memory a lane takes.

    Eight times its weights: themselves, the best, mask, gradients in parts and together, two moments and what an update
    passes through. Three times what the backward pass keeps of a step's rows: that, its gradients, and scratch.
    """
    x = trial.split.data.inputs
    rows = trial.rows_to_fit if trial.training.batch is None else min(trial.training.batch, trial.rows_to_fit)
    item = trial.dtype.itemsize
    weights = item * sum(p.numel() for p in trial.network.parameters())
    a_row = x[0].numel() * (item if x.is_floating_point() else x.itemsize)
    return 8 * weights + rows * (2 * a_row + 3 * _kept_of_a_row(trial))


def _kept_of_a_row(trial: Trial) -> int:
    """Return the bytes that autograd keeps of one row for the backward pass, beside weights."""
    net = copy.deepcopy(trial.network).train()
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    (x, _), rows = trial.rows()["fit"], min(2, trial.rows_to_fit)
    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(x[:rows].clone())
    bytes_kept = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    return int(bytes_kept + outputs.nbytes) // rows


# -- one stack -------------------------------------------------------------------------------------------------


def _train(trials: Sequence[Trial], device: torch.device, maker: Maker) -> Iterator[Trained]:
    """Train lanes from birth, each until it is over."""
    training, rows = trials[0].training, trials[0].rows_to_fit
    began = time.perf_counter()
    lanes, courses = _Lanes(trials, device), _Courses(trials, device)
    histories = [History(training, so_far=trial.so_far) for trial in trials]
    seen = [Course(trial, trial.mask) for trial in trials]
    best = {name: value.clone() for name, value in lanes.nets.state().items()}
    for i, trial in enumerate(trials):
        for name, value in ({} if trial.so_far is None else trial.so_far.best).items():
            best[name][i] = value
    seconds = [trial.taken for trial in trials]
    alive = list(range(len(trials)))  # the trial of each lane
    first, evaluations, last = trials[0].first, set(training.evaluations(rows)), training.total_steps(rows)
    losses: list[Tensor] = []

    def state_of(lane: int, step: int) -> State:
        i = alive[lane]
        return lanes.state(lane, step, trials[i].mask, trials[i].drawn(courses.streams(lane)))

    def keep(step: int, over: Sequence[int] | None = None) -> None:
        """Keep the states that are wanted after a step; ``over``: only those of the lanes that it was the last of."""
        for lane, i in enumerate(alive):
            clocks = trials[i].clocks.items()
            now = [
                c
                for c, at in clocks
                if (c != "end" and at == step if over is None else c == "end" and i in over)
            ]
            if now:
                seen[i].states |= dict.fromkeys(now, state_of(lane, step))

    keep(first)
    for step, factor in enumerate(training.factors(rows)[first:], start=first + 1):
        inputs, targets = courses.batch()
        if step == first + 1:
            for lane, course in enumerate(seen):
                state = {name: value[lane] for name, value in lanes.nets.state().items()}
                fresh = not any(moment[lane].any() for moment in lanes.moments)
                course.begin(state, course.trial.learning_rate * factor, fresh, courses.drawn(lane))
        losses.append(lanes.step(inputs, targets, factor))
        keep(step)
        if step not in evaluations:
            continue
        mean = torch.stack(losses).mean(0)
        losses.clear()
        values = [
            *lanes.measure(courses, "val"),
            *(lanes.measure(courses, "test")[1:] if training.test_curve else ()),
        ]
        values = [mean, *(value.where(mean.isfinite(), math.nan) for value in values), lanes.strayed()]
        # here alone does the host wait for the device
        *measured, strayed = torch.stack([value.double() for value in values]).tolist()
        better = [
            histories[i].record(step, *of_lane)
            for i, of_lane in zip(alive, zip(*measured, strict=True), strict=True)
        ]
        for i, astray in zip(alive, strayed, strict=True):
            seen[i].held = seen[i].held and not astray
        if any(better):
            improved = torch.tensor(better, device=device)
            for name, value in lanes.nets.state().items():
                best[name][torch.tensor(alive, device=device)[improved]] = value[improved]
        now = time.perf_counter()
        for i in alive:
            seconds[i] += (now - began) / len(alive)
        going = [lane for lane, i in enumerate(alive) if step < last and not histories[i].over]
        left = [i for lane, i in enumerate(alive) if lane not in going]
        keep(step, over=left)
        alive = [alive[lane] for lane in going]
        if left and alive:
            lanes.only(going)
            courses.only(going)
        for lane, i in enumerate(alive):
            if seen[i].due(step):
                own = {name: value[i] for name, value in best.items()}
                seen[i].leave(histories[i], state_of(lane, step), own, seconds[i])
        for i in left:
            own = {name: value[i].clone() for name, value in best.items()}
            yield conclude(trials[i], histories[i], own, seconds[i], maker, seen[i])
        if not alive:
            return
        began = time.perf_counter() if left else now


def _course(trial: Trial) -> tuple[object, ...]:
    """Return what decides a trial's batches: equal ones see the same rows, changed in the same way."""
    return trial.seed, trial.order, id(trial.split), trial.stream("augment").get_state().numpy().tobytes()


class _Courses:
    """What lanes are trained on: a *course* for each seed's rows in an order, and which course each lane follows.

    ``inputs``, ``targets``: all rows of all data sets, each once. ``places``: by part, (course, row) positions in them.
    ``which``: (lane,) courses.
    """

    def __init__(self, trials: Sequence[Trial], device: torch.device) -> None:
        followed = [_course(trial) for trial in trials]
        courses = list(dict(zip(followed, trials, strict=True)).values())
        numbers = {course: number for number, course in enumerate(dict.fromkeys(followed))}
        self.which = torch.tensor([numbers[course] for course in followed], device=device)
        self._batches = [course.batches(device) for course in courses]
        self._changes = [(course.split.augment, course.stream("augment")) for course in courses]
        starts: dict[int, int] = {}
        parts: list[tuple[Tensor, Tensor]] = []
        places: dict[str, list[Tensor]] = {"fit": [], "val": [], "test": []}
        for course in courses:
            split, rows = course.split, course.rows()
            trained, tested = len(split.data.inputs), len(split.data.test_inputs)
            if id(split.data) not in starts:
                starts[id(split.data)] = sum(len(inputs) for inputs, _ in parts)
                parts += [rows["train"], rows["test"]]
            start = starts[id(split.data)]
            places["fit"].append(split.fit + start)
            places["val"].append(split.val + start)
            places["test"].append(torch.arange(tested, device="cpu") + start + trained)
        self.inputs, self.targets = (torch.cat(rows).to(device) for rows in zip(*parts, strict=True))
        self.places = {name: torch.stack(of_courses).to(device) for name, of_courses in places.items()}
        self._whole: tuple[Tensor, Tensor] | None = None
        self._drawn: list[Tensor | None] = []

    def drawn(self, lane: int) -> Tensor | None:
        """Return the positions, among a lane's rows to fit, of the batch that came last; None: all of them."""
        return self._drawn[int(self.which[lane])]

    def streams(self, lane: int) -> dict[str, Tensor]:
        """Return the states of the generators that a lane's course draws from, by purpose."""
        return {"augment": self._changes[int(self.which[lane])][1].get_state()}

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next step's inputs and targets, (lane, row, ...)."""
        if self._whole is not None:
            return self._whole
        places = self.places["fit"]
        self._drawn = [next(batches) for batches in self._batches]
        drawn = [batch for batch in self._drawn if batch is not None]
        if drawn:
            places = places.gather(1, torch.stack(drawn))
        inputs, targets = self.inputs[places], self.targets[places]
        inputs = torch.stack(
            [
                rows if augment is None else augment(rows, generator)
                for rows, (augment, generator) in zip(inputs, self._changes, strict=True)
            ]
        )
        batch = inputs[self.which], targets[self.which]
        if not drawn and all(augment is None for augment, _ in self._changes):
            self._whole = batch
        return batch

    def part(self, name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a part's inputs and targets, ``size`` rows of every lane at a time."""
        for places in self.places[name][self.which].split(size, 1):  # type: ignore[no-untyped-call]
            yield self.inputs[places], self.targets[places]

    def only(self, going: Sequence[int]) -> None:
        """Leave all lanes but some."""
        self.which = self.which[going]
        if self._whole is not None:
            inputs, targets = self._whole
            self._whole = inputs[going], targets[going]


class _Nets:
    """Modules of one architecture as one: every tensor has the lane as its first axis.

    ``theta``: (lane, P), a lane's P trained parameters in a row. ``buffers``: whatever else the modules hold, by name.
    """

    def __init__(self, nets: Sequence[nn.Module], device: torch.device) -> None:
        self.net = copy.deepcopy(nets[0]).to(device)
        own = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in nets]
        self.shapes = {name: p.shape for name, p in nets[0].named_parameters() if p.requires_grad}
        self.theta = torch.stack([self.row(tensors) for tensors in own]).to(device)
        self.buffers = {
            name: torch.stack([tensors[name].detach() for tensors in own]).to(device)
            for name in own[0]
            if name not in self.shapes
        }
        # a tensor that goes by several names is here under the first
        first = {id(tensor): name for name, tensor in reversed(own[0].items())}
        self._names = {name: first[id(t)] for name, t in nets[0].state_dict(keep_vars=True).items()}

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return tensors shaped like the trained parameters as one row, (P,)."""
        return torch.cat([tensors[name].detach().flatten() for name in self.shapes])

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the trained parameters in ``theta``, (lane, ...) each."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()], 1)  # type: ignore[no-untyped-call]
        return {
            name: part.reshape(len(theta), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs, (lane, row, output); running means in the buffers are brought up to date in place."""

        def of_lane(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            out: Tensor = functional_call(self.net, {**parameters, **buffers}, (x,))
            return out

        outputs: Tensor = vmap(of_lane)(self.parameters(theta), self.buffers, inputs)
        return outputs

    def state(self) -> dict[str, Tensor]:
        """Return what the modules' ``state_dict`` hold, (lane, ...) each."""
        tensors = {**self.parameters(self.theta), **self.buffers}
        return {name: tensors[first] for name, first in self._names.items()}

    def only(self, going: Sequence[int]) -> None:
        """Leave all lanes but some."""
        self.theta = self.theta[going]
        self.buffers = {name: value[going] for name, value in self.buffers.items()}


class _Lanes:
    """Networks in training. ``gone``: (lane, P), what is removed; ``rate``: (lane, 1); ``moments``: (lane, P) each;
    ``taken``: the steps that the optimiser counts."""

    def __init__(self, trials: Sequence[Trial], device: torch.device) -> None:
        first = trials[0]
        self.training, self.task, self.loss = first.training, first.task, first.loss()
        self.nets = _Nets([trial.born() for trial in trials], device)
        self.nets.net.train()
        theta = self.nets.theta
        shapes = self.nets.shapes.items()
        whole = {name: torch.ones(shape, dtype=torch.bool, device="cpu") for name, shape in shapes}
        kept = [self.nets.row({**whole, **trial.mask.items()}) for trial in trials]
        self.gone = ~torch.stack(kept).to(theta.device)
        self.rate = theta.new_tensor([[trial.learning_rate] for trial in trials])
        self._names = _moments(self.training.optimiser)
        none = {name: torch.zeros(shape, device="cpu") for name, shape in shapes}
        self.moments = []
        for key in self._names:
            told = [{} if trial.start is None else trial.start.optimiser for trial in trials]
            rows = [{name: of.get(f"{name}/{key}", zeros) for name, zeros in none.items()} for of in told]
            self.moments.append(torch.stack([self.nets.row(row) for row in rows]).to(theta))
        self.taken = _taken(first)
        self.rows_measured = MEASURED * min(first.training.batch or first.rows_to_fit, first.rows_to_fit)

    def state(self, lane: int, step: int, mask: Mask, streams: Mapping[str, Tensor]) -> State:
        """Return one lane's state after ``step`` steps."""

        def own(of_lanes: Tensor) -> Tensor:
            return of_lanes[lane].detach().cpu().clone(memory_format=torch.contiguous_format)

        remembered = {}
        for key, moment in zip(self._names, self.moments, strict=True):
            for name, value in self.nets.parameters(moment.masked_fill(self.gone, 0)).items():
                if self.taken or moment[lane].any():
                    remembered[f"{name}/{key}"] = own(value)
                    if key == "exp_avg":
                        count = torch.tensor(float(self.taken), dtype=torch.float32, device="cpu")
                        remembered[f"{name}/step"] = count
        tensors = {name: own(value) for name, value in self.nets.state().items()}
        return State(step, tensors, remembered, {n: m.clone() for n, m in mask.items().items()}, streams)

    def strayed(self) -> Tensor:
        """Return which lanes hold a removed weight that is not 0, (lane,)."""
        return ((self.nets.theta != 0) & self.gone).any(1)

    def step(self, inputs: Tensor, targets: Tensor, factor: float) -> Tensor:
        """Take a step and return the losses before it, (lane,)."""
        self.taken += 1
        theta = self.nets.theta.detach().requires_grad_()
        with torch.enable_grad():
            losses = vmap(self.loss)(self.nets.outputs(theta, inputs), targets)
            # lanes share nothing, so the gradient of the sum is each one's own
            (gradient,) = torch.autograd.grad(losses.sum(), theta)
        if self.training.clip is not None:
            gradient.masked_fill_(self.gone, 0)
            norm = gradient.norm(dim=1, keepdim=True)
            gradient *= (self.training.clip / (norm + 1e-6)).clamp(max=1)
        _move(
            self.nets.theta, gradient, self.rate * factor, self.moments, self.taken, self.training.optimiser
        )
        self.nets.theta.masked_fill_(self.gone, 0)
        return losses.detach()

    @torch.no_grad()
    def measure(self, courses: _Courses, part: str) -> tuple[Tensor, Tensor]:
        """Return loss and metric on a part of the rows, (lane,) each."""
        self.nets.net.eval()
        pairs = [
            (self.nets.outputs(self.nets.theta, x), y) for x, y in courses.part(part, self.rows_measured)
        ]
        self.nets.net.train()
        outputs, targets = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
        return vmap(self.task.loss.value)(outputs, targets), vmap(self.task.metric.of)(outputs, targets)

    def only(self, going: Sequence[int]) -> None:
        """Leave all lanes but some."""
        self.nets.only(going)
        self.gone, self.rate = self.gone[going], self.rate[going]
        self.moments = [moment[going] for moment in self.moments]


def _moments(rule: Optimiser) -> tuple[str, ...]:
    """Return what an optimiser remembers of each number, as ``torch.optim`` calls it."""
    if rule.name == "sgd":
        return ("momentum_buffer",) if rule.momentum else ()
    return "exp_avg", "exp_avg_sq"


def _move(
    theta: Tensor, gradient: Tensor, rate: Tensor, moments: Sequence[Tensor], step: int, rule: Optimiser
) -> None:
    """Take a step of ``torch.optim``'s SGD, Adam or AdamW in every lane, in place.

    With gradient g, learning rate η, decay λ, at step t = 1, 2, ...; all but AdamW begin with g ← g + λθ::

        SGD    b ← μb + g;  θ ← θ - ηb, Nesterov θ ← θ - η(g + μb)
        Adam   m ← β₁m + (1 - β₁)g;  v ← β₂v + (1 - β₂)g²
               θ ← θ - η m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)
        AdamW  as Adam, from θ ← θ - ηλθ

    (Sutskever et al. 2013; Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2.) ``theta``,
    ``gradient`` and ``moments``: (lane, P); ``rate``: (lane, 1).
    """
    if rule.name == "adamw":
        theta -= rate * rule.weight_decay * theta
    elif rule.weight_decay:
        gradient = gradient + rule.weight_decay * theta
    if rule.name == "sgd":
        for velocity in moments:
            velocity.mul_(rule.momentum).add_(gradient)
            gradient = gradient + rule.momentum * velocity if rule.nesterov else velocity
        theta -= rate * gradient
        return
    beta1, beta2 = rule.betas
    mean, square = moments
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(EPS)
    theta -= rate / (1 - beta1**step) * mean / root


# -- what vmap takes -------------------------------------------------------------------------------------------


def _differs(
    network: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> str:
    """Return how two networks side by side differ from the same two alone, in training and afterwards, or ``""``."""

    def cast(rows: Tensor) -> Tensor:
        return rows.double() if rows.is_floating_point() else rows

    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                path = ".".join(filter(None, (name, key)))
                return f"its {path!r} is a tensor, but neither parameter nor buffer"
    x, y = cast(inputs), cast(targets)
    alone = [copy.deepcopy(network).double().train() for _ in range(2)]
    with torch.no_grad():
        for parameter in alone[1].parameters():
            parameter.mul_(0.5)
    both = _Nets(alone, x.device)
    theta = both.theta.requires_grad_()
    with torch.enable_grad():
        outputs = both.outputs(theta, torch.stack([x, x]))
        (gradient,) = torch.autograd.grad(vmap(loss)(outputs, torch.stack([y, y])).sum(), theta)
        for net in alone:
            loss(net(x), y).backward()  # type: ignore[no-untyped-call]
    for name, parameter in alone[0].named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            return f"its parameter {name!r} takes no part in its outputs"
    gradients = [
        both.row({n: p.grad for n, p in net.named_parameters() if p.grad is not None}) for net in alone
    ]
    pairs = [(gradient, torch.stack(gradients))]
    pairs += [
        (both.buffers[name], torch.stack([net.get_buffer(name) for net in alone]))
        for name, _ in alone[0].named_buffers()
    ]
    both.net.eval()
    with torch.no_grad():
        pairs.append(
            (both.outputs(both.theta, torch.stack([x, x])), torch.stack([net.eval()(x) for net in alone]))
        )
    same = all(torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-9) for a, b in pairs)
    return "" if same else "its results under torch.func.vmap are not its own"
