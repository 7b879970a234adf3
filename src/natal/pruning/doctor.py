"""What a mask did to a network, before a single training step.

`diagnose` reports; `effective` keeps only the weights that lie on a path from input to output (Vysogorets &
Kempe, "Connectivity Matters", JMLR 24(99), 2023); `collapse_sparsity` says when a criterion will empty a
layer. Nothing here changes the model or draws a random number.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from natal.errors import NatalError, first_line
from natal.notebook import Rows, Shown
from natal.pruning.graph.capture import Example, arguments, capture, made_example, tensors_in
from natal.pruning.graph.paths import paths as walk
from natal.pruning.graph.units import read
from natal.pruning.mask import Mask, is_layer, unit_axes
from natal.pruning.masked import check, masked, remove, unmasked
from natal.wording import plural

Severity = Literal["fatal", "warning", "note"]
SIGNIFICANT = 1e-3
"""A correlation is reported below this p-value, divided by the number of tests made (Bonferroni)."""
WIDTH = 100
"""Columns a printed diagnosis fits into; a layer's name gives way to numbers, its beginning first."""
FADED = 0.1
"""A layer whose output varies less than this share of the dense network's is warned about."""


class Pair(NamedTuple):
    """One quantity of the dense and of the pruned network."""

    dense: float
    pruned: float


class Correlation(NamedTuple):
    """Pearson's r of a layer's mask with its weights, and the two-sided p-value of independence."""

    r: float
    p: float

    def __str__(self) -> str:
        return f"r = {self.r:+.3f}, p {f'= {self.p:.1g}' if self.p > 1e-300 else '< 1e-300'}"


@dataclass(frozen=True)
class LayerDiagnosis:
    """One masked layer; what was not or could not be examined is None.

    ``weights``, ``kept``: numbers of weights. ``effective``: kept weights on a path from input to output.
    ``units``: neurons or channels. ``removed``: those gone whole, as a mask of neurons says or because no path
    reaches them and none leads on. ``no_input``, ``no_output``: dead ones among the others, which no path
    reaches from the input, or which reach no output. ``unread``: features of the layer's input without a kept
    weight. ``with_weight``, ``with_size``: correlation of the mask with w and with |w|. ``scale``: standard
    deviation of the layer's output over the batch, root mean square over units. ``always_on``,
    ``always_off``: share of units whose ReLU never, or always, cuts. The last three are over the units that
    keep a weight.
    """

    name: str
    weights: int
    kept: int
    units: int
    unread: int
    effective: int | None = None
    removed: int | None = None
    no_input: int | None = None
    no_output: int | None = None
    with_weight: Correlation | None = None
    with_size: Correlation | None = None
    scale: Pair | None = None
    always_on: Pair | None = None
    always_off: Pair | None = None

    @property
    def density(self) -> float:
        """Share of weights kept; 0 means the layer has collapsed."""
        return self.kept / self.weights


