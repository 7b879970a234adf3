"""Whole neurons: the groups of units that go together, their scores, and the mask without some of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from natal.errors import NatalError
from natal.pruning.criteria.problem import Problem, Scores, gradient
from natal.pruning.graph.capture import made_example, on_cpu
from natal.pruning.graph.units import Graph, Group, Member, by_reason, read
from natal.pruning.mask import Mask, dense, unit_axes, weight_names
from natal.study import Recipe


class Neurons:
    """The groups of units of one problem's network, by name, the order that of execution.

    A group is named after the weight of its first layer; a second group that begins in the same layer, as where
    parts of it are concatenated to different places, adds ``#2``.
    """

    def __init__(self, problem: Problem, *, quiet: bool = False) -> None:
        model, weights = problem.model, problem.weights
        example = problem.inputs
        if example is None:
            example = made_example(model, "granularity 'neuron'")
        self.graph: Graph = read(model, example, inward=problem.attention == "width")
        aliases = weight_names(model, whole=problem.whole)
        # the graph knows a shared weight by the first of all its names, a mask by the first of a layer's
        self.names = {self.graph.alias[n]: n for n in weights}
        alone = [self.graph.alias[n] for n in aliases if n not in weights]
        self.left_alone, self.axes = set(alone), unit_axes(model)
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        every = self.graph.groups(self.names, alone)
        self.groups = {group.name: group for group in every if len(group)}
        self.told = self.whole(every)
        if not self.groups:
            why = f"units are kept whole of {by_reason(self.told)}" if self.told else "all units are outputs"
            raise NatalError(f"granularity 'neuron' finds no hidden layer: {why}")
        if self.told and not quiet:
            warnings.warn(kept_whole(self.told), stacklevel=4)

    def whole(self, every: Sequence[Group]) -> dict[str, str]:
        """Return why layers are kept whole although they make no output."""
        told = {
            f"{g.name!r}": g.reason for g in every if not len(g) and g.reason not in ("output", "left alone")
        }
        for group in every:
            maker = next(iter(group.makers), None)
            if len(group) == 1 and maker is not None and len(maker.unit) > 1:
                told[f"{group.name!r}"] = "its units go all together"
        for first, name in self.names.items():
            if first not in self.graph.found.rows and self.parameters[first].shape[self.axes[name]] > 1:
                read = first in self.graph.found.read
                told[f"{name!r}"] = "it is no layer's weight as it is" if read else "it does not run"
        return told

    @on_cpu
    def mask(self, problem: Problem, kept: Mapping[str, Tensor]) -> Mask:
        """Return the mask without some units: their rows, their biases and norms, the columns that read them, and
        whatever else goes with them.

        ``kept``: a boolean vector of units by group; groups that are not in it keep all theirs.
        """
        masks = dict(dense(problem.weights).weights)
        others: dict[str, Tensor] = {}
        for name, stay in kept.items():
            for member in self.groups[name].members:
                weight = self.names.get(member.name)
                if member.name not in self.parameters or member.name in self.left_alone:
                    continue  # a buffer, or a layer that keeps its columns: the unit it reads is silent anyway
                like = self.parameters[member.name]
                stays = member.stays(stay).to(like.device)
                stays = stays.view([-1 if a == member.axis else 1 for a in range(like.ndim)])
                if weight is not None:
                    masks[weight] = masks[weight] & stays
                else:
                    before = others.get(member.name)
                    others[member.name] = (
                        stays.expand(like.shape).clone() if before is None else before & stays
                    )
        return Mask(masks, others, units={name: stay.clone() for name, stay in kept.items()})

    @on_cpu
    def units_of(self, mask: Mask) -> dict[str, Tensor]:
        """Return which units of every group a mask keeps: those that any kept weight makes."""
        units = {}
        for name, group in self.groups.items():
            stay = torch.zeros(len(group), dtype=torch.bool)
            for m in group.makers:
                lines = mask.weights[self.names[m.name]].cpu().movedim(m.axis, 0).flatten(1).any(1)
                stay[m.unit[lines & (m.unit >= 0)]] = True
            units[name] = stay
        return units

    def scores(self, recipe: Recipe, scores: Scores, problem: Problem) -> dict[str, Tensor]:
        """Return one score per unit of every group: what its weights' scores come to, or its gate's.

        ``incoming``, ``outgoing``, ``both`` say which weights, ``l1`` and ``l2`` which norm over one layer's; the
        recipe's ``reduce`` says how the layers of a group come to one number: their sum, mean, largest, or the
        first's. ``gate``: |∂L/∂c_i|, c_i = 1 multiplying what unit i puts out before its activation (Michel et
        al. 2019; Molchanov et al. 2019): SNIP for neurons.
        """
        if recipe.aggregate == "gate":
            return {name: self.gate(problem, group) for name, group in self.groups.items()}
        for name, of_weights in scores.items():
            if (of_weights < 0).any():
                raise NatalError(
                    f"criterion {recipe.criterion!r} gives weights of {name!r} negative scores, and a neuron's "
                    "score is a norm, which would drop the sign; use granularity 'weight'"
                )
        return {name: self.score(recipe, scores, group) for name, group in self.groups.items()}

    @on_cpu
    def score(self, recipe: Recipe, scores: Scores, group: Group) -> Tensor:
        """Return the scores of one group's units."""
        side, norm = recipe.aggregate.split("-")
        p = 1 if norm == "l1" else 2
        outgoing = [
            part
            for m in group.readers
            if m.name in self.names
            for part in [_by_unit(scores[self.names[m.name]], m, len(group))]
        ]
        if side == "outgoing":
            if not outgoing:
                raise NatalError(
                    f"aggregate {recipe.aggregate!r} needs the weights that read the units of {group.name!r}, "
                    "and no prunable layer does"
                )
            return _norm(outgoing, p)
        makers = group.makers[:1] if recipe.reduce == "first" else group.makers
        parts = []
        for m in makers:
            incoming = _by_unit(scores[self.names[m.name]], m, len(group))
            parts.append(_norm([incoming, *(outgoing if side == "both" else [])], p))
        if len(parts) == 1:
            return parts[0]
        together = torch.stack([part.double() for part in parts])
        if recipe.reduce == "max":
            return together.amax(0)
        return together.sum(0) if recipe.reduce == "sum" else together.mean(0)

    def gate(self, problem: Problem, group: Group) -> Tensor:
        """Return |∂L/∂c| for a gate c on every unit of a group, after the last affine map of each of its layers."""
        like = problem.weights[self.names[group.makers[0].name]]
        c = torch.ones(len(group), dtype=like.dtype, device=like.device).requires_grad_()
        parameters = dict(problem.model.named_parameters()) | dict(problem.weights)
        loss = problem.loss_at(parameters | self.gates(group, parameters, c))
        return gradient(loss, {group.name: c})[group.name].abs().detach()

    def gates(self, group: Group, parameters: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        """Return the parameters under a gate c on every unit of a group."""
        members = {(m.name, m.axis): m for m in group.members}
        gated = {}
        for maker in group.makers:
            norm = self.graph.found.after.get(maker.name)
            affine = [
                m for leaf in ("weight", "bias") if (m := members.get((f"{norm}.{leaf}", 0))) is not None
            ]
            if not affine:
                bias = members.get((f"{maker.name.removesuffix('weight')}bias", 0))
                affine = [maker, *([bias] if bias is not None else [])]
            for m in affine:
                name = self.names.get(m.name, m.name)
                along = c if _plain(m, len(group)) else torch.where(m.unit >= 0, c[m.unit.clamp_min(0)], 1.0)
                shape = [-1 if a == m.axis else 1 for a in range(parameters[name].ndim)]
                gated[name] = parameters[name] * along.view(shape)
        return gated


def kept_whole(told: Mapping[str, str]) -> str:
    """Return the warning that names layers that lose no unit, and why."""
    return f"units of these layers are kept whole: {by_reason(told)}"


def _plain(member: Member, count: int) -> bool:
    return len(member.unit) == count and torch.equal(member.unit, torch.arange(count))


def _by_unit(scores: Tensor, member: Member, count: int) -> Tensor:
    """Return what a weight holds for each unit, one row each; units that hold less are filled with zeros."""
    if member.axis == 0 and _plain(member, count):
        return scores.flatten(1)
    lines = scores.movedim(member.axis, 0)
    mine = (member.unit >= 0).nonzero().flatten()
    unit = member.unit[mine]
    order = unit.argsort(stable=True)
    sizes = torch.bincount(unit, minlength=count)
    chosen = lines[mine[order].to(scores.device)]
    if (sizes == sizes[0]).all():
        return chosen.reshape(count, -1)
    flat = chosen.flatten(1)
    start = sizes.cumsum(0) - sizes
    place = torch.arange(len(unit)) - start[unit[order]]
    rows = flat.new_zeros(count, int(sizes.max()), flat.shape[1])
    rows[unit[order].to(flat.device), place.to(flat.device)] = flat
    return rows.flatten(1)


def _norm(parts: list[Tensor], p: int) -> Tensor:
    # norm(dim=1) is the published program's to the last bit
    norm: Tensor = torch.cat(parts, 1).norm(p=p, dim=1)
    return norm
