"""Prune any network in two calls: ``mask = prune(model, 0.9, "synflow")``, then ``net = apply(model, mask)``.

The caller's model is never changed. What `apply` returns is an ordinary network of the same classes whose
pruned weights are zero and stay zero, whatever loop and optimiser train it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.choose import mask as choose
from natal.pruning.choose import mask_for, problem_of
from natal.pruning.criteria.problem import duplicate
from natal.pruning.mask import Mask, Scope, weight_names
from natal.pruning.targets import Floors, Target
from natal.study import Recipe, one_line


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    criterion: str = "synflow",
    scope: Scope = "global",
    granularity: str = "weight",
    *,
    aggregate: str = "incoming-l2",
    reduce: str = "mean",
    control: str | None = None,
    batch: tuple[Any, Any] | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    seed: int = 0,
    exclude: Sequence[str] = (),
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    multiple_of: int = 1,
    at_least: int | float | Mapping[str, int | float] = 1,
) -> Mask:
    """Return the mask that a criterion chooses for a model; the model is untouched.

    ``sparsity``: share of the prunable weights (neurons) to remove, 0.9 unless a target is given. ``criterion``,
    ``scope``, ``granularity``, ``aggregate``, ``reduce``, ``control``: as in a study's strategies, see
    `natal.pruning.choose.mask`.
    ``batch``: (inputs, targets) for criteria that need data, or inputs whose shape counts; ``loss(outputs,
    targets)``: one number. ``seed``: all draws come from it. ``exclude``: layers left alone: names,
    ``"first"``, ``"last"``. ``macs``, ``params``, ``latency``: a target instead of a sparsity, the share of the dense
    network's multiply-adds, parameters or measured time that is left when whole neurons go; the mask's ``reached``
    says what came out. ``multiple_of``, ``at_least``: what each group of neurons keeps, the latter a number, a share,
    or either by group. Raises NatalError, one sentence naming the argument or the layer, for what cannot
    be done.
    """
    _check_model(model)
    if isinstance(exclude, str):
        raise NatalError(f"exclude takes a sequence of names; write exclude=({exclude!r},)")
    if batch is not None and (not isinstance(batch, tuple | list) or len(batch) != 2):
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise NatalError(f"batch must be a pair (inputs, targets), got {type(batch).__name__}{length}")
    if not callable(loss) and loss is not None:
        raise NatalError(f"loss must be a function of (outputs, targets), got {loss!r}")
    if not isinstance(seed, Integral):
        raise NatalError(f"seed must be an integer, got {seed!r}")
    target = Target.given(macs, params, latency)
    floors = Floors(multiple_of, at_least)
    if target is not None:
        if sparsity is not None:
            raise NatalError(
                f"give a sparsity or a target, not both sparsity={sparsity} and {target.of}={target.share}"
            )
        granularity = "neuron"
    elif floors != Floors() and granularity != "neuron":
        raise NatalError("multiple_of and at_least are for whole neurons; use granularity 'neuron'")
    try:
        recipe = Recipe.model_validate(
            {
                "name": "prune",
                "criterion": criterion,
                "scope": scope,
                "granularity": granularity,
                "aggregate": aggregate,
                "reduce": reduce,
                "control": control,
            }
        )
    except ValidationError as error:
        raise NatalError(one_line(error)) from None
    inputs, targets = batch if batch is not None else (None, None)
    problem = problem_of(model, seed, exclude=exclude, inputs=inputs, targets=targets, loss=loss)
    if target is not None:
        return mask_for(recipe, problem, target, floors)
    return choose(
        recipe, problem, 0.9 if sparsity is None else sparsity, None if floors == Floors() else floors
    )


def apply(model: nn.Module, mask: Mask) -> nn.Module:
    """Return a copy of the model in which the removed parameters are zero and stay zero.

    Each masked layer's parameter is read through its mask, so what is removed gets no gradient and no
    optimiser, momentum or weight decay brings it back. The parameters keep their names; each layer's mask is
    a buffer of its own (``fc1.weight_kept``). The copy can be deep-copied, pickled, saved and loaded, and
    applied to again. A control's redrawn weights replace the model's. Raises NatalError naming a parameter
    that does not fit.
    """
    _check_model(model)
    if not isinstance(mask, Mask):
        raise NatalError(f"mask must be a natal.Mask, as natal.prune returns, got {type(mask).__name__}")
    net = duplicate(model)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    for name, values in {**mask.items(), **mask.redrawn}.items():
        if name not in parameters or parameters[name].shape != values.shape:
            shape = tuple(parameters[name].shape) if name in parameters else "none"
            raise NatalError(f"the mask has {name!r} of shape {tuple(values.shape)}, the model has {shape}")
    with torch.no_grad():
        for name, values in mask.redrawn.items():
            parameters[name].copy_(values)
        mask.apply_(parameters)
    aliases = weight_names(net)
    for first, kept in mask.items().items():
        for name in aliases.get(first, [first]):  # a shared weight is masked wherever it is used
            path, _, leaf = name.rpartition(".")
            _read_masked(net.get_submodule(path), leaf, kept)
    return net


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise NatalError(f"model must be a torch.nn.Module, got {model!r}")


def _read_masked(module: nn.Module, leaf: str, kept: Tensor) -> None:
    """Let ``module.leaf`` be the parameter times its mask from now on."""
    base, leaves = getattr(type(module), "_natal_masked", (type(module), ()))
    parameter = module._parameters[leaf]
    assert parameter is not None
    kept = kept.to(parameter.device)
    if leaf in leaves:
        module.get_buffer(f"{leaf}_kept").logical_and_(kept)
    else:
        module.register_buffer(f"{leaf}_kept", kept.clone())
        module.__class__ = _masked_class(base, (*leaves, leaf))


_MADE: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _masked_class(base: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """Return ``base`` with properties that read some of its parameters through their masks.

    The parameters stay where ``nn.Module`` keeps them, under their own names; a class attribute is found
    before ``nn.Module.__getattr__`` looks there. Pickle cannot find a class made here by name, so it is told
    how to make it.
    """
    if (base, leaves) in _MADE:
        return _MADE[base, leaves]

    def reading(leaf: str) -> property:
        return property(lambda module: module._parameters[leaf] * module._buffers[f"{leaf}_kept"])

    def reduce(module: nn.Module, _protocol: object) -> tuple[Any, ...]:
        return _empty, (base, leaves), module.__dict__

    made = _MADE[base, leaves] = type(
        f"Masked{base.__name__}",
        (base,),
        {
            **{leaf: reading(leaf) for leaf in leaves},
            "__reduce_ex__": reduce,
            "__module__": base.__module__,  # so that torch.fx still takes the layer for one of torch's
            "_natal_masked": (base, leaves),
        },
    )
    return made


def _empty(base: type[nn.Module], leaves: tuple[str, ...]) -> nn.Module:
    masked = _masked_class(base, leaves)
    return masked.__new__(masked)