@dataclass(frozen=True)
class Finding:
    """One sentence worth reading; ``severity`` is fatal (it cannot learn), warning or note."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What `diagnose` found; ``str()`` prints findings and an aligned table.

    ``layers``: one entry per masked layer. ``sparsity``: realised, of weights. ``unit_sparsity``: realised, of
    neurons, None unless the mask removes whole ones. ``effective_sparsity``: share of weights not kept or on
    no path from input to output, None if paths are unknown. ``requested``: the sparsity asked for, if told.
    ``collapses_at``: the sparsity from which global selection by the scores empties a layer, if given scores.
    ``findings``: gravest first.
    """

    layers: tuple[LayerDiagnosis, ...]
    sparsity: float
    unit_sparsity: float | None
    effective_sparsity: float | None
    requested: float | None
    collapses_at: float | None
    findings: tuple[Finding, ...]

    def _line(self) -> str:
        counts = [sum(f.severity == severity for f in self.findings) for severity in get_args(Severity)]
        told = [
            f"{n} fatal" if severity == "fatal" else plural(n, severity)
            for n, severity in zip(counts, get_args(Severity), strict=True)
            if n
        ]
        effective = "unknown" if self.effective_sparsity is None else f"{self.effective_sparsity:.4g}"
        return f"sparsity {self.sparsity:.4g}, effective {effective}; {', '.join(told) or 'nothing found'}"

    def _table(self) -> Rows:
        yield from ((finding.severity, finding.text) for finding in self.findings)
        for layer in self.layers:
            path = "" if layer.effective is None else f", {layer.effective:,} on a path"
            yield layer.name, f"{layer.kept:,} of {layer.weights:,} weights kept{path}"

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of layers without a single weight."""
        return tuple(layer.name for layer in self.layers if not layer.kept)

    @property
    def fatal(self) -> bool:
        """Whether the network cannot learn."""
        return any(finding.severity == "fatal" for finding in self.findings)

    def __str__(self) -> str:
        realised = f"realised {self.sparsity:.4f}"
        if self.unit_sparsity is not None:
            realised = f"realised {self.unit_sparsity:.4f} of neurons, {self.sparsity:.4f} of weights"
        head = [
            *([f"requested {self.requested:.4f}"] if self.requested is not None else []),
            realised,
            *([f"effective {self.effective_sparsity:.4f}"] if self.effective_sparsity is not None else []),
        ]
        findings = (
            textwrap.fill(
                str(f), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            for f in self.findings
        )
        return "\n".join([f"sparsity: {', '.join(head)}", *findings, *_tables(self.layers)])


def diagnose(
    model: nn.Module,
    mask: Mask,
    batch: Tensor | Mapping[str, Any] | tuple[Any, Any] | None = None,
    *,
    requested: float | None = None,
    random: bool = False,
    scores: Mapping[str, Tensor] | None = None,
) -> Diagnosis:
    """Examine ``model``, as initialised, under ``mask``; a control's redrawn weights replace its own.

    ``batch``: inputs (a tensor, or a mapping of named ones), or (inputs, targets), of which the inputs are run
    through the dense and the pruned network in evaluation mode; two rows at least. ``requested``: the sparsity
    that was asked for, of neurons if the mask removes whole ones. ``random``: the mask claims to know nothing of
    the weights, so that a correlation is a warning rather than a note. ``scores``: what the mask was selected by,
    globally, from `natal.pruning.criteria.score`; they tell when a layer collapses. Paths are followed as in
    `effective`; where they cannot be, those fields are None and a note says so. Raises NatalError if mask or batch
    do not fit the model.
    """
    model = unmasked(model, mask)
    if not mask.weights:
        raise NatalError("the mask names no weight, so there is nothing to diagnose")
    if requested is not None and not 0 <= requested < 1:
        raise NatalError(f"requested must lie in [0, 1), got {requested}")
    if scores is not None and set(scores) != set(mask.weights):
        raise NatalError(f"scores must be of {sorted(mask.weights)}, as the mask is, got {sorted(scores)}")
    inputs = _inputs(batch)
    findings: list[Finding] = []
    constant: bool | None = None
    paths: Mapping[str, _Path] = {}
    try:
        paths = _paths(model, mask, inputs)
    except NatalError as error:
        findings.append(Finding("note", f"dead units and effective sparsity are unknown: {error}"))
    axes = unit_axes(model)
    layers = tuple(
        _examine(name, kept, axes.get(name, 0), paths.get(name), mask.units.get(name))
        for name, kept in mask.weights.items()
    )
    layers = _correlate(layers, model, mask, random, findings)
    if inputs is not None:
        layers, constant = _measure(layers, model, mask, inputs)
    effective = None
    if layers and all(layer.effective is not None for layer in layers):
        effective = 1 - sum(layer.effective or 0 for layer in layers) / mask.total
    outputs = {name for name, path in paths.items() if path.outputs}
    findings += _judge(layers, mask, effective, constant, requested, outputs)
    collapses_at = None
    if scores is not None:
        emptied = emptied_at(scores)
        first = min(emptied, key=emptied.__getitem__)
        collapses_at = emptied[first]
        text = f"global selection by these scores empties {first} from sparsity {collapses_at:.4f} on"
        findings.append(Finding("note", text))
    findings.sort(key=lambda finding: get_args(Severity).index(finding.severity))
    units = list(mask.units.values())
    return Diagnosis(
        layers,
        mask.sparsity,
        1 - sum(int(u.sum()) for u in units) / sum(map(len, units)) if units else None,
        effective,
        requested,
        collapses_at,
        tuple(findings),
    )


def _inputs(batch: Any) -> Tensor | Mapping[str, Any] | None:
    """Return the inputs of a batch; raise NatalError unless they are tensors of two rows at least."""
    inputs = batch
    if isinstance(batch, tuple | list):
        if len(batch) != 2:
            raise NatalError(f"batch must be inputs or a pair (inputs, targets), got {len(batch)} parts")
        inputs = batch[0]
    if inputs is None:
        return None
    first = next((t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)), None)
    if first is None or not isinstance(inputs, Tensor | Mapping):
        raise NatalError(
            f"batch must be a tensor of inputs, a mapping of named ones, or a pair (inputs, targets), got {batch!r}"
        )
    if first.ndim < 2 or len(first) < 2:
        raise NatalError(f"the batch must hold at least two rows, got shape {tuple(first.shape)}")
    return inputs


def effective(mask: Mask, model: nn.Module | None = None, example: Example | None = None) -> Mask:
    """Return the mask that keeps only weights on a path of kept weights from input to output.

    Its ``sparsity`` is the effective sparsity (Vysogorets & Kempe 2023); a bias starts no path. Without
    ``model`` the mask must be that of a chain of linear layers in order, matrices (out, in). With it, any
    model that runs on ``example``; what is not understood counts as letting every path through. Raises NatalError
    if the mask is no such chain, or does not fit the model.
    """
    if model is None:
        paths = _chain(mask.weights)
    else:
        check(model, mask)
        paths = _paths(model, mask, example)
    return Mask(
        {n: paths[n].through(kept) if n in paths else kept for n, kept in mask.weights.items()}, mask.biases
    )


def collapse_sparsity(scores: Mapping[str, Tensor]) -> float:
    """Return the smallest sparsity at which global selection by ``scores`` leaves a layer without a weight.

    That layer is the smallest entry of `emptied_at`. 1.0 means never below the empty network.
    """
    return min(emptied_at(scores).values())


def emptied_at(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Return, by layer, the smallest sparsity at which global selection by ``scores`` empties it.

    ``scores``: any shapes, by name, with ties as in `natal.pruning.mask.select`. A sparsity here is k / n for
    the k of n weights removed; ``select`` empties the layer there and beyond. Raises NatalError on a
    score that is NaN, or if there is none.
    """
    if not isinstance(scores, Mapping):
        raise NatalError(f"scores must be tensors by name, got {type(scores).__name__}")
    if not sum(score.numel() for score in scores.values()):
        raise NatalError("scores must hold at least one number")
    for name, score in scores.items():
        if score.isnan().any():
            raise NatalError(f"scores of {name!r} hold NaN; a criterion must give every weight a number")
    order = torch.cat([score.flatten() for score in scores.values()]).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    parts = torch.split(rank, [score.numel() for score in scores.values()])
    return {
        name: _sparsity_removing(int(part.max()) + 1, len(order))
        for name, part in zip(scores, parts, strict=True)
    }


