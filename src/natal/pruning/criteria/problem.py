"""What a criterion sees and what it answers: `Problem`, `Scores`, the registry, and the two gradients all of
them use.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from natal.errors import NatalError
from natal.pruning.mask import dense, first_layer
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

    The rest matters to iterative criteria only. ``weights`` are those of this round, zero where removed;
    ``initial`` are those before the first; ``kept``: the mask so far; ``round``: 1 in the first;
    ``sparsity``: the final one. ``places``: where the private copy's parameters stand, see `places_of`; None
    while the model is the caller's.
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
    places: Mapping[str, Sequence[Place]] | None = None

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

        They stay in a private model until its next call, because layers that are checkpointed look at them again
        while derivatives are taken. Raises NatalError naming the layer that the batch does not fit.
        """
        batch = self.inputs if inputs is None else inputs
        rest = dict(parameters)
        for name, places in (self.places or {}).items():
            given = [rest.pop(place.name) for place in places if place.name in rest]
            if len(given) > 1:
                raise NatalError(f"{name!r} goes by several names; give one tensor for all of them")
            for place in places:
                place.module._parameters[place.leaf] = given[0] if given else place.own  # type: ignore[assignment]
        for module in self.model.modules() if self.places else ():
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()  # recurrent layers read their parameters from a list of their own
        try:
            with warnings.catch_warnings():
                # torch's older kind of checkpoint warns, and then gives no derivatives
                warnings.filterwarnings("error", "None of the inputs have requires_grad=True")
                return functional_call(self.model, rest, (batch,))
        except Exception as error:  # whatever a user's forward raises
            if "None of the inputs have requires_grad" in str(error):
                raise NatalError(_reentrant(self.model)) from error
            kind = (
                f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"type {type(batch).__name__}"
            )
            raise NatalError(
                f"a batch of {kind} does not fit {self._stuck_at(batch)}: {_first_line(error)}"
            ) from error

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name: the weights of this round, and the model's own that are not prunable."""
        places = places_of(self.model) if self.places is None else self.places
        others = {
            name: found[0].own
            for name, found in places.items()
            if not any(place.name in self.weights for place in found)
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
            return torch.ones(1, first.shape[1], dtype=first.dtype, device=first.device)
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
                f"the loss does not fit the model's outputs and the batch's targets: {_first_line(error)}"
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


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
        said = _first_line(error)
        cure = (
            _REENTRANT
            if "Checkpointing is not compatible" in said
            else "choose a criterion that needs no such derivative, or another loss"
        )
        raise NatalError(f"the loss has no derivative that the criterion needs: {said}; {cure}") from error
    if all(g is None for g in found):
        raise NatalError(f"the loss does not depend on the model's weights, not even on {next(iter(at))!r}")
    pairs = zip(at.items(), found, strict=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in pairs}


_REENTRANT = "checkpoint with use_reentrant=False"


def _reentrant(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} checkpoints a layer with use_reentrant=True, which hides its weights from scoring; "
        f"{_REENTRANT}"
    )


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy; raise NatalError where the model holds something that cannot be copied."""
    try:
        return deepcopy(model)
    except Exception as error:  # whatever an attribute of the user's raises
        raise NatalError(f"{type(model).__name__} cannot be copied: {_first_line(error)}") from error


class Place(NamedTuple):
    """Where a parameter stands in a private model: its name, its module, its entry there, and itself."""

    name: str
    module: nn.Module
    leaf: str
    own: Tensor


def places_of(model: nn.Module) -> dict[str, list[Place]]:
    """Return where a model's parameters stand, those that layers share in several places."""
    places: dict[int, list[Place]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        places.setdefault(id(parameter), []).append(Place(name, model.get_submodule(path), leaf, parameter))
    return {found[0].name: found for found in places.values()}


@contextmanager
def private(problem: Problem) -> Iterator[Problem]:
    """Yield the problem with a model of its own, so that scoring leaves no trace on the caller.

    The copy is in evaluation mode (no dropout), except that batch norms use the batch's own statistics: at
    initialisation the running ones are placeholders. A network in half precision is scored in float32, where
    products of small numbers do not vanish. Attention uses the kernel that can be differentiated twice.
    """
    if torch.is_inference_mode_enabled():
        raise NatalError("scores need derivatives: leave torch.inference_mode() (torch.no_grad() is fine)")
    model = duplicate(problem.model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    widened = any(w.dtype in _HALF for w in problem.weights.values())
    if widened:
        model.float()
    theirs, ours = (dict(m.named_parameters(remove_duplicate=False)) for m in (problem.model, model))

    def owned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # the copy's own numbers where they are the model's, so that a large network is copied once
        return {
            name: ours[name].detach()
            if name in theirs and _same_memory(w, theirs[name])
            else (w.float() if w.dtype in _HALF else w.detach().clone())
            for name, w in weights.items()
        }

    inputs, targets = (_widened(t) if widened else t for t in (problem.inputs, problem.targets))
    initial = owned(problem.initial)
    own = replace(
        problem,
        model=model,
        weights=initial if problem.weights is problem.initial else owned(problem.weights),
        initial=initial,
        inputs=inputs,
        targets=targets,
        places=places_of(model),
    )
    with _own_randomness(own), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield own


_HALF = (torch.float16, torch.bfloat16)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _widened(tensor: Any) -> Any:
    return tensor.float() if isinstance(tensor, Tensor) and tensor.dtype in _HALF else tensor


@contextmanager
def _own_randomness(problem: Problem) -> Iterator[None]:
    """Seed the global generators, which a model may draw from, and give them back as they were."""
    seed = problem.stream("forward").initial_seed()
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in problem.model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
