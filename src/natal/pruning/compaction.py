"""The physically smaller network that computes the same function as a masked one.

`compact` keeps the *function*: it also removes units that have become constant, folding what they contributed
into the next layer's bias. `compact_training` keeps the *training*: it removes only what never receives or
passes on a gradient, and takes the optimiser's state along. Units go in the groups that `natal.pruning.graph` finds;
single weights inside a kept unit stay as zeros, which no dense kernel can exploit.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from natal.errors import NatalError, first_line
from natal.pruning.graph.capture import (
    Example,
    arguments,
    made_example,
    on_cpu,
    rows_of,
    tensors_in,
)
from natal.pruning.graph.exact import LayerNorm, MultiheadAttention, Widened, gets_narrow
from natal.pruning.graph.reader import axes_of
from natal.pruning.graph.units import Graph, by_reason, read
from natal.pruning.mask import Mask
from natal.pruning.masked import masked

M = TypeVar("M", bound=nn.Module)


def compact(model: M, mask: Mask, example: Example | None = None, *, renormalise: bool = False) -> M:
    """Return the smaller plain module computing what ``model`` computes under ``mask``, in its present mode.

    A unit goes if it has no kept outgoing weight, or if it is constant (no path from the input) and every
    reader can fold the constant into its bias; a layer made without a bias gains one if it must. Units that are
    added, concatenated, multiplied or otherwise tied go together or not at all. Folding is exact or it is not done:
    units before a zero-padded convolution go only if they are zero there, units before batch norm are folded
    only in evaluation mode. Call ``model.eval()`` first to deploy; to train on, use `compact_training`.

    ``model`` may be the network as initialised, what `natal.apply` made of it, trained or not, or one pruned by
    ``torch.nn.utils.prune``. It is run once, never changed; ``example`` is what it is called with (a tensor, a tuple
    of arguments, a mapping of named ones), needed unless the mask knows the shapes or the model begins with a linear
    layer. The result is the caller's own kind of module with smaller layers. It is compared with the masked network,
    in float64 at two batch sizes; where a group of units cannot be cut, because the model's own code states its
    size, it stays whole and one UserWarning names it. Norms over units divide by the old width still, in a small
    module of natal's; ``renormalise=True`` leaves plain ones, and with them another function. Raises NatalError if the
    mask does not fit the model or the model cannot be run.
    """
    shrunk = shrink(model, mask, example, training=False, renormalise=renormalise)
    shrunk.warn(model)
    small: M = shrunk.model
    return small


@dataclass
class Shrunk:
    """A smaller network and what was cut of each parameter and buffer: per axis, which entries stay.

    ``told``: what stays although the mask leaves nothing of it, and why. ``refused``: of it, the axes of parameters
    whose units the model's own code does not let go. ``confessed``: how the function has changed, if it has.
    """

    model: Any
    kept: Mapping[str, Sequence[Tensor]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    refused: Collection[tuple[str, int]] = ()
    confessed: str = ""

    def warn(self, model: nn.Module) -> None:
        """Say in one warning what stays, in another that the function has changed; for the caller's caller."""
        if self.told:
            stays = f"constant units of this {type(model).__name__} stay in place, because of {by_reason(self.told)}"
            warnings.warn(stays, stacklevel=3)
        if self.confessed:
            warnings.warn(self.confessed, stacklevel=3)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is left of a tensor in the shape of a parameter."""
        return cut(tensor, self.kept.get(self.aliases.get(name, name), ()))


@on_cpu
def cut(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Return a tensor without the entries along each axis that do not stay."""
    for axis, stays in enumerate(kept):
        if not stays.all():
            tensor = tensor.index_select(axis, stays.nonzero().flatten().to(tensor.device))
    return tensor


def example_for(model: nn.Module, mask: Mask, example: Example | None, purpose: str) -> Example:
    """Return the example given, or one of the shapes that the mask knows, or one for a first linear layer."""
    if example is not None:
        return example
    if mask.inputs:
        return made_of_shapes(mask.inputs, model)
    return made_example(model, purpose)