def _sparsity_removing(k: int, n: int) -> float:
    sparsity = k / n
    while int(sparsity * n) < k:  # k / n can round down to a number that removes k - 1
        sparsity = math.nextafter(sparsity, 2)
    return sparsity


class _Path(NamedTuple):
    """Where paths meet a layer: (in,) reached from the input; (out,) reached; (out,) leading to an output.

    ``outputs``: whether the layer's units are the model's outputs. ``on``: in the weight's shape, which weights a
    path could use, where it is not every one from a reached input to a unit that leads on.
    """

    into: Tensor
    reached: Tensor
    leads: Tensor
    outputs: bool = False
    on: Tensor | None = None

    def through(self, kept: Tensor) -> Tensor:
        """Return the kept weights that lie on a path."""
        if self.on is not None:
            return kept & self.on.to(kept.device)
        leads, into = self.leads.to(kept.device), self.into.to(kept.device)
        return kept & leads[:, None] & into


def _chain(weights: Mapping[str, Tensor]) -> dict[str, _Path]:
    """Walk a chain of (out, in) matrices forwards, then backwards."""
    masks = list(weights.values())
    if (
        not masks
        or any(m.ndim != 2 for m in masks)
        or any(a.shape[0] != b.shape[1] for a, b in itertools.pairwise(masks))
    ):
        shapes = ", ".join(f"{name} {tuple(m.shape)}" for name, m in weights.items())
        raise NatalError(f"not a chain of linear layers ({shapes or 'no layer'}); pass the model as well")
    reached = [torch.ones(masks[0].shape[1], dtype=torch.bool, device=masks[0].device)]
    for kept in masks:
        reached.append((kept & reached[-1]).any(1))
    leads = [torch.ones_like(reached[-1])]
    for kept in reversed(masks[1:]):
        leads.append((kept & leads[-1][:, None]).any(0))
    last = list(weights)[-1]
    return {
        n: _Path(*p, outputs=n == last)
        for n, p in zip(weights, zip(reached, reached[1:], reversed(leads), strict=False), strict=True)
    }


