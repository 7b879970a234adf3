"""Prune any network in two calls: ``mask = prune(model, 0.9, "synflow")``, then ``net = apply(model, mask)``.

The caller's model is never changed. What `apply` returns is a network that behaves as the model does, except that
its pruned weights are zero and stay zero, whatever loop and optimiser train it.
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
from natal.pruning.grid import Granularity
from natal.pruning.mask import Mask, check_model
from natal.pruning.masked import duplicate, mask_
from natal.pruning.scopes import Scope
from natal.pruning.targets import Floors, Target
from natal.study import Recipe, one_line


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    criterion: str = "synflow",
    scope: Scope = "global",
    granularity: Granularity = "weight",
    *,
    aggregate: str = "incoming-l2",
    reduce: str = "mean",
    control: str | None = None,
    batch: tuple[Any, Any] | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    seed: int = 0,
    exclude: Sequence[str] = (),
    attention: str = "heads",
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    multiple_of: int = 1,
    at_least: int | float | Mapping[str, int | float] = 1,
) -> Mask:
    """Return the mask that a criterion chooses for a model; the model is untouched.

    ``sparsity``: share of the prunable weights (neurons, kernels, blocks) to remove, 0.9 unless a target is given.
    ``criterion``, ``scope``, ``granularity``, ``aggregate``, ``reduce``, ``control``: as in a study's strategies, see
    `natal.pruning.choose.mask`.
    ``batch``: (inputs, targets) for criteria that need data, or inputs whose shape counts; ``loss(outputs,
    targets)``: one number. ``seed``: all draws come from it. ``exclude``: layers left alone: names,
    ``"first"``, ``"last"``. ``attention``: among whole neurons, whether it loses ``"heads"`` or ``"width"``, the same
    places in all its heads. ``macs``, ``params``, ``latency``: a target instead of a sparsity, the share of the dense
    network's multiply-adds, parameters or measured time that is left when whole neurons go; the mask's ``reached``
    says what came out. ``multiple_of``, ``at_least``: what each group of neurons keeps, the latter a number, a share,
    or either by group. Raises NatalError, one sentence naming the argument or the layer, for what cannot
    be done.
    """
    check_model(model)
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
    if attention not in ("heads", "width"):
        raise NatalError(f"attention must be 'heads' or 'width', got {attention!r}")
    if attention != "heads" and granularity != "neuron":
        raise NatalError("attention='width' is for whole neurons; use granularity 'neuron'")
    inputs, targets = batch if batch is not None else (None, None)
    whole = recipe.granularity == "neuron"
    problem = problem_of(
        model,
        seed,
        exclude=exclude,
        whole=whole,
        attention=attention,
        inputs=inputs,
        targets=targets,
        loss=loss,
    )
    if target is not None:
        return mask_for(recipe, problem, target, floors)
    return choose(
        recipe, problem, 0.9 if sparsity is None else sparsity, None if floors == Floors() else floors
    )


def apply(model: nn.Module, mask: Mask) -> nn.Module:
    """Return a copy of the model in which the removed parameters are zero and stay zero.

    The copy behaves as the model: it has the same parameters under the same names and the same ``state_dict``,
    with zeros where the mask removed; it is trained, initialised, deep-copied, pickled, saved and loaded,
    parametrized, compiled, exported and distributed in the same way, by whatever loop and optimiser. Its forward
    pass never sees a removed weight, and their gradients are zero; see `natal.pruning.masked` for how. A weight that
    several layers share is masked in all of them. A mask can be applied to a masked copy again. A control's redrawn
    weights replace the model's.

    What is left: a removed entry that is written to (by an initialiser, say) is seen in ``parameters()`` until the
    next step of an optimiser, ``state_dict()`` or reading of the layer's attribute sets it to zero; a ``forward``
    that itself writes into its weight (``self.weight.data = ...``) writes into the masked product, for that pass
    only; a layer of its own ``__deepcopy__`` makes its own copies; ``AveragedModel(use_buffers=True)`` needs one of
    torch's EMA functions, because the mask is a boolean buffer; modules that shard or flatten parameters (FSDP) and
    ``torch.jit.script`` cannot read the mask, the latter says so.

    Raises NatalError naming a parameter that does not fit.
    """
    check_model(model)
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
    mask_(net, mask.items())
    return net
