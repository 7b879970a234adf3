"""The physically smaller network that computes the same function as a masked one.

`compact` keeps the *function*: it also removes units that have become constant, folding what they contributed
into the next layer's bias. `compact_training` keeps the *training*: it removes only what never receives or
passes on a gradient, and takes the optimiser's state along. `savings` measures what was won. A unit is a
linear neuron or a convolution channel; single weights inside a kept unit stay as zeros, which no dense kernel
can exploit.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from natal.errors import NatalError
from natal.pruning.flow import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Convolution,
    Example,
    Flow,
    Layer,
    arguments,
    first_line,
    trace,
)
from natal.pruning.mask import Mask
from natal.pruning.masked import masked

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def compact(model: M, mask: Mask, example: Example | None = None) -> M:
    """Return the smaller plain module computing what ``model`` computes under ``mask``, in its present mode.

    A unit goes if it has no kept outgoing weight, or if it is constant (no path from the input) and every
    reader can fold the constant into its bias; a layer made without a bias gains one if it must. Folding is
    exact or it is not done: units before a zero-padded convolution go only if they are zero there, units
    before batch norm are folded only in evaluation mode. Call ``model.eval()`` first to deploy; to train on,
    use `compact_training`.

    ``model`` may be the network as initialised, what `natal.apply` made of it, trained or not, or one pruned
    by ``torch.nn.utils.prune``; see `natal.pruning.flow.unmasked`. It is read with ``torch.fx``, never changed.
    Understood: linear layers, convolutions (ungrouped or depthwise), batch norm, pointwise activations,
    pooling, dropout, flatten, concatenation, additions (units tied by an addition go together or not at all).
    Every other operation keeps the full width of what it touches; where that keeps a constant unit in place,
    one UserWarning names each operation. If nothing can go, the result is an equal copy. Inputs are taken to
    be (rows, features) or (rows, channels, positions...); give an ``example`` input (a tensor, or a tuple of
    arguments) if they are not, and the two networks are also compared on it. Raises NatalError if the mask
    does not fit the model or ``torch.fx`` cannot follow its forward pass.
    """
    small, _ = _shrink(model, mask, example, training=False)
    return small


class Compacted(NamedTuple):
    """A smaller network with what is needed to train it on.

    ``model``: the network. ``mask``: its mask, cut to size; keep applying it. ``optimizer``: the optimiser
    over its parameters with the state cut to size, or None if none was given.
    """

    model: nn.Module
    mask: Mask
    optimizer: Optimizer | None


def compact_training(
    model: nn.Module, mask: Mask, optimizer: Optimizer | None = None, example: Example | None = None
) -> Compacted:
    """Return the smaller network that trains like ``model`` under ``mask``: the same losses, step for step.

    Only units that training can never wake are removed: those with no kept outgoing weight, and those
    that are zero and stay zero because their bias is masked or absent too. A unit with a kept bias stays,
    since its bias learns. Whatever the optimiser holds per parameter (momentum, Adam's moments) is cut
    with the parameter; ``optimizer`` and ``model`` themselves are left alone. The promise holds for
    optimisers that treat every number alone, as SGD and Adam do, and for networks without dropout, which
    draws other numbers on another width. Raises NatalError as `compact` does, or if the optimiser holds a
    tensor that is not a parameter of the model.
    """
    small, cuts = _shrink(model, mask, example, training=True)
    parts = ({name: cuts.apply(name, t) for name, t in part.items()} for part in (mask.weights, mask.biases))
    smaller = None if optimizer is None else _shrink_optimizer(optimizer, model, small, cuts)
    return Compacted(small, Mask(*parts), smaller)


@dataclass
class _Cuts:
    """Which rows and columns of which parameter or buffer stay; those not named stay whole."""

    kept: dict[str, tuple[Tensor, Tensor | None]]

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        rows, columns = self.kept.get(name, (None, None))
        for axis, stays in enumerate((rows, columns)):
            if stays is not None and not stays.all():
                tensor = tensor.index_select(axis, stays.nonzero().flatten().to(tensor.device))
        return tensor


def _shrink(model: M, mask: Mask, example: Example | None, training: bool) -> tuple[M, _Cuts]:
    small = masked(model, mask)
    flow = trace(small, mask, example, training)
    if flow.obstacles:
        warnings.warn(
            f"constant units of this {type(model).__name__} stay in place, because of "
            + "; ".join(f"{name}: {why}" for name, why in flow.obstacles.items()),
            stacklevel=3,
        )
    whole = copy.deepcopy(small) if example is not None else None
    needed = flow.needed()
    cuts = _plan(flow, needed)
    modules = dict(small.named_modules())
    with torch.no_grad():
        for layer in flow.layers:
            _fold(modules[layer.name], layer, needed)
        _cut(small, cuts)
    for layer in flow.layers:
        _declare(modules[layer.name])
    for name, _, _ in flow.channelwise:
        _declare(modules[name])
    if whole is not None and example is not None:
        _compare(whole, small, example)
    return small, cuts


def _plan(flow: Flow, needed: Tensor) -> _Cuts:
    kept: dict[str, tuple[Tensor, Tensor | None]] = {}
    for layer in flow.layers:
        rows = needed[layer.units]
        kept[f"{layer.name}.weight"] = rows, None if layer.incoming is None else needed[layer.incoming.units]
        kept[f"{layer.name}.bias"] = rows, None
    for name, signal, _ in flow.channelwise:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            kept[f"{name}.{entry}"] = needed[signal.units], None
    return _Cuts(kept)


def _fold(module: nn.Module, layer: Layer, needed: Tensor) -> None:
    """Add to the bias what the inputs about to go contribute: gain @ value, zero for those nobody reads."""
    assert isinstance(module, nn.Linear | Convolution)
    if layer.incoming is None:
        return
    going = ~needed[layer.incoming.units] & layer.foldable()
    constant = layer.gain[:, going] @ layer.incoming.value[going]
    if not constant[needed[layer.units]].any():
        return
    weight = module.weight
    if module.bias is None:
        module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)
    module.bias.copy_(module.bias.double() + constant.to(weight.device))


def _cut(model: nn.Module, cuts: _Cuts) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        smaller = cuts.apply(name, tensor)
        if smaller is not tensor:
            owner, _, entry = name.rpartition(".")
            if isinstance(tensor, nn.Parameter):
                smaller = nn.Parameter(smaller.clone(), requires_grad=tensor.requires_grad)
            setattr(model.get_submodule(owner), entry, smaller)


def _declare(module: nn.Module) -> None:
    """Make the sizes a module states agree with its parameters."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        if module.groups > 1:  # depthwise
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, BATCH_NORMS):
        for entry in (module.weight, module.running_mean):
            module.num_features = module.num_features if entry is None else len(entry)