PLAIN: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity, nn.BatchNorm1d, nn.Dropout,
)  # fmt: skip
"""Modules between linear layers that neither join nor cut paths."""


def _paths(model: nn.Module, mask: Mask, example: Example | None) -> dict[str, _Path]:
    if type(model) is nn.Sequential and all(type(m) is nn.Linear or type(m) in PLAIN for m in model):
        # what the graph would find, some forty times as fast: a study diagnoses every network it trains
        linear = {
            f"{name}.weight": m.weight for name, m in model.named_children() if isinstance(m, nn.Linear)
        }
        if (
            len({id(weight) for weight in linear.values()})
            == len(linear)
            == sum(type(m) is nn.Linear for m in model)
        ):
            return _chain(
                {n: mask.weights.get(n, torch.ones_like(w, dtype=torch.bool)) for n, w in linear.items()}
            )
    silent = masked(model, mask).eval()
    if example is None:
        example = made_example(silent, "paths through the network")
    tape = capture(silent, example)
    found = walk(silent, tape, mask.items())
    graph, axes = read(silent, example), unit_axes(silent)
    paths = {}
    for name in mask.weights:
        first = graph.alias[name]
        axis = graph.found.rows.get(first, axes.get(name, 0))
        ends = graph.reason(first, axis) == "output"
        on = found.on[first]
        if first in found.into:
            lines = found.into[first], found.reached[first], found.leads[first]
        else:  # used in parts, or as an operand: what its weights say is all there is
            kept = mask.weights[name].cpu() & on
            across, along = (1, 0) if axes.get(name, 0) == 0 else (0, 1)
            lines = (
                on.movedim(across, 0).flatten(1).any(1),
                kept.movedim(along, 0).flatten(1).any(1),
                on.movedim(along, 0).flatten(1).any(1),
            )
        paths[name] = _Path(*lines, ends, on)
    return paths


def _examine(name: str, kept: Tensor, axis: int, path: _Path | None, stay: Tensor | None) -> LayerDiagnosis:
    read = kept.movedim(1 - axis, 0).flatten(1).any(1)
    units, unread = kept.shape[axis], int((~read).sum())
    layer = LayerDiagnosis(name, kept.numel(), int(kept.sum()), units=units, unread=unread)
    if path is None:
        return layer
    reached, leads = path.reached.to(kept.device), path.leads.to(kept.device)
    # where several rows make a unit, as the heads of attention, what no path meets is gone
    removed = ~stay if stay is not None and len(stay) == units else ~reached & ~leads
    return replace(
        layer,
        effective=int(path.through(kept).sum()),
        removed=int(removed.sum()),
        no_input=int((~reached & ~removed).sum()),
        no_output=int((~leads & ~removed).sum()),
    )


