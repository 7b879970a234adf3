"""A model as it was before it was pruned, and as what it computes under a mask: plain copies, checked to fit."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from natal.errors import NatalError
from natal.pruning.mask import Mask
from natal.registry import did_you_mean

M = TypeVar("M", bound=nn.Module)


def check(model: nn.Module, mask: Mask) -> None:
    """Raise NatalError if the mask names a parameter ``model`` does not have, or in another shape."""
    if not isinstance(mask, Mask):
        raise NatalError(f"mask must be a natal.Mask, got {type(mask).__name__}; natal.prune makes one")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks = [(name, kept, True) for name, kept in mask.items().items()]
    for name, values, boolean in [*masks, *((name, drawn, False) for name, drawn in mask.redrawn.items())]:
        if name not in parameters:
            raise NatalError(
                f"the mask names {name!r}, which is no parameter of this {type(model).__name__}"
                f"{did_you_mean(name, parameters)}"
            )
        shape = tuple(parameters[name].shape)
        if values.shape != shape or (boolean and values.dtype != torch.bool):
            what = f"the mask{'' if boolean else chr(39) + 's redrawn value'}"
            raise NatalError(
                f"{what} of {name!r} is {values.dtype} of shape {tuple(values.shape)}; "
                f"it must be {'torch.bool ' * boolean}of shape {shape}"
            )


def unmasked(model: M, mask: Mask) -> M:
    """Return a copy of ``model`` as it was before it was pruned, made of plain modules, nothing removed.

    What `natal.apply` or ``torch.nn.utils.prune`` made of its layers is undone, except that what they removed
    is zero. Otherwise the model has yet to start, so a control's redrawn weights replace its own. Raises
    NatalError as `check` does.
    """
    # between its hooks torch.nn.utils.prune leaves a product in the module, which deepcopy refuses
    products = [
        t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf
    ]
    twin = copy.deepcopy(model, {id(t): t.detach() for t in products})
    started = False
    for module in twin.modules():
        base, leaves = getattr(type(module), "_natal_masked", (type(module), ()))
        for leaf in leaves:
            _clear(module._parameters[leaf], module._buffers.pop(f"{leaf}_kept"))
        module.__class__ = base
        by_torch = [
            hook._tensor_name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, prune.BasePruningMethod)
        ]
        for leaf in by_torch:
            prune.remove(module, leaf)  # type: ignore[no-untyped-call]
        started |= bool(leaves or by_torch)
    check(twin, mask)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, values in mask.redrawn.items() if not started else ():
            parameters[name].copy_(values)
    return twin


def masked(model: M, mask: Mask) -> M:
    """Return `unmasked` with the removed parameters set to zero: a plain copy of what ``model`` computes."""
    return remove(unmasked(model, mask), mask)


def remove(model: M, mask: Mask) -> M:
    """Set the removed parameters of a private copy to zero and return it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, kept in mask.items().items():
        _clear(parameters[name], kept)
    return model


@torch.no_grad()
def _clear(parameter: Tensor | None, kept: Tensor | None) -> None:
    assert parameter is not None
    assert kept is not None
    # masked_fill, not multiplication: 0 * inf is NaN and 0 * -1 is -0
    parameter.masked_fill_(~kept.to(parameter.device), 0)


def first_line(error: Exception) -> str:
    """Return what an exception says first, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
