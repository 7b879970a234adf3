"""Masked copies: networks that behave as the ones they copy, except that what a mask removed stays away.

`mask_` turns the modules of a private copy into masked ones, `unmasked` turns them back. A masked module is of a
subclass of its own class, made here, that differs in three ways:

- While a ``forward`` runs, its own or that of a module around it, its parameter reads as ``where(kept, θ, 0)``; at any
  other time as the parameter itself. So every reader of a weight sees the mask, whichever module owns it, and what is
  written into a parameter takes effect.
- ``state_dict`` has the plain module's keys, with zeros where weights are gone; loading takes those of either.
- What is removed is set to zero again after every step of any ``torch.optim`` optimiser, so that neither momentum nor
  weight decay nor a loaded optimiser state brings it back.

The mask is a non-persistent buffer ``natal_kept_NAME``, so it moves, copies and pickles with the module. Also masked:
a tensor that a parametrization, ``torch.nn.utils.prune`` or weight norm later puts in the parameter's place.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.optim.optimizer import register_optimizer_step_post_hook

from natal.errors import NatalError, first_line
from natal.pruning.mask import Mask, check_model
from natal.registry import did_you_mean

M = TypeVar("M", bound=nn.Module)


def mask_(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Turn modules of a private copy into masked ones: those that own a parameter in ``masks``, or a name tied to it.

    Also those around them, whose ``forward`` may read a parameter that is not theirs, as attention reads its output
    projection's. A module that is masked already loses what either mask removes. Raises NatalError naming a parameter
    in a compiled module, whose reading cannot be changed.
    """
    parameters = dict(net.named_parameters(remove_duplicate=False))
    kept_of = {id(parameters[name]): kept for name, kept in masks.items()}
    around: set[str] = set()
    for name, parameter in parameters.items():
        if id(parameter) not in kept_of:
            continue
        path, _, leaf = name.rpartition(".")
        owner = net.get_submodule(path)
        if isinstance(owner, torch.jit.ScriptModule | fx.GraphModule):
            raise NatalError(
                f"{name!r} lies in a {type(owner).__name__}, which is compiled from another network; apply the mask to "
                "that network"
            )
        _mask_parameter(owner, leaf, kept_of[id(parameter)])
        parents = path.split(".") if path else []
        around |= {".".join(parents[:depth]) for depth in range(len(parents))}
    for path in around:
        module = net.get_submodule(path)
        reads = type(module).forward is not nn.Module.forward and not _is_masked(module)
        if reads and not isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
            module.__class__ = _masked_class(type(module), ())


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


def is_masked(model: nn.Module) -> bool:
    """Whether `natal.apply` has masked a parameter of this model."""
    return any(_leaves(module) for module in model.modules())


def unmasked(model: M, mask: Mask) -> M:
    """Return a copy of ``model`` as it was before it was pruned, made of plain modules, nothing removed.

    What `natal.apply` or ``torch.nn.utils.prune`` made of its layers is undone, except that what they removed
    is zero. Otherwise the model has yet to start, so a control's redrawn weights replace its own. Raises
    NatalError as `check` does.
    """
    check_model(model)
    twin = duplicate(model)
    started = False
    for module in twin.modules():
        started |= bool(_leaves(module))
        _unmask(module)
        by_torch = [
            hook._tensor_name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, prune.BasePruningMethod)
        ]
        for leaf in by_torch:
            prune.remove(module, leaf)  # type: ignore[no-untyped-call]
        started |= bool(by_torch)
    check(twin, mask)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, values in mask.redrawn.items() if not started else ():
            parameters[name].copy_(values)
    return twin


def duplicate(model: M) -> M:
    """Return a deep copy; raise NatalError where the model holds something that cannot be copied."""
    try:
        return copy.deepcopy(model, recomputed(model))
    except Exception as error:  # whatever an attribute of the user's raises
        raise NatalError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error


def recomputed(model: nn.Module) -> dict[int, Any]:
    """Return a memo for ``deepcopy`` of what it refuses: weights that hooks compute before each forward pass.

    ``torch.nn.utils.prune`` and the older weight and spectral norm leave them in the module.
    """
    names = (
        (vars(module), getattr(hook, "_tensor_name", getattr(hook, "name", None)))
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
    )
    products = (entries.get(name) for entries, name in names if isinstance(name, str))
    return {id(t): t.detach() for t in products if isinstance(t, Tensor) and not t.is_leaf}