@on_cpu
def made_of_shapes(inputs: Mapping[str, Any], model: nn.Module) -> Example:
    """Return random inputs of recorded shapes; whole numbers are 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def made(entry: Any) -> Any:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
            return entry
        dtype = getattr(torch, entry[0])
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(tuple(entry[1]), generator=generator, dtype=dtype).to(device)
        return torch.randint(2, tuple(entry[1]), generator=generator).to(device, dtype)

    if all(name.isdigit() for name in inputs):
        return tuple(made(inputs[name]) for name in sorted(inputs, key=int))
    return {name: made(entry) for name, entry in inputs.items()}


def shrink(
    model: nn.Module, mask: Mask, example: Example | None, *, training: bool, renormalise: bool = False
) -> Shrunk:
    """Return the smaller network; see `compact` and `natal.compact_training`."""
    whole = masked(model, mask)
    given, example = example, example_for(whole, mask, example, "compact")
    try:
        graph = read(whole, example, mask.items(), training)
    except NatalError as error:
        if given is not None or not mask.inputs:
            raise
        raise NatalError(
            f"{error} (made of two rows, as the mask knows its inputs); pass an example"
        ) from error
    if graph.found.heads and mask.units:
        # a mask may have made heads narrower instead of fewer: what loses more is what was meant
        other = read(whole, example, mask.items(), training, inward=True)
        names = [graph.alias[name] for name, _ in whole.named_parameters()]
        graph = min((graph, other), key=lambda g: g.size(g.needed(), names))
    trials = _Trials(whole, mask, graph, example, training, renormalise)
    needed = trials.best(graph.needed())
    small = trials.build(needed)
    small.told = _told(graph, trials)
    small.refused = {place for key in trials.refused for place in key}
    small.confessed = _confession(graph, needed, whole) if renormalise else ""
    return small


class _Trials:
    """Builds smaller networks and finds the largest set of groups whose removal leaves the function alone."""

    def __init__(
        self, whole: nn.Module, mask: Mask, graph: Graph, example: Example, training: bool, renormalise: bool
    ) -> None:
        self.whole, self.mask, self.graph, self.example = whole, mask, graph, example
        self.training, self.renormalise = training, renormalise
        self.refused: dict[tuple[tuple[str, int], ...], str] = {}
        self.error = ""
        self.renamed = False
        # (class of module, attribute) of the numbers that follow the cut, and of those that shall not
        self.numbers: set[tuple[type, str]] = set()
        self.spared: set[tuple[type, str]] = set()
        self.judge = _Judge(whole, example, training or whole.training, renormalise)

    def best(self, needed: Tensor) -> Tensor:
        """Return which classes stay, once every group whose removal fails is kept whole."""
        root = self.graph.root
        units = root.unique().tolist()  # type: ignore[no-untyped-call]
        staying = [unit for unit in units if needed[unit]]
        going = [unit for unit in units if not needed[unit]]
        if not going:
            return needed
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for unit in going:
            groups.setdefault(self.graph.touches[unit], []).append(unit)
        if self.works(needed):
            return needed
        self.renamed = True
        if self.works(needed):
            return needed
        for pair in sorted(
            self.numbers, key=repr
        ):  # one of them may be a width by chance, as an image's size
            self.spared = {pair}
            if self.works(needed):
                return needed
        self.spared = set()
        by_kind: dict[str, list[tuple[tuple[str, int], ...]]] = {}
        for key in groups:
            kind = " ".join(re.sub(r"\d+", "N", f"{name}/{axis}") for name, axis in key)
            by_kind.setdefault(kind, []).append(key)
        good: list[tuple[tuple[str, int], ...]] = []

        def keeping(keys: Iterable[tuple[tuple[str, int], ...]]) -> Tensor:
            allowed = {unit for key in keys for unit in groups[key]}
            return self.graph.needed([*staying, *(unit for unit in going if unit not in allowed)])

        def add(keys: list[tuple[tuple[str, int], ...]], deep: bool) -> None:
            for renamed in (False, True):
                self.renamed = renamed
                if self.works(keeping([*good, *keys])):
                    good.extend(keys)
                    return
            if len(keys) == 1:
                self.refused[keys[0]] = self.error
            elif deep:
                middle = len(keys) // 2
                add(keys[:middle], deep)
                add(keys[middle:], deep)

        for keys in by_kind.values():
            add(keys, deep=True)
        return keeping(good)

    def works(self, needed: Tensor) -> bool:
        """Return whether a network with these classes can be built and computes the same."""
        try:
            small = self.build(needed, self.judge.whole).model
            self.error = self.judge.differs(small)
        except Exception as error:  # whatever the caller's code raises on another width
            self.error = f"without them its code fails: {first_line(error)}"
        return not self.error

    def build(self, needed: Tensor, whole: nn.Module | None = None) -> Shrunk:
        """Return the network in which only these classes are left."""
        if whole is None:
            small = copy.deepcopy(self.whole)
        else:  # a trial shares what is not cut
            small = copy.deepcopy(whole, {id(t): t for t in [*whole.parameters(), *whole.buffers()]})
        kept: dict[str, Sequence[Tensor]] = dict(self.graph.kept(needed))
        modules = dict(small.named_modules())
        with torch.no_grad():
            for step in self.graph.found.steps:
                if step.module and step.kept is not None and not step.zero_only:
                    _fold(modules[step.module], step, self.graph, needed, kept)
            _norms(small, self.graph, needed, kept, self.renormalise)
            _cut(small, kept)
        _declare(small, self.graph, kept, needed)
        _attention(small, self.graph.inward)
        if self.renamed:
            self.numbers = _rename(small, self.graph, needed, self.spared)
        aliases = {alias: first for first, names in _names(self.whole).items() for alias in names}
        return Shrunk(small, kept, aliases)


def _named(key: Sequence[tuple[str, int]], graph: Graph) -> str:
    """Return the weight that a group goes by: that of the first layer that makes it, or else a table."""
    makers = [name for name, axis in key if graph.found.rows.get(name) == axis] or [key[0][0]]
    return next((name for name in makers if name in graph.found.columns), makers[0])


def _told(graph: Graph, trials: _Trials) -> dict[str, str]:
    """Return what stays although the mask leaves nothing of it, and why."""
    told = {f"{_named(key, graph)!r}": why for key, why in trials.refused.items()}
    masks = {graph.alias[name]: kept for name, kept in trials.mask.items().items()}
    removed = torch.zeros_like(graph.root, dtype=torch.bool)
    for name, axis in graph.found.rows.items():
        kept = masks.get(name)
        if kept is None or axis >= kept.ndim or kept.movedim(axis, 0).flatten(1).any(1).all():
            continue
        gone = graph.along(name, axis)[~kept.movedim(axis, 0).flatten(1).any(1).cpu()]
        removed[gone] = bool(trials.mask.units)
        if (gone == graph.fixed).any():
            why = graph.reason(name, axis)
            if why and why != "output":
                told.setdefault(f"{name!r}", why)
    needed = graph.needed()
    for step in graph.found.steps:
        unit = graph.root[step.reads]
        known = step.value.isfinite() & ~step.foldable() | removed[unit]
        if not step.weight and not trials.training and (needed[unit] & (unit != graph.fixed) & known).any():
            told.setdefault(_who(step.module), "it runs over units, so that a constant one counts")
    return told


def _who(module: str) -> str:
    return f"{module!r}" if module else "the model itself"


def _confession(graph: Graph, needed: Tensor, whole: nn.Module) -> str:
    """Return which norms compute something else, having been told to, or ""."""
    changed = [name for name, (_, atoms) in graph.found.norms.items() if not needed[graph.root[atoms]].all()]
    if not changed:
        return ""
    return (
        f"renormalise=True: the smaller {type(whole).__name__} computes another function than the masked one, "
        f"because {len(changed)} of its norms divide by fewer units now, such as {changed[0]!r}"
    )


class _Judge:
    """Compares a smaller network with the masked one, in double precision, at two batch sizes.

    Code that insists on its own precision or on one batch size is compared at that. Raises NatalError if a network
    that ran once does not run again, for then nobody can tell.
    """

    def __init__(self, whole: nn.Module, example: Example, training: bool, renormalise: bool) -> None:
        self.renormalise = renormalise
        self.modes = [False, True] if training else [False]
        self.flags = _flags(whole)
        copies: tuple[tuple[Any, Any], ...] = ((_precise, _double), (copy.deepcopy, lambda given: given))
        for make, to in copies:
            self.whole: nn.Module = make(whole)
            for few, more in ((rows_of(example, 2), rows_of(example, 3)), (example, example)):
                self.examples: list[Example] = [to(few), _lively(to(more))]
                self.answers = {
                    (mode, k, flag): self._run(self.whole, mode, k, flag)
                    for mode in self.modes
                    for k in range(len(self.examples))
                    for flag in (None, *self.flags)
                }
                plain = [answer for (_, _, flag), answer in self.answers.items() if flag is None]
                if not all(isinstance(answer, str) for answer in plain):
                    return
        raise NatalError(
            f"{type(whole).__name__} runs once and not again, so that nothing can be compared with it: {plain[0]}"
        )

    def differs(self, small: nn.Module) -> str:
        """Return how the smaller network, in double precision too, differs, or ""."""
        for (mode, k, flag), before in self.answers.items():
            if isinstance(before, str):
                continue
            after = self._run(small, mode, k, flag)
            if isinstance(after, str):
                return f"without them its code fails: {after}"
            if self.renormalise:
                continue
            if len(after) != len(before):
                return "it returns another number of tensors"
            for a, b in zip(before, after, strict=True):
                if a.shape != b.shape:
                    return f"an output has shape {tuple(b.shape)}, not {tuple(a.shape)}"
                if not a.is_floating_point() and not a.is_complex():
                    continue
                tolerance = (
                    1e-9 if a.dtype in (torch.float64, torch.complex128) else torch.finfo(a.dtype).eps ** 0.5
                )
                size = a[a.isfinite()].abs().max() if a.isfinite().any() else 0.0
                if not (((a - b).abs() <= tolerance * (1 + size)) | (a == b) | (a.isnan() & b.isnan())).all():
                    return "the smaller network computes something else" + (f" with {flag}" if flag else "")
        return ""

    def _run(self, net: nn.Module, training: bool, k: int, flag: str | None) -> list[Tensor] | str:
        before = [(module, module.training, dict(module._buffers)) for module in net.modules()]
        buffers = {buffer: buffer.clone() for buffer in net.buffers()}
        net.train(training)
        for module in net.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        args, kwargs = arguments(self.examples[k])
        if flag is not None:
            name, _, value = flag.partition("=")
            kwargs = {**kwargs, name: value == "True"}
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.clone(), (args, kwargs))
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.default_generator.manual_seed(0)
                result = net(*args, **kwargs)
        except Exception as error:
            return first_line(error)
        finally:
            for module, mode, own in before:
                module.training = mode
                module._buffers.update(own)
            for buffer, values in buffers.items():
                buffer.copy_(values)
        return tensors_in(result)


def _flags(model: nn.Module) -> list[str]:
    """Return the other values of the boolean arguments of a model's forward pass, which decide what it does."""
    import inspect

    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [f"{p.name}={not p.default}" for p in parameters if isinstance(p.default, bool)]