def _compare(whole: nn.Module, small: nn.Module, example: Example) -> None:
    """Raise NatalError unless both networks agree on the example, in evaluation mode."""
    with torch.no_grad(), torch.random.fork_rng():
        before, after = (
            [
                t
                for t in pytree.tree_leaves(copy.deepcopy(net).eval()(*arguments(example)))
                if isinstance(t, Tensor)
            ]
            for net in (whole, small)
        )
    for a, b in zip(before, after, strict=True):
        tolerance = torch.finfo(a.dtype).eps ** 0.5 if a.is_floating_point() else 0
        if a.shape != b.shape or (a - b).abs().max() > tolerance * (1 + a.abs().max()):
            raise NatalError(
                f"the smaller {type(whole).__name__} does not agree with the masked one on the example; "
                "this is natal's mistake, please report it"
            )


def _shrink_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module, cuts: _Cuts) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise NatalError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    own = dict(small.named_parameters())
    names = {
        id(parameter): name if name in own else name.removesuffix("_orig")  # torch.nn.utils.prune's name
        for name, parameter in model.named_parameters()
    }
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in names for parameter in held):
        raise NatalError(
            f"the optimizer holds a tensor that is no parameter of this {type(model).__name__}; "
            "make it with optimizer(model.parameters())"
        )
    # deepcopy, told that the small parameters are the copies of the large ones: works for any optimiser class
    smaller = copy.deepcopy(optimizer, {id(p): small.get_parameter(names[id(p)]) for p in held})
    for parameter in held:
        name = names[id(parameter)]
        state = smaller.state.get(small.get_parameter(name), {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = cuts.apply(name, value)
    return smaller


@dataclass(frozen=True)
class Savings:
    """What a smaller network saves; every pair is (before, after), and ``str()`` prints the table.

    ``parameters``: their number. ``multiply_adds``: of linear and convolution layers, for one row of input.
    ``seconds``: median time of one forward pass of the example. ``layers``: by name, ((parameters before,
    after), (multiply-adds before, after)). ``rows``: in the example.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    seconds: tuple[float, float]
    layers: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    rows: int

    def __str__(self) -> str:
        lines = [("", "parameters", "", "multiply-adds", "")]
        for name, (parameters, work) in [
            *self.layers.items(),
            ("total", (self.parameters, self.multiply_adds)),
        ]:
            lines.append((name, *_pair(parameters), *_pair(work)))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        table = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        before, after = self.seconds
        table.append(
            f"forward pass of {self.rows} rows: {before * 1e3:.3f} ms -> {after * 1e3:.3f} ms, "
            f"{before / after:.2f} times as fast"
        )
        return "\n".join(line.rstrip() for line in table)


def savings(before: nn.Module, after: nn.Module, example: Example, repeats: int = 30) -> Savings:
    """Count and time two networks on ``example``, in evaluation mode, without changing them.

    Multiply-adds are counted from the shapes that linear and convolution modules see. Latency is the median
    of ``repeats`` runs each, taken in turn so that a busy machine slows both alike. Raises NatalError if
    ``repeats`` is below 1 or a network cannot be run on the example.
    """
    if repeats < 1:
        raise NatalError(f"repeats must be at least 1, got {repeats}")
    nets = [copy.deepcopy(net).eval() for net in (before, after)]
    inputs = arguments(example)
    rows = len(next(a for a in inputs if isinstance(a, Tensor)))
    work = [_multiply_adds(net, inputs) for net in nets]
    sizes = [
        {name: sum(p.numel() for p in net.get_submodule(name).parameters()) for name in w}
        for net, w in zip(nets, work, strict=True)
    ]
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for net, taken in zip(nets, times, strict=True):
                _synchronize(inputs)
                start = time.perf_counter()
                net(*inputs)
                _synchronize(inputs)
                taken.append(time.perf_counter() - start)
    return Savings(
        parameters=_both(sum(p.numel() for p in net.parameters()) for net in nets),
        multiply_adds=_both(sum(w.values()) // rows for w in work),
        seconds=_both(statistics.median(taken[1:]) for taken in times),  # the first run warms up
        layers={
            name: (_both(size.get(name, 0) for size in sizes), _both(w.get(name, 0) // rows for w in work))
            for name in {**work[0], **work[1]}
        },
        rows=rows,
    )


def _multiply_adds(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    counted: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(module.weight, Tensor)
            counted[name] = counted.get(name, 0) + output.numel() * module.weight[0].numel()

        return hook

    named = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | Convolution)]
    hooks = [module.register_forward_hook(count(name)) for name, module in named]
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        raise NatalError(
            f"{type(model).__name__} cannot be run on the example: {first_line(error)}"
        ) from error
    for hook in hooks:
        hook.remove()
    return counted


def _synchronize(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(a, Tensor) and a.is_cuda for a in inputs):
        torch.cuda.synchronize()


def _both(values: Iterable[T]) -> tuple[T, T]:
    before, after = values
    return before, after


def _pair(pair: tuple[int, int]) -> tuple[str, str]:
    before, after = pair
    return f"{before:,} -> {after:,}", f"{100 * (1 - after / before):.1f} % less" if before else ""
