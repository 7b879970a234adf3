"""The graph of a model's units: which go together, which stay and why, and which a masked network still needs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.graph.capture import Example, Tape, capture, on_cpu
from natal.pruning.graph.operations import RULES
from natal.pruning.graph.reader import FIXED, Reader, Reading, Step, axes_of, classes, components
from natal.pruning.masked import duplicate


@dataclass(frozen=True)
class Member:
    """What a group holds of one parameter or buffer: along ``axis``, entry i belongs to ``unit[i]``, -1 to none."""

    name: str
    axis: int
    unit: Tensor

    def stays(self, kept: Tensor) -> Tensor:
        """Return which entries along the axis stay, if ``kept`` says which units do."""
        return torch.where(self.unit >= 0, kept.cpu()[self.unit.clamp_min(0)], True)


@dataclass(frozen=True)
class Group:
    """Units that are cut together across layers: unit k of every member goes or stays as one.

    ``name``: its first layer's weight. ``units``: the class of each. ``members``: what belongs to them.
    ``makers``, ``readers``: members that are weights of layers which make the units, and which read them.
    ``reason``: why they cannot be cut, else "".
    """

    name: str
    units: Tensor
    members: tuple[Member, ...] = ()
    makers: tuple[Member, ...] = ()
    readers: tuple[Member, ...] = ()
    reason: str = ""

    def __len__(self) -> int:
        return len(self.units)


class Graph:
    """The units of one model, read once; see `Reading` for what was found."""

    @on_cpu
    def __init__(self, found: Reading, tape: Tape, inward: bool = False) -> None:
        shapes = {name: tape.shapes[slot] for name, slot in tape.registered.items()}
        self.found, self.shapes, self.inward = found, shapes, inward
        self.alias = {alias: first for first, names in tape.aliases.items() for alias in names}
        self._groups: dict[object, list[Group]] = {}
        root = classes(found, inward)
        # what no layer makes is no unit: the size of a kernel, the rows of a table
        made = torch.zeros_like(root, dtype=torch.bool)
        for name, axis in found.rows.items():
            start = found.base[name][axis]
            made[root[start : start + shapes[name][axis]]] = True
        self.root = torch.where(made[root], root, root[FIXED])

    def along(self, name: str, axis: int) -> Tensor:
        """Return the class of every entry along an axis of a parameter or buffer."""
        start = self.found.base[name][axis]
        return self.root[start : start + self.shapes[name][axis]]

    @cached_property
    def fixed(self) -> int:
        """The class of what stays."""
        return int(self.root[FIXED])

    @cached_property
    def touches(self) -> dict[int, tuple[tuple[str, int], ...]]:
        """What every class that is free has a part in: parameters with an axis, in order."""
        places = [(name, axis) for name, shape in self.shapes.items() for axis in range(len(shape))]
        by_class: dict[int, list[tuple[str, int]]] = {}
        for place in places:
            for unit in self.along(*place).unique().tolist():  # type: ignore[no-untyped-call]
                if unit != self.fixed:
                    by_class.setdefault(unit, []).append(place)
        return {unit: tuple(touched) for unit, touched in by_class.items()}

    @cached_property
    def reasons(self) -> dict[int, str]:
        """Why atoms stay, by their component before any was fixed."""
        reasons: dict[int, str] = {}
        for atoms, why in self.found.pins:
            for part in self.together[atoms].unique().tolist():  # type: ignore[no-untyped-call]
                if not reasons.get(part):
                    reasons[part] = why
        for layer, _, why in self.found.boxes:
            stays = layer[self.root[layer] == self.fixed]
            for part in self.together[stays].unique().tolist():  # type: ignore[no-untyped-call]
                reasons.setdefault(part, why)
        return reasons

    @cached_property
    def together(self) -> Tensor:
        """The component of every atom by what meets alone."""
        return components(self.found.joins, self.found.atoms)

    def reason(self, name: str, axis: int) -> str:
        """Return why entries along an axis stay: "output", a reason in words, or ""."""
        start = self.found.base[name][axis]
        parts = self.together[start : start + self.shapes[name][axis]].unique().tolist()  # type: ignore[no-untyped-call]
        found = [self.reasons.get(part, "") for part in parts]
        return next((why for why in found if why), "")

    @cached_property
    def taken_in(self) -> Tensor:
        """The components of what layers read."""
        taken = torch.zeros_like(self.together, dtype=torch.bool)
        for name, axis in self.found.columns.items():
            taken[self.together[self.found.base[name][axis] :][: self.shapes[name][axis]]] = True
        return taken

    def is_read(self, name: str, axis: int) -> bool:
        """Return whether a layer reads any of the entries along an axis."""
        start = self.found.base[name][axis]
        return bool(self.taken_in[self.together[start : start + self.shapes[name][axis]]].any())

    @on_cpu
    def groups(self, layers: Iterable[str] | None = None, left_alone: Iterable[str] = ()) -> list[Group]:
        """Return the groups of units that ``layers`` make, by weight, in order of execution.

        ``left_alone``: weights whose units stay.
        """
        asked = None if layers is None else tuple(layers), tuple(left_alone)
        if asked not in self._groups:
            self._groups[asked] = self._found_groups(*asked)
        return self._groups[asked]

    def _found_groups(self, layers: tuple[str, ...] | None, left_alone: tuple[str, ...]) -> list[Group]:
        stay = {self.fixed}
        for name in left_alone:
            if name in self.found.rows:
                stay |= set(self.along(name, self.found.rows[name]).tolist())
        wanted = None if layers is None else set(layers)
        seen: dict[tuple[tuple[str, int], ...], list[int]] = {}
        first: dict[tuple[tuple[str, int], ...], str] = {}
        whole: list[Group] = []
        for name, axis in self.found.rows.items():
            if wanted is not None and name not in wanted:
                continue
            mine = self.along(name, axis)
            free = [unit for unit in dict.fromkeys(mine.tolist()) if unit not in stay]
            if not free:
                why = self.reason(name, axis) or ("left alone" if int(mine[0]) != self.fixed else "output")
                if why == "output" and self.is_read(name, axis):
                    why = "the model returns them"
                whole.append(Group(name, torch.empty(0, dtype=torch.long), reason=why))
            for unit in free:
                key = self.touches[unit]
                if unit not in seen.setdefault(key, []):
                    seen[key].append(unit)
                    first.setdefault(key, name)
        found = []
        names: dict[str, int] = {}
        for key, units in seen.items():
            name = first[key]
            names[name] = names.get(name, 0) + 1
            label = name if names[name] == 1 else f"{name}#{names[name]}"
            found.append(self._group(label, torch.tensor(units), key, wanted))
        return found + whole

    def _group(
        self, name: str, units: Tensor, places: Sequence[tuple[str, int]], wanted: set[str] | None
    ) -> Group:
        number = {unit: k for k, unit in enumerate(units.tolist())}
        members = []
        for place in places:
            unit = torch.tensor([number.get(c, -1) for c in self.along(*place).tolist()])
            members.append(Member(*place, unit))
        order = {weight: k for k, weight in enumerate(self.found.rows)}
        makers = [
            m
            for m in members
            if self.found.rows.get(m.name) == m.axis and (wanted is None or m.name in wanted)
        ]
        makers.sort(key=lambda m: order[m.name])
        readers = [m for m in members if self.found.columns.get(m.name) == m.axis]
        readers.sort(key=lambda m: order.get(m.name, len(order)))
        return Group(name, units, tuple(members), tuple(makers), tuple(readers))

    # --- what a masked network needs ---------------------------------------------------------------------------

    @on_cpu
    def needed(self, also: Iterable[int] = ()) -> Tensor:
        """Return (atoms,) bool, by class: the units that a smaller model must keep to compute the same.

        A unit may go where each reader has no kept weight on it, or can fold its constant value. At least one unit
        of everything a layer makes stays, so that layers remain ordinary modules. ``also``: classes that stay.
        """
        seeds = [self.fixed, *also]
        rows = [self.along(name, axis) for name, axis in self.found.rows.items()]
        while True:
            needed = self._needed(seeds)
            empty = [mine[:1] for mine in rows if not needed[mine].any()]
            if not empty:
                return needed
            seeds += empty[-1].tolist()  # the last one's first: it may bring the others back to life

    def _needed(self, seeds: Sequence[int]) -> Tensor:
        needed = torch.zeros(len(self.root), dtype=torch.bool)
        needed[torch.tensor(list(seeds))] = True
        before = -1
        while before != (before := int(needed.sum())):
            for step in reversed(self.found.steps):
                needed[self.root[step.reads[_read(step, needed[self.root[step.writes]])]]] = True
        return needed

    @on_cpu
    def multiply_adds(self, needed: Tensor) -> float:
        """Return the multiply-adds of two rows' products where these classes are left."""
        total = 0.0
        for _, factor, layers in self.found.work:
            for layer in layers:
                factor *= int(needed[self.root[layer]].sum())
            total += factor
        return total

    def size(self, needed: Tensor, names: Iterable[str]) -> int:
        """Return the number of parameters, of those named, where these classes are left."""
        kept = self.kept(needed)
        return sum(math.prod(int(stays.sum()) for stays in kept[name]) for name in names)

    @on_cpu
    def kept(self, needed: Tensor) -> dict[str, list[Tensor]]:
        """Return, for every parameter and buffer and each of its axes, which entries stay."""
        return {
            name: [needed[self.along(name, axis)] for axis in range(len(shape))]
            for name, shape in self.shapes.items()
        }