def _precise(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    # a complex parameter would lose its imaginary part
    for module in net.modules():
        for store in (module._parameters, module._buffers):
            for tensor in store.values():
                if tensor is not None:
                    with torch.no_grad():
                        tensor.data = _wide(tensor.data)
    return net


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _double(example: Example) -> Example:
    args: Any
    kwargs: Any
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: _wide(t.detach()), arguments(example))
    both: Example = kwargs or args
    return both


def _lively(example: Example) -> Example:
    """Return an example with noise on its numbers, for what is given may be all zeros."""
    generator = torch.Generator().manual_seed(0)

    def noisy(t: Tensor) -> Tensor:
        if not t.is_floating_point() and not t.is_complex():
            return t
        return t + torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu").to(t.device)

    args: Any
    kwargs: Any
    args, kwargs = pytree.tree_map_only(Tensor, noisy, arguments(example))
    both: Example = kwargs or args
    return both


# --- cutting --------------------------------------------------------------------------------------------------


def _names(model: nn.Module) -> dict[str, list[str]]:
    """Return all names of every parameter and buffer, by its first."""
    names: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return names


@on_cpu
def _fold(
    module: nn.Module, step: Any, graph: Graph, needed: Tensor, kept: dict[str, Sequence[Tensor]]
) -> None:
    """Add to the bias what the inputs about to go contribute: gain @ value, zero for those nobody reads."""
    going = ~needed[graph.root[step.reads]] & step.foldable() & (step.value != 0)
    # a large weight is known in its own precision, which sums of products must not have
    gain, value = _wide(step.gain[:, going]), _wide(step.value[going])
    wide = torch.promote_types(gain.dtype, value.dtype)
    constant = torch.where(step.kept[:, going], gain, 0).to(wide) @ value.to(wide)
    stays = needed[graph.root[step.writes]]
    if not constant[stays].any():
        return
    weight: Any = module.weight
    if module.bias is None:
        module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)
        kept[f"{step.module}.bias"] = [stays]
    bias: Any = module.bias
    folded = (bias.to(constant.dtype).cpu() + constant).to(bias)
    module.bias = nn.Parameter(folded, requires_grad=bias.requires_grad)