def _correlate(
    layers: tuple[LayerDiagnosis, ...], model: nn.Module, mask: Mask, random: bool, findings: list[Finding]
) -> tuple[LayerDiagnosis, ...]:
    weights = {
        name: model.get_parameter(name).detach().to(kept.device) for name, kept in mask.weights.items()
    }
    zero = not any((weights[name] * ~kept).any() for name, kept in mask.weights.items())
    if zero and mask.kept < mask.total:
        text = "the removed weights are already zero; pass the network as initialised to compare them"
        findings.append(Finding("note", text))
        return layers
    found = []
    tests: list[tuple[str, Correlation]] = []
    for layer in layers:
        kept, w = mask.weights[layer.name].double(), weights[layer.name].double()
        signed, size = _correlation(kept, w, layer.kept), _correlation(kept, w.abs(), layer.kept)
        found.append(replace(layer, with_weight=signed, with_size=size))
        tests += [(f"{what} in {layer.name}", c) for what, c in (("w", signed), ("|w|", size)) if c]
    significant = [test for test in tests if test[1].p < SIGNIFICANT / len(tests)]
    strongest = sorted(significant, key=lambda test: -abs(test[1].r))[:3]
    real = [f"{where} ({c})" for where, c in strongest]
    if len(significant) > len(real):
        real.append(f"and {len(significant) - len(real)} more")
    if real and random:
        text = f"the mask is said to be random but knows the weights: it correlates with {', '.join(real)}"
        findings.append(Finding("warning", text))
    elif real:
        text = (
            f"the mask depends on the weights: it correlates with {', '.join(real)}; a random mask must not"
        )
        findings.append(Finding("note", text))
    elif tests:
        smallest = min(c.p for _, c in tests)
        text = (
            f"the mask shows no dependence on the weights: smallest p = {smallest:.2g} of {len(tests)} tests"
        )
        findings.append(Finding("note", text))
    return tuple(found)


def _correlation(kept: Tensor, values: Tensor, k: int) -> Correlation | None:
    """Return Pearson's r of a mask and numbers; None where either hardly varies.

    If the mask is independent of the numbers, all its permutations are equally likely, and r has mean 0 and
    variance exactly 1 / (n - 1); from ten weights on either side it is close to normal.
    """
    n, flat = kept.numel(), values.flatten()
    mean = flat.mean().item()
    variance = flat.dot(flat).item() / n - mean**2
    if min(k, n - k) < 10 or variance <= 1e-12 * mean**2:
        return None
    covariance = flat.dot(kept.flatten()).item() / n - mean * k / n
    r = covariance / math.sqrt(variance * k / n * (1 - k / n))
    return Correlation(r, math.erfc(abs(r) * math.sqrt((n - 1) / 2)))


@dataclass
class _Activity:
    """What one forward pass showed, by layer name; and whether the network's output varied at all."""

    scale: dict[str, float]
    on: dict[str, float]
    off: dict[str, float]
    constant: bool = False


def _measure(
    layers: tuple[LayerDiagnosis, ...], model: nn.Module, mask: Mask, inputs: Tensor | Mapping[str, Any]
) -> tuple[tuple[LayerDiagnosis, ...], bool]:
    """Return the layers with what a forward pass shows, and whether it is the mask that made it constant."""
    axes = unit_axes(model)
    alive = {
        name.removesuffix(".weight"): kept.movedim(axes.get(name, 0), 0).flatten(1).any(1)
        for name, kept in mask.weights.items()
        if kept.any()  # of a collapsed layer, all units are looked at
    }
    # the model is a private copy already, and nothing looks at it after this
    dense = _observe(model, inputs, {})
    pruned = _observe(remove(model, mask), inputs, alive)

    def pair(what: str, name: str) -> Pair | None:
        a, b = (getattr(activity, what).get(name.rpartition(".")[0]) for activity in (dense, pruned))
        return None if a is None or b is None else Pair(a, b)

    measured = tuple(
        replace(
            layer,
            scale=pair("scale", layer.name),
            always_on=pair("on", layer.name),
            always_off=pair("off", layer.name),
        )
        for layer in layers
    )
    return measured, pruned.constant and not dense.constant