def _read(step: Step, writes: Tensor) -> Tensor:
    if step.kept is None:
        read = torch.full((len(step.reads),), bool(writes.any()))
    else:
        read = step.any_kept if writes.all() else step.kept[writes].any(0)
    return read & ~step.foldable()


def read(
    model: nn.Module,
    example: Example,
    masks: Mapping[str, Tensor] | None = None,
    training: bool = False,
    inward: bool = False,
) -> Graph:
    """Return the graph of ``model``, which is never changed, in its present mode and, if other parts run then, in
    the other one.

    ``masks``: which entries of its parameters are kept, the others being zero already; without them constants are
    not followed. ``training``: only what stays zero however the kept parameters are trained counts as constant.
    ``inward``: attention loses places in all of its heads, not whole heads.
    """
    key = _plain(model, example) if masks is None and not inward else None
    if key is not None and key in _KNOWN:
        return _KNOWN[key]
    private = duplicate(model)
    closed = {kind for kind in RULES if isinstance(kind, type)}
    tapes = [capture(private, example, closed)]
    if _idle(private, tapes[0]):
        private.train(not model.training)
        with contextlib.suppress(
            NatalError
        ):  # parts for another mode may need larger inputs; then nobody can know
            tapes.append(capture(private, example, closed))
    found: Reading | None = None
    for tape in tapes:
        found = _read_tape(model, tape, masks, training, found, inward)
    assert found is not None
    graph = Graph(found, tapes[0], inward)
    if key is not None:
        _KNOWN[key] = graph
        while len(_KNOWN) > 64:
            del _KNOWN[next(iter(_KNOWN))]
    return graph