def _norms(
    small: nn.Module, graph: Graph, needed: Tensor, kept: dict[str, Sequence[Tensor]], renormalise: bool
) -> None:
    """Put norms whose units go into modules that divide by the old width still."""
    if renormalise:
        return
    for name, (axis, atoms) in graph.found.norms.items():
        stays = needed[graph.root[atoms]]
        if stays.all():
            continue
        owner, _, leaf = name.rpartition(".")
        module: Any = small.get_submodule(name)
        if gets_narrow(module, axis):
            module.__class__ = LayerNorm
            module.__dict__["width"] = module.normalized_shape[0]
            continue
        for entry in [n for n, _ in [*module.named_parameters(), *module.named_buffers()]]:
            kept.pop(f"{name}.{entry}", None)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        setattr(small.get_submodule(owner), leaf, Widened(module, stays.to(device), axis))


def _attention(small: nn.Module, inward: bool) -> None:
    """Let attention whose parts are no longer of one width know what is left of it."""
    module: Any
    for module in small.modules():
        if type(module) in (nn.MultiheadAttention, MultiheadAttention):
            out: nn.Linear = module.out_proj
            head = module.head_dim
            if (module.embed_dim, module.embed_dim) == tuple(out.weight.shape):
                continue
            extra = module.bias_k is not None or module.bias_v is not None or module.add_zero_attn
            if extra or out.weight.shape[1] % (module.num_heads if inward else head):
                continue  # its own forward will refuse, and what cannot be cut stays
            module.__class__ = MultiheadAttention
            module.embed_dim = out.weight.shape[0]
            if not inward:
                module.num_heads = out.weight.shape[1] // head
    for module in small.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            exact = (module.self_attn, module.norm1, module.norm2)
            if any(isinstance(m, LayerNorm | MultiheadAttention | Widened) for m in exact):
                module.activation_relu_or_gelu = 0  # its fused kernel would read their weights, not call them