def masked(model: M, mask: Mask) -> M:
    """Return `unmasked` with the removed parameters set to zero: a plain copy of what ``model`` computes."""
    return remove(unmasked(model, mask), mask)


def remove(model: M, mask: Mask) -> M:
    """Set the removed parameters of a private copy to zero and return it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, kept in mask.items().items():
        clear(parameters[name], kept)
    return model


def clear(parameter: Tensor, kept: Tensor) -> None:
    """Set what is not kept to zero, in place, unseen by autograd."""
    # masked_fill, not multiplication: 0 * inf is NaN and 0 * -1 is -0
    parameter.data.masked_fill_(~kept.to(parameter.device), 0)


# -- the masked module -----------------------------------------------------------------------------------

_PREFIX = "natal_kept_"


def _mask_parameter(module: nn.Module, leaf: str, kept: Tensor) -> None:
    parameter = module._parameters[leaf]
    assert parameter is not None
    kept = kept.to(parameter.device)
    leaves = _leaves(module)
    if leaf in leaves:
        module.get_buffer(_PREFIX + leaf).logical_and_(kept)
    else:
        module.register_buffer(_PREFIX + leaf, kept.clone(), persistent=False)
        base = getattr(type(module), "_natal_base", type(module))
        module.__class__ = _masked_class(base, (*leaves, leaf))
    _alive[id(module)] = module
    _clear(module)


def _unmask(module: nn.Module) -> None:
    """Make a masked module, or one around masked ones, what it was, with zeros where weights were gone."""
    _clear(module)
    if _is_masked(module) and parametrize.is_parametrized(module):
        raise NatalError(
            f"a {type(module).__name__} has a parametrization on top of its mask; take it off first, with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    for leaf in _leaves(module):
        del module._buffers[_PREFIX + leaf]
        module._non_persistent_buffers_set.discard(_PREFIX + leaf)
    if _is_masked(module):
        module.__class__ = type(module)._natal_base  # type: ignore[attr-defined]


def _is_masked(module: nn.Module) -> bool:
    return hasattr(type(module), "_natal_base")


def _leaves(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's masked parameters."""
    leaves: tuple[str, ...] = getattr(type(module), "_natal_masked", ())
    return leaves


class _Running(threading.local):
    """How many forwards of masked modules this thread is inside of."""

    depth = 0