class _Relus(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every ReLU, whether module, function or method, and files it under the layer that ran last."""

    def __init__(self, seen: _Activity, latest: list[tuple[str, int]], alive: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.latest, self.alive = seen, latest, alive

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and guarding it would import the compiler, for a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default) and self.latest:
            name, axis = self.latest[0]
            passes = _by_unit(args[0], axis, self.alive.get(name)) > 0
            self.seen.on.setdefault(name, passes.all(1).double().mean().item())
            self.seen.off.setdefault(name, (~passes).all(1).double().mean().item())
        return func(*args, **(kwargs or {}))


def _observe(net: nn.Module, inputs: Tensor | Mapping[str, Any], alive: Mapping[str, Tensor]) -> _Activity:
    """Run a private network once, in evaluation mode, and look at each layer's units that are ``alive``."""
    seen = _Activity({}, {}, {})
    latest: list[tuple[str, int]] = []  # the layer that ran last, and the axis of its units

    def watch(name: str, axis: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return  # a recurrent layer's
            varies = _by_unit(output, axis, alive.get(name)).var(1, correction=0)
            seen.scale.setdefault(name, varies.mean().sqrt().item())
            latest[:] = [(name, axis)]

        return hook

    hooks = [
        module.register_forward_hook(watch(name, 1 if isinstance(module, nn.modules.conv._ConvNd) else -1))
        for name, module in net.named_modules()
        if is_layer(module)
    ]
    args, kwargs = arguments(inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(), _Relus(seen, latest, alive):
            outputs = net.eval()(*args, **kwargs)
    except Exception as error:
        raise NatalError(f"{type(net).__name__} cannot be run on the batch: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    seen.constant = all(map(is_constant, tensors_in(outputs)))
    return seen


CONSTANT = 1e-6
"""Outputs that differ by less than this share of their size are the same up to the rounding of a float32 sum."""


def is_constant(output: Any) -> bool:
    """Whether an output is the same for every row, up to the rounding of a float32 sum."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.ndim:
        return True
    return bool((output - output[:1]).abs().max() <= CONSTANT * (1 + output.abs().max()))


def _by_unit(tensor: Tensor, axis: int, alive: Tensor | None) -> Tensor:
    units = tensor.detach().double().movedim(axis, 0).flatten(1)
    return units if alive is None or len(alive) != len(units) else units[alive.to(units.device)]


def _judge(
    layers: tuple[LayerDiagnosis, ...],
    mask: Mask,
    effective: float | None,
    constant: bool | None,
    requested: float | None,
    outputs: Set[str],
) -> list[Finding]:
    found: list[Finding] = []

    def say(severity: Severity, text: str) -> None:
        found.append(Finding(severity, text))

    severed = effective == 1 if effective is not None else not mask.kept
    if severed:
        say("fatal", "no path of kept weights leads from the input to the output: the network is constant")
    elif constant:
        say(
            "fatal", "the pruned network gives every row of the batch the same output; the dense one does not"
        )
    # beside a shortcut a network can live on without a layer; where paths are unknown, its output tells
    alive = effective is not None or constant is False
    for layer in layers:
        if not layer.kept:
            lives = alive and not severed and not constant
            say("warning" if lives else "fatal", f"{layer.name} has collapsed: no weight is left")
    if requested is not None:
        what, masks = ("neurons", mask.units) if mask.units else ("weights", mask.weights)
        sizes = [kept.numel() for kept in masks.values()]
        kept = sum(int(k.sum()) for k in masks.values())
        # rounded once over the whole network, or layer by layer
        most, least = int(requested * sum(sizes)), sum(int(requested * size) for size in sizes)
        if not least <= sum(sizes) - kept <= most:
            wanted = sum(sizes) - most
            say("warning", f"sparsity {requested} asks for {wanted} kept {what}, the mask keeps {kept}")
    for layer in layers:
        if layer.no_input is None or layer.no_output is None or not layer.kept:
            continue
        if layer.no_input and layer.name in outputs:
            say(
                "warning",
                f"{layer.no_input} of {layer.units} outputs of {layer.name}, the last layer, are constant",
            )
        elif layer.no_input or layer.no_output:
            kinds = ((layer.no_input, "that nothing reaches"), (layer.no_output, "that reach no output"))
            listed = " and ".join(f"{count} {kind}" for count, kind in kinds if count)
            say("warning", f"{layer.name} has dead units: {listed}, of {layer.units}")
    if effective is not None and not severed and effective > mask.sparsity:
        share = (effective - mask.sparsity) / (1 - mask.sparsity)
        text = f"{share:.1%} of the kept weights lie on no path: effective sparsity is {effective:.4f}"
        say("warning" if share > 0.1 else "note", text)
    if layers and layers[0].unread and not severed:
        say("note", f"no kept weight reads {layers[0].unread} of the inputs of {layers[0].name}")
    for layer in layers:
        if layer.scale is not None and layer.kept and layer.scale.pruned < FADED * layer.scale.dense:
            say(
                "warning",
                f"the signal fades at {layer.name}: its output varies by {layer.scale.pruned:.3g}, "
                f"{layer.scale.dense:.3g} in the dense network",
            )
        # of the units that live in the dense network, more than half have died
        if layer.always_off is not None and layer.always_off.pruned > (1 + layer.always_off.dense) / 2:
            say(
                "warning",
                f"{layer.always_off.pruned:.0%} of the ReLUs after {layer.name} are off for the whole "
                f"batch, {layer.always_off.dense:.0%} in the dense network",
            )
    if mask.kept == mask.total:
        say("note", "the mask removes nothing")
    return found


def _tables(layers: tuple[LayerDiagnosis, ...]) -> list[str]:
    """Return one line a layer, twice: what is kept, and how it behaves; unknown columns are left out."""
    structure = [
        ("weights", [f"{layer.weights:,}" for layer in layers]),
        ("kept", [f"{layer.kept:,}" for layer in layers]),
        ("density", [f"{layer.density:.4f}" for layer in layers]),
        ("on a path", [_cell(layer.effective, ",") for layer in layers]),
        ("units", [f"{layer.units:,}" for layer in layers]),
        ("removed", [_cell(layer.removed, ",") for layer in layers]),
        ("no input", [_cell(layer.no_input, ",") for layer in layers]),
        ("no output", [_cell(layer.no_output, ",") for layer in layers]),
    ]
    behaviour = [
        ("r(w)", [_cell(layer.with_weight and layer.with_weight.r, "+.3f") for layer in layers]),
        ("r(|w|)", [_cell(layer.with_size and layer.with_size.r, "+.3f") for layer in layers]),
        ("scale dense -> pruned", [_cells(layer.scale, ".3g") for layer in layers]),
        ("always on", [_cells(layer.always_on, ".0%") for layer in layers]),
        ("always off", [_cells(layer.always_off, ".0%") for layer in layers]),
    ]
    return [*_table(layers, structure), *_table(layers, behaviour)]


def _table(layers: tuple[LayerDiagnosis, ...], columns: list[tuple[str, list[str]]]) -> list[str]:
    aligned = []
    for title, cells in columns:
        if any(cell != "-" for cell in cells):
            width = max(map(len, [title, *cells]))
            aligned.append([f"  {cell:>{width}}" for cell in [title, *cells]])
    if not aligned:
        return []
    room = max(WIDTH - sum(len(cells[0]) for cells in aligned), 12)
    names = [n if len(n) <= room else f"..{n[2 - room :]}" for n in ["layer", *(x.name for x in layers)]]
    width = max(map(len, names))
    return ["", *(name.ljust(width) + "".join(cells) for name, *cells in zip(names, *aligned, strict=True))]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _cells(pair: Pair | None, form: str) -> str:
    return "-" if pair is None else f"{pair.dense:{form}} -> {pair.pruned:{form}}"