def _cut(small: nn.Module, kept: Mapping[str, Sequence[Tensor]]) -> None:
    for first, names in _names(small).items():
        if first not in kept:
            continue
        owner, _, entry = first.rpartition(".")
        tensor: Any = getattr(small.get_submodule(owner), entry)
        smaller = cut(tensor, kept[first])
        if smaller is tensor:
            continue
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller.detach().clone(), requires_grad=tensor.requires_grad)
        for name in names:
            owner, _, entry = name.rpartition(".")
            setattr(small.get_submodule(owner), entry, smaller)


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _declare(small: nn.Module, graph: Graph, kept: Mapping[str, Sequence[Tensor]], needed: Tensor) -> None:
    """Make the sizes that modules state agree with their parameters, or else with the units that pass."""
    module: Any
    for name, module in small.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.modules.conv._ConvNd):
            out, fan = module.weight.shape[:2]
            if module.transposed:
                out, fan = fan * module.groups, out
                module.out_channels, module.in_channels = out, fan
                continue
            if f"{prefix}weight" in graph.found.by_group:
                module.groups = module.groups * out // module.out_channels
            module.out_channels, module.in_channels = out, fan * module.groups
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(module.weight)
        elif isinstance(module, nn.LayerNorm):
            if module.weight is not None and len(module.normalized_shape) == 1:
                module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.RMSNorm):
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            passing = [m for m in graph.found.passing.get(name, []) if axes_of(m) == {1}]
            for entry in (module.weight, module.running_mean):
                module.num_features = module.num_features if entry is None else len(entry)
            if module.weight is None and module.running_mean is None and passing:
                module.num_features = int(needed[graph.root[passing[-1]]].sum())
        elif isinstance(module, nn.GroupNorm):
            if module.weight is not None:
                module.num_channels = len(module.weight)
        elif isinstance(module, nn.Transformer) and isinstance(module.encoder, nn.TransformerEncoder):
            module.d_model = module.get_parameter("encoder.layers.0.linear1.weight").shape[1]
        elif isinstance(module, nn.RNNBase):
            gates, module.input_size = module.get_parameter("weight_ih_l0").shape
            module.hidden_size = gates // _GATES[module.mode]
            module.proj_size = len(module.get_parameter("weight_hr_l0")) if module.proj_size else 0
            module.flatten_parameters()
        elif isinstance(module, nn.RNNCellBase):
            module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


