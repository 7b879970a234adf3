"""A smaller network to train on: what the masked one would have learnt, in fewer units."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from natal.errors import NatalError
from natal.pruning.compaction import Shrunk, shrink
from natal.pruning.graph.capture import Example
from natal.pruning.mask import Mask


class _Parts(NamedTuple):
    model: nn.Module
    mask: Mask
    optimizer: Optimizer | None


class Compacted(_Parts):
    """A smaller network with what is needed to train it on.

    ``model``: the network. ``mask``: its mask, cut to size; what it removes inside kept units gets no gradient, so
    that clipping counts kept weights only, and is zero again after every step of ``optimizer``. ``optimizer``: the
    optimiser over its parameters with the state cut to size, or None if none was given. ``scheduler``: the learning
    rate's scheduler over that optimiser, or None.
    """

    scheduler: Any = None


def compact_training(
    model: nn.Module,
    mask: Mask,
    optimizer: Optimizer | None = None,
    example: Example | None = None,
    *,
    scheduler: Any = None,
) -> Compacted:
    """Return the smaller network that trains like ``model`` under ``mask``: the same losses, step for step.

    Only units that training can never wake are removed: those with no kept outgoing weight, and those
    that are zero and stay zero because their bias is masked or absent too. A unit with a kept bias stays,
    since its bias learns. Whatever the optimiser holds per parameter (momentum, Adam's moments) is cut
    with the parameter, ``scheduler`` goes on where it was; the caller's own are left alone. Weights that the mask
    removes inside kept units are set back to zero after each step of the returned optimiser. The promise holds for
    optimisers that treat every number alone, as SGD and Adam do, and for networks without dropout, which
    draws other numbers on another width. Raises NatalError as `natal.compact` does, if the optimiser holds a
    tensor that is not a parameter of the model, or if it is one that looks at more than one number at a time.
    """
    if optimizer is not None:
        check_optimizer(optimizer, model)
    if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
        raise NatalError(
            f"scheduler must be one over the optimizer that is given, got {type(scheduler).__name__}"
        )
    shrunk = shrink(model, mask, example, training=True)
    shrunk.warn(model)
    smaller = _smaller_mask(mask, shrunk)
    gone = _gone(shrunk.model, smaller)
    for parameter, removed in gone:
        if parameter.requires_grad:
            parameter.register_hook(functools.partial(_without, removed))  # type: ignore[no-untyped-call]
    if optimizer is None:
        return Compacted(shrunk.model, smaller, None)
    made, remade = _carried(optimizer, scheduler, model, shrunk)
    _hold(made, gone)
    compacted = Compacted(shrunk.model, smaller, made)
    compacted.scheduler = remade
    return compacted


def _smaller_mask(mask: Mask, shrunk: Shrunk) -> Mask:
    names = dict(shrunk.model.named_parameters(remove_duplicate=False))
    parts = []
    for part in (mask.weights, mask.biases):
        cut = {}
        for name, kept in part.items():
            smaller = shrunk.cut(name, kept)
            at = name if name in names else _inside(name, names)
            if at is not None and names[at].shape == smaller.shape:
                cut[at] = smaller
        parts.append(cut)
    return Mask(parts[0], parts[1], inputs=mask.inputs)


def _inside(name: str, names: Any) -> str | None:
    """Return the name of a parameter whose module now stands inside another; see `Widened`."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.module.{leaf}" if f"{owner}.module.{leaf}" in names else None


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise NatalError, by name, for an optimiser that cannot be carried to other shapes."""
    if not isinstance(optimizer, Optimizer):
        raise NatalError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    name = type(optimizer).__name__
    if isinstance(optimizer, _WHOLE) or name in (
        "Muon",
        "Shampoo",
        "SOAP",
        "LARS",
        "Lamb",
        "LAMB",
        "AdaFactor",
    ):
        raise NatalError(
            f"{name} looks at a whole tensor at a time, so that its state cannot be cut with a unit; train on with "
            "one that treats every number alone, such as SGD or AdamW"
        )
    inner = [v for v in vars(optimizer).values() if isinstance(v, Optimizer)]
    if inner or not all(isinstance(group.get("params"), list) for group in optimizer.param_groups):
        raise NatalError(
            f"{name} is wrapped around {type(inner[0]).__name__ if inner else 'another optimiser'}, which cannot be "
            "carried; give compact_training the optimiser inside and wrap the result"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held - {id(p) for p in model.parameters()}:
        raise NatalError(
            f"the optimizer holds a tensor that is no parameter of this {type(model).__name__}; "
            "make it with optimizer(model.parameters())"
        )
    by_id = {id(p): p for p in model.parameters()}
    for parameter, state in optimizer.state.items():
        if id(parameter) not in by_id:
            raise NatalError(
                f"{name} keeps state that belongs to no parameter, so it cannot be cut with a unit; use SGD or AdamW"
            )
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise NatalError(
                    f"{name} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}, so it cannot be cut with a unit; use SGD or AdamW"
                )


_WHOLE = tuple(
    kind
    for kind in (getattr(torch.optim, name, None) for name in ("Adafactor", "LBFGS", "Muon"))
    if inspect.isclass(kind)
)
"""Optimisers of torch whose step for one number depends on others of its tensor, or of all tensors."""


def _carried(optimizer: Optimizer, scheduler: Any, model: nn.Module, shrunk: Shrunk) -> tuple[Optimizer, Any]:
    small = dict(shrunk.model.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        plain = name.removesuffix("_orig") if name not in small else name  # torch.nn.utils.prune's name
        at = plain if plain in small else _inside(plain, small)
        if at is None:
            raise NatalError(f"{name!r} of {type(model).__name__} has no counterpart in the smaller network")
        names[id(parameter)] = at
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # deepcopy, told that the small parameters are the copies of the large ones: works for any optimiser class
    memo: dict[int, Any] = {id(p): small[names[id(p)]] for p in held}
    wrapped = vars(optimizer).pop(
        "step", None
    )  # a scheduler counts the steps of this optimiser, not of its copy
    try:
        made = copy.deepcopy(optimizer, memo)
    finally:
        if wrapped is not None:
            vars(optimizer)["step"] = wrapped
    for parameter in held:
        state = made.state.get(small[names[id(parameter)]], {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                name = names[id(parameter)]
                state[key] = value if value.shape == small[name].shape else shrunk.cut(name, value)
    if scheduler is None:
        return made, None
    _count_steps(made)
    return made, _rescheduled(scheduler, memo | {id(optimizer): made})


def _rescheduled(scheduler: Any, memo: dict[int, Any]) -> Any:
    """Return a scheduler, and those that it is made of, over the copy of their optimiser."""
    remade = copy.copy(scheduler)
    for key, value in vars(scheduler).items():
        if callable(value) and not hasattr(value, "state_dict"):
            continue
        if isinstance(value, list) and any(hasattr(v, "optimizer") for v in value):
            vars(remade)[key] = [_rescheduled(v, memo) for v in value]
        else:
            vars(remade)[key] = copy.deepcopy(value, memo)
    return remade


def _count_steps(optimizer: Optimizer) -> None:
    """Let an optimiser know that it has made a step, as its scheduler wraps it to ask for."""
    step = optimizer.step

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return step(*args, **kwargs)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    vars(optimizer)["step"] = counted


def _gone(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the parameters of which the mask removes something, each with what is gone."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    items = [(parameters[name], kept) for name, kept in mask.items().items()]
    return [(parameter, ~kept.to(parameter.device)) for parameter, kept in items if not kept.all()]


def _without(gone: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(gone.to(gradient.device), 0)


def _hold(optimizer: Optimizer, gone: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Set what the mask removes back to zero after each step."""

    @torch.no_grad()
    def zero(*_: Any) -> None:
        for parameter, removed in gone:
            parameter.masked_fill_(removed.to(parameter.device), 0)

    zero()
    optimizer.register_step_post_hook(zero)