_running = _Running()
_made: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _masked_class(base: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of ``base`` that reads some of its parameters through their masks.

    The parameters stay where ``nn.Module`` keeps them; a property of the class is found before its ``__getattr__``
    looks there. It keeps the name of ``base``, because tools tell layers apart by it.
    """
    if (base, leaves) in _made:
        return _made[base, leaves]

    @functools.wraps(base.forward)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for leaf in leaves:
            _mask_parametrization(module, leaf)
        if torch.compiler.is_compiling():
            return base.forward(module, *args, **kwargs)
        _running.depth += 1
        try:
            return base.forward(module, *args, **kwargs)
        finally:
            _running.depth -= 1

    def reduce(module: nn.Module, protocol: Any) -> Any:
        # pickle cannot find a class made here by name, so it is told how to make it
        found: Any = base.__reduce_ex__(module, max(protocol, 2))
        if type(module) is not made or found[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return found
        return (_empty, (base, leaves), *found[2:])

    def save(module: nn.Module, *args: Any) -> None:
        _clear(module)
        base._save_to_state_dict(module, *args)

    def load(module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        base._load_from_state_dict(module, state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers"):
            # the parameter is the caller's own tensor now, which must not change
            for leaf in leaves:
                parameter = module._parameters.get(leaf)
                if parameter is not None:
                    own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                    module._parameters[leaf] = own
        _clear(module)

    def script(module: nn.Module) -> nn.Module:
        raise NatalError(
            f"torch.jit.script cannot compile the masked {base.__name__}; use torch.compile, torch.export or "
            "torch.jit.trace, or script what natal.compact returns"
        )

    body: dict[str, Any] = {
        "_natal_base": base,
        "_natal_masked": leaves,
        "__module__": base.__module__,  # so that torch.fx still takes the layer for one of torch's
        "__qualname__": base.__qualname__,
        "__reduce_ex__": reduce,
        "__prepare_scriptable__": script,
        "__jit_unused_properties__": [*leaves, "_flat_weights"],
        "_save_to_state_dict": save,
        "_load_from_state_dict": load,
        "forward": forward,
        **{leaf: _reading(leaf) for leaf in leaves},
    }
    if leaves and issubclass(base, nn.RNNBase):
        body["_flat_weights"] = _flat_weights()
    made = _made[base, leaves] = type(base.__name__, (base,), body)
    return made


def _reading(leaf: str) -> property:
    def read(module: nn.Module) -> Any:
        kept: Any = module._buffers[_PREFIX + leaf]
        if torch.compiler.is_compiling():
            parameter: Any = module._parameters[leaf]
            return torch.where(kept, parameter, 0)
        # what torch.nn.utils.prune and old weight norm put in the parameter's place is a plain attribute
        value: Any = vars(module)[leaf] if leaf in vars(module) else nn.Module.__getattr__(module, leaf)
        if value is None:
            return None
        symbolic = isinstance(value, fx.Proxy) or torch._C._get_tracing_state() is not None
        if not symbolic and value.shape != kept.shape:
            raise NatalError(
                f"{leaf!r} of a {type(module).__name__} has shape {tuple(value.shape)} now and its mask "
                f"{tuple(kept.shape)}; put the new parameter into the unmasked network and apply a mask that fits"
            )
        if _running.depth or not isinstance(value, nn.Parameter):
            return torch.where(kept, value, 0)
        clear(value, kept)
        return value

    def write(module: nn.Module, value: Tensor) -> None:
        vars(module)[leaf] = value

    def delete(module: nn.Module) -> None:
        if leaf not in vars(module):
            raise AttributeError(leaf)
        del vars(module)[leaf]

    return property(read, write, delete)


def _flat_weights() -> property:
    """Return the list by which recurrent layers read their parameters, as a property that reads them one by one."""

    def read(module: nn.Module) -> Any:
        flat = vars(module)["_flat_weights"]
        if not (torch.compiler.is_compiling() or _running.depth):
            return flat
        names: list[str] = module._flat_weights_names  # type: ignore[assignment]
        return [
            getattr(module, name) if name in module._parameters else w
            for name, w in zip(names, flat, strict=True)
        ]

    def write(module: nn.Module, value: Any) -> None:
        vars(module)["_flat_weights"] = value

    return property(read, write)


def _empty(base: type[nn.Module], leaves: tuple[str, ...]) -> nn.Module:
    made = _masked_class(base, leaves)
    module = made.__new__(made)
    if leaves:
        _alive[id(module)] = module
    return module


# -- what was removed stays zero -------------------------------------------------------------------------

_alive: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
"""Every masked module, so that a step of an optimiser finds those whose parameters it moved."""


def _clear(module: nn.Module) -> None:
    for leaf in _leaves(module):
        parameter = vars(module)["_parameters"].get(leaf)
        if isinstance(parameter, nn.Parameter):
            kept = module._buffers[_PREFIX + leaf]
            assert kept is not None
            if parameter.shape == kept.shape:
                clear(parameter, kept)


def _clear_after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module in _masked_modules():
        if any(id(vars(module)["_parameters"].get(leaf)) in moved for leaf in _leaves(module)):
            _clear(module)


def _masked_modules() -> Iterator[nn.Module]:
    for reference in _alive.valuerefs():  # a list, so that another thread may mask a network meanwhile
        module = reference()
        if module is not None and "_parameters" in vars(module):
            yield module


register_optimizer_step_post_hook(_clear_after_step)


# -- parametrizations ------------------------------------------------------------------------------------


class _Kept(nn.Module):
    """The mask as the last parametrization of a chain that was put on a masked parameter."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        return torch.where(self.get_buffer("kept"), value, 0)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def _chain(module: nn.Module, leaf: str) -> Any:
    chains: Any = module.parametrizations
    return chains[leaf]


def _mask_parametrization(module: nn.Module, leaf: str) -> None:
    """A parametrization's own property hides the one made here, so its result goes through the mask as well."""
    if leaf in module._parameters or not parametrize.is_parametrized(module, leaf):
        return
    chain = _chain(module, leaf)
    if not isinstance(chain[len(chain) - 1], _Kept):
        kept = module._buffers[_PREFIX + leaf]
        assert kept is not None
        chain.append(_Kept(kept))