def _rename(
    small: nn.Module, graph: Graph, needed: Tensor, spared: Collection[tuple[type, str]]
) -> set[tuple[type, str]]:
    """Let the numbers by which modules name their widths, such as a number of heads, follow the cut, but for those
    spared; return which did, by class and attribute."""
    followed = set()
    modules = dict(small.named_modules())
    for name, layers in graph.found.passing.items():
        module = modules.get(name)
        if module is None or type(module).__module__.startswith(("torch.nn.", "natal.pruning.")):
            continue  # those know their sizes already
        sizes: dict[int, int] = {}
        for layer in layers:
            stays = needed[graph.root[layer]]
            for axis in axes_of(layer):
                across = [a for a in range(layer.ndim) if a != axis]
                left = int((stays.any(dim=across) if across else stays).sum())
                if left != layer.shape[axis]:
                    sizes[layer.shape[axis]] = left
        for attribute, value in list(vars(module).items()):
            pair = type(module), attribute
            if (
                isinstance(value, int)
                and not isinstance(value, bool)
                and value in sizes
                and pair not in spared
            ):
                setattr(module, attribute, sizes[value])
                followed.add(pair)
    return followed


__all__ = ["NatalError", "Shrunk", "compact", "cut", "example_for", "made_of_shapes", "shrink"]
