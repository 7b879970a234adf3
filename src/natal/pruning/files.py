"""Masks and tickets in and out of natal: safetensors files, and ``torch.nn.utils.prune``.

A file is read as data, never as a program: safetensors, no pickle. Beside the tensors it holds one line of
JSON that says what it is, what wrote it, and whatever provenance its author gave. The same content gives the
same bytes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from natal.errors import NatalError
from natal.notebook import Rows, Shown
from natal.pruning.mask import Mask
from natal.pruning.masked import unmasked
from natal.study import Recipe

M = TypeVar("M", bound=nn.Module)
FORMAT = 1
"""Version of the file layout; a reader refuses a higher one."""
HEADER = {"kind": str, "format": int, "natal": str, "torch": str, "provenance": dict, "order": list}
"""What the JSON of every file holds, by type; a ticket's also holds its ``recipe``."""
PARTS = [part.name for part in dataclasses.fields(Mask) if part.name not in ("inputs", "reached")]
"""The parts of a mask, each a folder of tensors in the file; initial weights are a ticket's ``initial``."""


@dataclass(frozen=True, repr=False)
class Ticket(Shown):
    """A mask and the weights it was drawn on.

    ``mask``; ``weights``: initial values by name, usually ``model.state_dict()``; ``recipe``: how the mask
    was chosen, if natal chose it; ``provenance``: anything JSON can hold, such as the seed and the task.
    """

    mask: Mask
    weights: Mapping[str, Tensor]
    recipe: Recipe | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def _line(self) -> str:
        values = sum(value.numel() for value in self.weights.values())
        return f"{self.mask._line()}, drawn on {values:,} initial values"

    def _table(self) -> Rows:
        yield from self.mask._table()
        if self.recipe is not None:
            yield "recipe", ", ".join(f"{key} {value}" for key, value in self.recipe.model_dump().items())
        yield from self.provenance.items()


def to_torch_prune(model: M, mask: Mask) -> M:
    """Return a copy of ``model`` pruned with ``torch.nn.utils.prune``: ``weight_orig`` and ``weight_mask``.

    Every masked parameter, bias too, goes through ``custom_from_mask``, under each name it has; a control's redrawn
    weights replace the model's. A module that reads another's pruned weight, as attention reads its output
    projection's, has it computed anew before each pass. Raises NatalError if the mask does not fit.
    """
    twin = unmasked(model, mask)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    kept_of = {id(parameters[name]): kept.to(parameters[name].device) for name, kept in mask.items().items()}
    around = set()
    for name, parameter in parameters.items():
        if id(parameter) in kept_of:
            path, _, leaf = name.rpartition(".")
            prune.custom_from_mask(twin.get_submodule(path), leaf, kept_of[id(parameter)])  # type: ignore[no-untyped-call]
            parents = path.split(".") if path else []
            around |= {".".join(parents[:depth]) for depth in range(len(parents))}
    for path in around:
        twin.get_submodule(path).register_forward_pre_hook(_recompute)
    return twin


def _recompute(module: nn.Module, inputs: Any) -> None:
    """Compute the pruned weights inside a module anew, as torch does only before the owner's own forward pass."""
    for owner, pruned in _pruned(module):
        pruned(owner, inputs)