@on_cpu
def _read_tape(
    model: nn.Module,
    tape: Tape,
    masks: Mapping[str, Tensor] | None,
    training: bool,
    found: Reading | None,
    inward: bool,
) -> Reading:
    return Reader(model, tape, RULES, masks, training, found, inward).read()


_KNOWN: dict[object, Graph] = {}
"""Graphs of chains of torch's own modules: a study makes hundreds of tickets of few architectures."""


def _plain(model: nn.Module, example: Example) -> object:
    """Return what a chain of torch's own modules is, its numbers apart; None for other models."""
    if type(model) is not nn.Sequential or not isinstance(example, Tensor):
        return None
    for module in model:
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if type(module).__module__[:9] != "torch.nn." or hooked or any(True for _ in module.children()):
            return None
    named = list(model.named_parameters(remove_duplicate=False))
    if len({id(p) for _, p in named}) < len(named) or model._forward_hooks or model._forward_pre_hooks:
        return None
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in [*named, *model.named_buffers()])
    modes = tuple(module.training for module in model.modules())
    return repr(model), shapes, modes, tuple(example.shape[1:]), example.dtype


def _idle(model: nn.Module, tape: Tape) -> bool:
    """Return whether some module with parameters of its own did not run."""
    return any(
        name
        and name not in tape.calls
        and any(True for _ in module.parameters(recurse=False))
        and _is_called(module)
        for name, module in model.named_modules()
    )


def _is_called(module: nn.Module) -> bool:
    # attention reads the weights of its output projection without calling it
    return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def by_reason(told: Mapping[str, str]) -> str:
    """Return names and why each is told, names of one reason together."""
    names: dict[str, list[str]] = {}
    for name, why in told.items():
        names.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(together)}: {why}" for why, together in names.items())


__all__ = ["Graph", "Group", "Member", "axes_of", "by_reason", "read"]
