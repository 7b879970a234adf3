"""What a model does with an example, operation by operation: the tape that everything else here reads.

``capture`` runs a private copy of the model once and writes down every ATen operation with the tensors it met,
through ``torch.utils._python_dispatch``. What runs can be captured: there is no symbolic tracing to survive, a
composite function (attention, an LSTM, an einsum) arrives as the few operations it is made of, and one forward
pass of two rows is all it costs.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from natal.errors import NatalError, first_line
from natal.pruning.mask import first_layer
from natal.pruning.masked import duplicate

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model is called with: one tensor, the tuple of its arguments, or a mapping of named ones."""


@dataclass(frozen=True)
class Ref:
    """A tensor on the tape, by its number."""

    slot: int


@dataclass(frozen=True)
class Operation:
    """One operation: its arguments with `Ref` in place of tensors, the tensors it made, the module that ran it, by
    name, and whether an output depends on it. ``op``: of ATen, `WRITTEN`, or a class of modules that ran as one."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]
    module: str = ""
    alive: bool = True

    def given(self) -> list[int]:
        """Return the slots of its arguments."""
        return [v.slot for v in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(v, Ref)]


WRITTEN = "written"
"""The operation of a tensor whose memory another one wrote to: (the tensor, what was written, which of the tensor's
axes each of the other's lies along) -> the tensor."""


@dataclass
class Tape:
    """A forward pass in order.

    ``shapes``, ``widths``: of every tensor, by slot, and the bytes of each of its numbers. ``registered``: the
    slots of parameters and buffers, by the first of their names. ``aliases``: all names of shared ones.
    ``inputs``, ``outputs``: slots of the model's own. ``calls``: how often each module ran. ``received``,
    ``returned``: slots of the tensors that each module got and gave back in its last call. ``state``: names of
    parameters and buffers that the pass changed, so that the next one begins with other numbers.
    """

    operations: list[Operation] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    registered: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    received: dict[str, list[int]] = field(default_factory=dict)
    returned: dict[str, list[int]] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)

    def by_first(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return masks by the first name of each parameter; a mask may know a shared one by another."""
        found: dict[str, Tensor] = {}
        for first, names in self.aliases.items():
            for name in names:
                if name in masks:
                    found[first] = masks[name] & found[first] if first in found else masks[name]
        return found


F = TypeVar("F", bound=Callable[..., Any])


def on_cpu(function: F) -> F:
    """Let a function make its tensors on the CPU, whatever the caller's default device."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return cast(F, run)


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``example`` as the positional and named arguments a model is called with."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def made_example(model: nn.Module, purpose: str, *, counts: bool = False) -> Tensor:
    """Return an input for a model that begins with a linear layer (rows, or rows of tokens) or with a convolution
    (an image of the first size that fits: which channels go together is the same at any); raise NatalError if it
    begins with something else, or takes neither. ``counts``: the size matters, so that none is made up."""
    name, weight = first_layer(model)
    owner = model.get_submodule(name.rpartition(".")[0])
    shapes: list[tuple[int, ...]] = []
    if isinstance(owner, nn.Linear):
        # the layer registered first need not be the one that runs first
        widths = dict.fromkeys(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
        shapes = [(2, *tokens, width) for tokens in ((), (4,)) for width in widths]
    elif isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not counts:
        sides = SIDES if weight.ndim < 5 else range(1, 25)
        shapes = [(2, owner.in_channels, *[side] * (weight.ndim - 2)) for side in sides]
    made = _first_that_fits(model, weight, shapes)
    if made is None:
        raise NatalError(
            f"{purpose} needs an input of {type(model).__name__}, whose first layer {name!r} does not tell its "
            "shape; pass one"
        )
    return made


SIDES = (32, 28, 64, 224, *range(1, 65))
"""Sizes of images that are tried, the usual ones first."""


def _first_that_fits(model: nn.Module, like: Tensor, shapes: list[tuple[int, ...]]) -> Tensor | None:
    private = duplicate(model).eval()
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        example = torch.randn(shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                private(example)
        except Exception:  # whatever the model raises, the shape does not fit
            continue
        return example
    return None


def rows_of(example: Example, rows: int) -> Example:
    """Return the example with that many rows, the first ones over and over, if all its tensors have rows."""
    args, kwargs = arguments(example)
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    counts = {len(t) if t.ndim else 0 for t in tensors}
    if len(counts) != 1 or 0 in counts:
        return example
    index = torch.arange(rows, device="cpu") % counts.pop()
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t[index.to(t.device)], (args, kwargs))
    made: Example = kwargs or args
    return made


def shapes_of(example: Any) -> dict[str, Any]:
    """Return (dtype, shape) of every argument of two rows of an example, by position or name; {} if it holds
    more than tensors and plain values."""
    if example is None:
        return {}
    args, kwargs = arguments(rows_of(example, 2))
    named = {str(k): value for k, value in enumerate(args)} | kwargs
    shapes: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, Tensor):
            shapes[name] = [str(value.dtype).removeprefix("torch."), list(value.shape)]
        elif value is None or isinstance(value, bool | int | float | str):
            shapes[name] = value
        else:
            return {}
    return shapes


def capture(model: nn.Module, example: Example, closed: Collection[type] = ()) -> Tape:
    """Return the tape of ``model``, a private copy in the mode that matters, on ``example`` or two rows of it.

    ``closed``: classes of modules that are written down as one operation each, whatever happens inside. Raises
    NatalError if the model cannot be run on the example, or if its forward pass branches on values.
    """
    two = rows_of(example, 2)
    try:
        return _record(model, two, closed)
    except NatalError:
        raise
    except Exception as first:
        if two is example:
            raise _unfit(model, first) from first
    try:
        return _record(model, example, closed)
    except NatalError:
        raise
    except Exception as error:
        raise _unfit(model, error) from error


def _unfit(model: nn.Module, error: Exception) -> NatalError:
    return NatalError(f"{type(model).__name__} cannot be run on the example: {first_line(error)}")


def _record(model: nn.Module, example: Example, closed: Collection[type]) -> Tape:
    recorder = _Recorder(model, closed)
    names: dict[int, str] = {}
    registered = _registered(model)
    for name, tensor in registered.items():
        first = names.setdefault(id(tensor), name)
        recorder.tape.aliases.setdefault(first, []).append(name)
        if first == name:
            recorder.tape.registered[name] = recorder.slot(tensor)
    args, kwargs = arguments(example)
    # a copy, because a forward pass may write to its input
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    for tensor in tensors_in((args, kwargs)):
        recorder.tape.inputs.append(recorder.slot(tensor))
        if tensor.is_floating_point() or tensor.is_complex():
            recorder.of_input.add(recorder.slot(tensor))
    with _watched(model, recorder), plain_kernels(model), torch.no_grad(), torch.random.fork_rng(), recorder:
        outputs = model(*args, **kwargs)
    tape = recorder.tape
    after = _registered(model)
    tape.state = {n for n, t in registered.items() if after.get(n) is not t or _memory(t) in recorder.changed}
    tape.outputs = [recorder.slot(t) for t in tensors_in(outputs)]
    if not tape.outputs:
        raise NatalError(
            f"{type(model).__name__} returns no tensor but a {type(outputs).__name__}, so that nothing can be followed"
        )
    tape.operations = _alive(tape)
    return tape


def _registered(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by all their names."""
    buffers = model.named_buffers(remove_duplicate=False)
    return dict(model.named_parameters(remove_duplicate=False)) | dict(buffers)


def _alive(tape: Tape) -> list[Operation]:
    """Return the operations, marked by whether their results reach an output."""
    wanted, marked = set(tape.outputs), []
    for operation in reversed(tape.operations):
        alive = bool(wanted.intersection(operation.outputs))
        if alive:
            wanted.update(operation.given())
        marked.append(replace(operation, alive=alive))
    return marked[::-1]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in whatever a model returns: in containers, mappings, dataclasses and other objects.

    Not those of a cache, by the name of its class: what a transformer keeps of keys and values for its next call is
    as wide as the heads that are left.
    """
    found: list[Tensor] = []
    seen: set[int] = set()  # objects may know each other
    waiting = [value]
    while waiting:
        leaves = pytree.tree_leaves(waiting.pop())
        if len(leaves) > 1:
            waiting += reversed(leaves)
            continue
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type | ModuleType | Callable):
                seen.add(id(leaf))
                if any(kind.__name__.endswith("Cache") for kind in type(leaf).__mro__):
                    continue
                waiting.append(dict(leaf) if isinstance(leaf, Mapping) else _attributes(leaf))
    return found


def _attributes(thing: Any) -> list[Any]:
    """Return what an object holds, in its dictionary and in its slots."""
    slots = copyreg._slotnames(type(thing))  # type: ignore[attr-defined]
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Make attention and recurrent layers run as the operations they are made of, not as one fused kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            if recurrent:
                torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            if recurrent:
                torch._C._set_mkldnn_enabled(onednn)


@contextmanager
def _watched(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module is running, and what it gets and gives."""

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.running.append(name)
            tape = recorder.tape
            tape.calls[name] = tape.calls.get(name, 0) + 1
            tape.received[name] = [recorder.slot(t) for t in tensors_in((args, kwargs))]
            recorder.enter(module, args, kwargs)

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            recorder.running.pop()
            recorder.leave(module, name, output)
            recorder.tape.returned[name] = [recorder.slot(t) for t in tensors_in(output)]

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, gives every tensor a number, and writes both down."""

    def __init__(self, model: nn.Module, closed: Collection[type]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.closed = type(model).__name__, closed
        # of every closed module that is running, what it was called with; what happens inside is not written down
        self.inside: list[tuple[nn.Module, Any, Any]] = []
        self.tape = Tape()
        self.running: list[str] = []
        self.slots: Any = WeakTensorKeyDictionary()
        self.memory: dict[int, list[Any]] = {}
        self.of_input: set[int] = set()
        self.changed: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and guarding it would import the compiler, for a second

    def slot(self, tensor: Tensor) -> int:
        found = self.slots.get(tensor)
        return self.new(tensor) if found is None else int(found)

    def new(self, tensor: Tensor) -> int:
        self.tape.shapes.append(tuple(tensor.shape))
        self.tape.widths.append(tensor.element_size())
        number = len(self.tape.shapes) - 1
        if tensor not in self.slots:
            self.memory.setdefault(_memory(tensor), []).append(TensorWeakRef(tensor))
        self.slots[tensor] = number
        return number

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Close a module that is to be one operation."""
        if type(module) in self.closed:
            self.inside.append((module, *self._noted("", args, kwargs)))

    def leave(self, module: nn.Module, name: str, output: Any) -> None:
        """Write a closed module down, unless it lies in another one."""
        if not self.inside or self.inside[-1][0] is not module:
            return
        _, args, kwargs = self.inside.pop()
        if self.inside:
            return
        given = {ref.slot for ref in pytree.tree_leaves((args, kwargs)) if isinstance(ref, Ref)}
        made = tuple(self.new(t) for t in tensors_in(output))
        if given & self.of_input:
            self.of_input.update(made)
        self.tape.operations.append(Operation(type(module), args, kwargs, made, name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        depends = any(self.slots.get(t) in self.of_input for t in given)
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "equal") and depends:
            raise NatalError(
                f"cannot follow the forward pass of {self.model}: "
                + (f"{self.running[-1]!r}" if self.running and self.running[-1] else "it")
                + " branches on the values of its input, so that no graph holds for all inputs"
            )
        noted_args, noted_kwargs = self._noted(name, args, kwargs)
        result = func(*args, **kwargs)
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        written = _written(func, args, kwargs)
        mutated = {id(t) for t in written}
        fresh = [self.new(t) for t in made]
        if depends:  # how many places a packed sequence has is known from its lengths
            self.of_input.update(fresh[:1] if name == "_pack_padded_sequence" else fresh)
        module = self.running[-1] if self.running else ""
        self.tape.operations.append(Operation(func, noted_args, noted_kwargs, tuple(fresh), module))
        self.changed.update(map(_memory, written))
        for tensor in written:
            self._touch(tensor, mutated, module)
        return result

    def _noted(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Put numbers in place of tensors; what an indexing operation looks up is kept, for it says where
        numbers go."""

        def note(tensor: Tensor) -> Any:
            if name in INDEXING and tensor.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8):
                return tensor.detach().clone()
            return Ref(self.slot(tensor))

        head, rest = args[:1], args[1:]
        head = pytree.tree_map_only(Tensor, lambda t: Ref(self.slot(t)), head)
        noted: tuple[Any, Any] = pytree.tree_map_only(Tensor, note, ((*head, *rest), dict(kwargs)))
        return noted

    def _touch(self, tensor: Tensor, mutated: set[int], module: str) -> None:
        """Note that every other live tensor on this memory has changed too."""
        for reference in self.memory.get(_memory(tensor), []):
            other = reference()
            if other is not None and id(other) not in mutated:
                args = Ref(self.slot(other)), Ref(self.slot(tensor)), _axes_in(tensor, other)
                self.tape.operations.append(Operation(WRITTEN, args, {}, (self.new(other),), module))


INDEXING = {"index", "embedding", "gather", "index_select", "take_along_dim", "take"}
"""Operations whose integer arguments say which numbers to take."""


def _axes_in(view: Tensor, whole: Tensor) -> tuple[int | None, ...]:
    """Return along which axis of a tensor each axis of another on the same memory lies, None if along none."""
    if view.layout != torch.strided or whole.layout != torch.strided:
        return (None,) * view.ndim
    by_step = {
        step: axis
        for axis, (size, step) in enumerate(zip(whole.shape, whole.stride(), strict=True))
        if size > 1
    }
    return tuple(by_step.get(step) for step in view.stride())


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # no memory of its own: sparse, meta
        return -id(tensor)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return found