def _pruned(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Return what ``torch.nn.utils.prune`` has pruned: each module with its pruning method."""
    return [
        (module, hook)
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


def from_torch_prune(model: nn.Module) -> Mask:
    """Return the mask of a model pruned with ``torch.nn.utils.prune``, under the names of the unpruned model.

    What has one axis (biases, norms) is not counted. A parameter that layers share has the first of its names. Raises
    NatalError if nothing in it is pruned, or a shared parameter differently in two places.
    """
    names = {module: name for name, module in model.named_modules()}
    found: dict[int, tuple[str, Tensor]] = {}
    for module, pruned in _pruned(model):
        leaf = pruned._tensor_name
        name = f"{names[module]}.{leaf}" if names[module] else leaf
        kept = module.get_buffer(f"{leaf}_mask").detach().bool()
        first, other = found.setdefault(id(module.get_parameter(f"{leaf}_orig")), (name, kept))
        if not torch.equal(kept, other):
            raise NatalError(
                f"{first!r} and {name!r} are one parameter that is pruned differently in two places, which a mask "
                "cannot say; give both the same torch mask"
            )
    if not found:
        raise NatalError(
            f"this {type(model).__name__} has no weight_mask: torch.nn.utils.prune has not been here"
        )
    masks = dict(found.values())
    biases = {name: kept for name, kept in masks.items() if kept.ndim < 2}
    return Mask({name: kept for name, kept in masks.items() if name not in biases}, biases)


def save_mask(path: str | os.PathLike[str], mask: Mask, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a mask to a safetensors file, replacing it whole or not at all.

    ``provenance``: anything JSON can hold; read it back with `read_provenance`. Raises NatalError if it is
    not JSON or the file cannot be written.
    """
    _write(path, "mask", _tensors(mask), {"provenance": dict(provenance or {}), **_inputs(mask)})


def load_mask(path: str | os.PathLike[str]) -> Mask:
    """Read the mask of a file made by `save_mask` or `save_ticket`; raise NatalError if it is neither."""
    return _mask(path, *_read(path, ("mask", "ticket")))


def save_ticket(path: str | os.PathLike[str], ticket: Ticket) -> None:
    """Write mask, initial weights, recipe and provenance to one safetensors file, as `save_mask` does."""
    tensors = {**_tensors(ticket.mask), **{f"initial/{name}": t for name, t in ticket.weights.items()}}
    recipe = None if ticket.recipe is None else ticket.recipe.model_dump(mode="json")
    about = {"provenance": dict(ticket.provenance), "recipe": recipe, **_inputs(ticket.mask)}
    _write(path, "ticket", tensors, about)


def load_ticket(path: str | os.PathLike[str]) -> Ticket:
    """Read a file made by `save_ticket`; raise NatalError if it is something else."""
    tensors, about = _read(path, ("ticket",))
    try:
        recipe = None if about.get("recipe") is None else Recipe.model_validate(about["recipe"])
    except pydantic.ValidationError as error:
        raise NatalError(f"{path}: its recipe is not one natal knows: {error.errors()[0]['msg']}") from error
    return Ticket(_mask(path, tensors, about), _group(tensors, "initial/"), recipe, about["provenance"])


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the provenance of a mask or ticket file, and the ``natal`` and ``torch`` that wrote it.

    Raises NatalError if it is no such file.
    """
    about = _read(path, ("mask", "ticket"))[1]
    return {**about["provenance"], "natal": about["natal"], "torch": about["torch"]}


def _tensors(mask: Mask) -> dict[str, Tensor]:
    return {f"{part}/{name}": t for part in PARTS for name, t in getattr(mask, part).items()}


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _inputs(mask: Mask) -> dict[str, Any]:
    told = {"inputs": dict(mask.inputs), "reached": dict(mask.reached)}
    return {word: value for word, value in told.items() if value}


def _mask(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Mask:
    parts = {part: _group(tensors, f"{part}/") for part in PARTS}
    mask = Mask(**parts, inputs=about.get("inputs", {}), reached=about.get("reached", {}))
    for name, kept in [*mask.items().items(), *mask.units.items()]:
        if kept.dtype != torch.bool:
            raise NatalError(f"{path}: the mask of {name!r} is {kept.dtype}, not torch.bool")
    return mask


def _write(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], more: Mapping[str, Any]
) -> None:
    about = {
        "kind": kind,
        "format": FORMAT,
        "natal": _version(),
        "torch": str(torch.__version__),
        **more,
        "order": list(tensors),
    }
    try:
        # one key, sorted: safetensors keeps several keys in no particular order
        metadata = {"natal": json.dumps(about, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise NatalError(f"provenance must be what JSON can hold: {error}") from error
    content = save({name: _storable(name, t) for name, t in tensors.items()}, metadata)
    partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise NatalError(f"cannot write {path}: {error.strerror}") from error


def _storable(name: str, tensor: Tensor) -> Tensor:
    strided = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
    if not strided or tensor.dtype == torch.complex128:
        what = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise NatalError(f"safetensors cannot hold {name!r} ({what}); give it dense tensors with data")
    # a clone, because safetensors refuses tensors that share memory, as tied weights do
    return tensor.detach().cpu().contiguous().clone()


def _read(path: str | os.PathLike[str], kinds: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("natal", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except OSError as error:
        raise NatalError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise NatalError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(about, dict) or any(type(about.get(word)) is not kind for word, kind in HEADER.items()):
        raise NatalError(f"{path} was not written by natal; use save_mask or save_ticket")
    if about["kind"] not in kinds:
        raise NatalError(f"{path} holds a {about['kind']}, not a {' or a '.join(kinds)}")
    if about["format"] > FORMAT:
        raise NatalError(f"{path} has format {about['format']}, this natal reads {FORMAT}; update natal")
    if sorted(map(str, about["order"])) != sorted(tensors):
        raise NatalError(f"{path} is damaged: its tensors are not the ones it lists")
    return {name: tensors[name] for name in about["order"]}, about


def _version() -> str:
    return importlib.metadata.version("natal")
