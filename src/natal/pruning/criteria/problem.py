"""What a criterion sees and what it answers: `Problem`, `Scores`, the registry, and the two gradients all of
them use.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from natal.determinism import defaults_given_back
from natal.errors import NatalError, first_line
from natal.pruning.mask import dense, first_layer, first_width
from natal.pruning.masked import duplicate, recomputed
from natal.registry import Registry
from natal.streams import stream

Scores = Mapping[str, Tensor]
"""One score per prunable weight, by parameter name, in the weight's shape; higher = keep."""


@dataclass(frozen=True)
class Problem:
    """What a criterion may look at: a network at initialisation and the data it will be trained on.

    ``model``: a private copy when a criterion is called. ``weights``: its prunable weights by parameter name.
    ``inputs``, ``targets``, ``loss``: the training rows and the loss, absent for a data-free use. ``seed``:
    the run's; draw from ``problem.stream("mask")``, never from the global generator.

    ``whole``: the weights are also those of layers that only lose whole units. ``attention``: whether it loses
    whole ``heads`` then, or ``width``, a place in all of its heads. ``precise``: score in float64 and round to the
    24 binary digits of float32, so that masks hardly depend on the order in which a processor adds.

    The rest matters to iterative criteria only. ``weights`` are those of this round, zero where removed;
    ``initial`` are those before the first; ``kept``: the mask so far; ``round``: 1 in the first;
    ``sparsity``: the final one.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    seed: int
    inputs: Tensor | None = None
    targets: Tensor | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 1
    sparsity: float = 0.0
    whole: bool = False
    attention: str = "heads"
    precise: bool = False

    def __post_init__(self) -> None:
        if not self.initial:
            object.__setattr__(self, "initial", self.weights)
        if not self.kept:
            object.__setattr__(self, "kept", dense(self.weights).weights)

    def stream(self, purpose: str) -> torch.Generator:
        """Return this run's generator for one purpose; see `natal.streams.stream`."""
        return stream(self.seed, purpose)

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any = None) -> Any:
        """Return f(inputs; parameters), by default on the batch; unnamed parameters are the model's own.

        Raises NatalError naming the layer that the batch does not fit.
        """
        batch = self.inputs if inputs is None else inputs
        try:
            with warnings.catch_warnings():
                # torch's older kind of checkpoint warns, and then gives no derivatives
                warnings.filterwarnings("error", _NO_DERIVATIVES)
                return _with(self.model, parameters)(batch)
        except Exception as error:  # whatever a user's forward raises
            if _NO_DERIVATIVES in str(error):
                raise NatalError(
                    f"{type(self.model).__name__} checkpoints a layer in the older way, which hides its weights "
                    f"from scoring; {_NEWER}"
                ) from error
            kind = (
                f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"type {type(batch).__name__}"
            )
            raise NatalError(
                f"a batch of {kind} does not fit {self._stuck_at(batch)}: {first_line(error)}"
            ) from error

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name: the weights of this round, and the model's own that are not prunable."""
        others = {
            aliases[0]: parameter
            for aliases, parameter in _aliases(self.model)
            if not any(name in self.weights for name in aliases)
        }
        return {**self.weights, **others}

    def logits(self, parameters: Mapping[str, Tensor], inputs: Tensor | None = None) -> Tensor:
        """Return the outputs, checked to be one tensor."""
        outputs = self.outputs(parameters, inputs)
        if not isinstance(outputs, Tensor):
            raise NatalError(
                f"{type(self.model).__name__} must return one tensor, got {type(outputs).__name__}; "
                "wrap it to return its logits"
            )
        return outputs

    def example(self, rows: int = 1) -> Tensor:
        """Return the batch's first rows, or without a batch one of ones, as wide as the first linear layer."""
        if self.inputs is None:
            _, first = first_layer(self.model)
            return torch.ones(1, first_width(self.model), dtype=first.dtype, device=first.device)
        if not isinstance(self.inputs, Tensor):
            raise NatalError(
                f"inputs must be one tensor for a criterion that makes its own, got "
                f"{type(self.inputs).__name__}; wrap {type(self.model).__name__} to take one"
            )
        return self.inputs[:rows]

    def loss_of(self, outputs: Any) -> Tensor:
        """Return the loss of these outputs on the batch's targets, checked to be one finite number."""
        if self.loss is None:
            raise NatalError("no loss was given; register a criterion that asks for it with needs='data'")
        try:
            value = self.loss(outputs, self.targets)
        except Exception as error:  # whatever a user's loss raises
            raise NatalError(
                f"the loss does not fit the model's outputs and the batch's targets: {first_line(error)}"
            ) from error
        if not isinstance(value, Tensor):
            raise NatalError(f"the loss must be a tensor of one number, got {type(value).__name__}")
        if value.numel() != 1:
            raise NatalError(
                f"the loss must be one number, got shape {tuple(value.shape)}; average over the rows"
            )
        if value.is_complex() or not value.isfinite():
            raise NatalError(
                f"the loss must be finite and real, got {value.item()}; "
                "look for NaN or huge numbers in the batch and the weights"
            )
        return value.squeeze()

    def loss_at(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return L(parameters), the loss on the batch."""
        return self.loss_of(self.outputs(parameters))

    def _stuck_at(self, batch: Any) -> str:
        """Return the layer that the model entered last before it raised."""
        entered = [""]
        hooks = [
            module.register_forward_pre_hook(lambda _m, _i, name=name: entered.append(name))
            for name, module in self.model.named_modules()
        ]
        model = type(self.model).__name__
        try:
            self.model(batch)
        except Exception:
            return f"layer {entered[-1]!r} of {model}" if entered[-1] else model
        finally:
            for hook in hooks:
                hook.remove()
        return model


_NO_DERIVATIVES = "None of the inputs have requires_grad=True"
_NEWER = "checkpoint with use_reentrant=False"


def _with(model: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return the model with some of its parameters, or buffers, replaced; everything else is shared.

    Not ``functional_call``, which gives the parameters back after the pass: checkpointed layers look at them again
    while derivatives are taken, each pass at its own.
    """
    owned = [*model.parameters(), *model.buffers()]
    twin = deepcopy(model, {id(tensor): tensor for tensor in owned} | recomputed(model))
    aliases = {name: names for names, _ in _aliases(model) for name in names}
    for given, tensor in parameters.items():
        for name in aliases.get(given, [given]):
            path, _, leaf = name.rpartition(".")
            module = twin.get_submodule(path)
            kind: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            if leaf not in kind:
                raise NatalError(f"{type(model).__name__} has no parameter {given!r}")
            kind[leaf] = tensor
    for module in twin.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # recurrent layers read their parameters from a list of their own
    return twin


def _aliases(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Return a model's parameters, each with all the names it goes by."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


Criterion = Callable[[Problem], Scores]
criteria: Registry[Criterion] = Registry("criterion")

Needs = Literal["nothing", "shape", "data"]


@dataclass(frozen=True)
class Traits:
    """What a criterion asks for, beside its formula.

    ``needs``: ``data`` for a batch and a loss, ``shape`` for the shape of an input, whose values are not
    used, ``nothing``. ``rounds``: how often scores are computed, the density after round t being d^(t /
    rounds). ``returns``: whether a weight removed in an earlier round may come back.
    """

    needs: Needs = "nothing"
    rounds: int = 1
    returns: bool = False

    def __str__(self) -> str:
        needs = {"nothing": "nothing", "shape": "an input's shape", "data": "data and labels"}[self.needs]
        return f"needs {needs}" + (f", {self.rounds} rounds" if self.rounds > 1 else "")


traits: dict[str, Traits] = {}


def criterion(
    name: str, *, needs: Needs = "nothing", rounds: int = 1, returns: bool = False
) -> Callable[[Criterion], Criterion]:
    """Register the decorated function as the criterion ``name``; see `Traits` for the options.

    With ``rounds`` above 1 it is called again after each cut, with the weights that are left.
    """

    def file(function: Criterion) -> Criterion:
        criteria.register(name)(function)
        traits[name] = Traits(needs, rounds, returns)
        return function

    return file


def leaves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as tensors that a gradient can be taken in; they share the numbers."""
    return {name: w.detach().requires_grad_() for name, w in weights.items()}


def gradient(value: Tensor, at: Mapping[str, Tensor], create_graph: bool = False) -> dict[str, Tensor]:
    """Return ∂value/∂at by name; zero for a weight that ``value`` does not depend on.

    Raises NatalError if it depends on none of them, or if something in it cannot be differentiated (twice).
    """
    try:
        found = (
            torch.autograd.grad(value, list(at.values()), create_graph=create_graph, allow_unused=True)
            if value.requires_grad
            else [None]
        )
    except RuntimeError as error:  # an operation without a derivative of this order
        said = first_line(error)
        cure = (
            _NEWER
            if "Checkpointing is not compatible" in said
            else "choose a criterion that needs no such derivative, or another loss"
        )
        raise NatalError(f"the loss has no derivative that the criterion needs: {said}; {cure}") from error
    if all(g is None for g in found):
        raise NatalError(f"the loss does not depend on the model's weights, not even on {next(iter(at))!r}")
    pairs = zip(at.items(), found, strict=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in pairs}


@contextmanager
def private(problem: Problem) -> Iterator[Problem]:
    """Yield the problem with a model of its own, so that scoring leaves no trace on the caller.

    The copy is in evaluation mode (no dropout), except that batch norms use the batch's own statistics: at
    initialisation the running ones are placeholders. A network in half precision is scored in float32, where
    products of small numbers do not vanish; a ``precise`` problem in float64. Attention uses the kernel that can be
    differentiated twice.
    """
    if torch.is_inference_mode_enabled():
        raise NatalError("scores need derivatives: leave torch.inference_mode() (torch.no_grad() is fine)")
    model = duplicate(problem.model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    wide = torch.float64 if problem.precise else torch.float32
    widened = problem.precise or any(w.dtype in _HALF for w in problem.weights.values())
    if widened:
        model.to(wide)
    theirs, ours = (dict(m.named_parameters(remove_duplicate=False)) for m in (problem.model, model))

    def owned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # the copy's own numbers where they are the model's, so that a large network is copied once
        return {
            name: ours[name].detach()
            if name in theirs and _same_memory(w, theirs[name])
            else (w.to(wide) if widened and w.dtype != wide else w.detach().clone())
            for name, w in weights.items()
        }

    inputs, targets = (_widened(t, wide) if widened else t for t in (problem.inputs, problem.targets))
    initial = owned(problem.initial)
    own = replace(
        problem,
        model=model,
        weights=initial if problem.weights is problem.initial else owned(problem.weights),
        initial=initial,
        inputs=inputs,
        targets=targets,
    )
    with _own_randomness(own), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield own


_HALF = (torch.float16, torch.bfloat16)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _widened(tensor: Any, wide: torch.dtype) -> Any:
    narrower = (*_HALF, torch.float32) if wide == torch.float64 else _HALF
    return tensor.to(wide) if isinstance(tensor, Tensor) and tensor.dtype in narrower else tensor


def rounded(scores: Tensor) -> Tensor:
    """Return float64 scores at the 24 binary digits that float32 has, but in float64's range; halves go to even.

    The other 29 of a number's 53 are its last, so that a carry runs on into its exponent.
    """
    bits = scores.contiguous().view(torch.int64)
    halves = (bits >> 29 & 1) + (2**28 - 1)
    return (bits + halves & -(2**29)).view(torch.float64)


@contextmanager
def _own_randomness(problem: Problem) -> Iterator[None]:
    """Seed the global generators, which a model may draw from, and give them back as they were."""
    seed = problem.stream("forward").initial_seed()
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in problem.model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), defaults_given_back():
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
