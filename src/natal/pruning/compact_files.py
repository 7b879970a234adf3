"""Compacted networks in safe files: widths and weights in safetensors, no pickle.

The file does not hold the architecture's code. `load_compact` takes a network of the original architecture and gives it
the file's widths and weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from natal.errors import NatalError
from natal.pruning.files import _read, _write
from natal.pruning.graph.exact import LayerNorm, MultiheadAttention, Widened
from natal.pruning.mask import check_model
from natal.pruning.masked import duplicate
from natal.registry import did_you_mean

M = TypeVar("M", bound=nn.Module)


def save_compact(
    path: str | os.PathLike[str], model: nn.Module, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a network made by `natal.compact` or `natal.compact_training` to a safetensors file, whole or not at all.

    Parameters, buffers and the sizes that its modules state; ``provenance``: anything JSON can hold. Raises
    NatalError if a tensor cannot be stored or the file cannot be written.
    """
    check_model(model)
    tensors = {f"tensor/{name}": t.detach() for name, t in _tensors(model).items()}
    modules = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules[name] = {"kind": _kind(module), "sizes": _sizes(module)}
    about = {"provenance": dict(provenance or {}), "modules": modules, "training": model.training}
    _write(path, "compacted network", tensors, about)


def load_compact(path: str | os.PathLike[str], model: M) -> M:
    """Return a copy of ``model``, of the architecture that was compacted, with the widths and weights of a file.

    The caller's model is untouched; its own weights do not matter. Raises NatalError if the file is none of
    `save_compact`, or if the model has other modules than the one that was written.
    """
    tensors, about = _read(path, ("compacted network",))
    net = duplicate(model)
    for name, entry in about["modules"].items():
        if entry["kind"] == "widened":
            owner, _, leaf = name.rpartition(".")
            stays = tensors[f"tensor/{name}.stays"]
            wide = torch.zeros(entry["sizes"]["width"], dtype=torch.bool)
            wide[stays.long()] = True
            inner = _module(path, net, name)
            setattr(net.get_submodule(owner), leaf, Widened(inner, wide, entry["sizes"]["axis"]))
    for name, entry in about["modules"].items():
        module = _module(path, net, name)
        if entry["kind"] == "layer norm":
            module.__class__ = LayerNorm
        elif entry["kind"] == "attention":
            module.__class__ = MultiheadAttention
        elif entry["kind"] not in ("widened", type(module).__name__):
            raise NatalError(
                f"{path} was written of another architecture: {name!r} is a {entry['kind']} there, "
                f"a {type(module).__name__} here"
            )
        for attribute, value in entry["sizes"].items():
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
    missing = [n for n, _ in net.named_modules(remove_duplicate=False) if n not in about["modules"]]
    if missing:
        raise NatalError(f"{path} was written of another architecture: it has no module {missing[0]!r}")
    names: dict[int, list[str]] = {}
    ours = [
        *net.named_parameters(remove_duplicate=False),
        *net.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in ours:
        names.setdefault(id(tensor), []).append(name)
    own = {alias: aliases for aliases in names.values() for alias in aliases}
    kept = {id(t): t for _, t in ours}
    like = dict(ours)
    for key, tensor in tensors.items():
        name = key.removeprefix("tensor/")
        first = like.get(name)
        device = next((t.device for t in kept.values()), torch.device("cpu"))
        tensor = tensor.to(device if first is None else first.device)
        # a bias that folding asked for is new, and a parameter
        learns = first is None or isinstance(first, nn.Parameter)
        grad = first.requires_grad if isinstance(first, nn.Parameter) else True
        value = nn.Parameter(tensor, requires_grad=grad) if learns else tensor
        for alias in own.get(name, [name]):
            owner, _, leaf = alias.rpartition(".")
            setattr(_module(path, net, owner), leaf, value)
    net.train(about["training"])
    return net


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _kind(module: nn.Module) -> str:
    if isinstance(module, Widened):
        return "widened"
    kinds = {LayerNorm: "layer norm", MultiheadAttention: "attention"}
    return kinds.get(type(module), type(module).__name__)


def _sizes(module: nn.Module) -> dict[str, Any]:
    """Return the whole numbers by which a module knows its widths."""
    sizes: dict[str, Any] = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")
    }
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        sizes["normalized_shape"] = list(module.normalized_shape)
    return sizes


def _module(path: Any, net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError:
        known = [n for n, _ in net.named_modules()]
        raise NatalError(
            f"{path} was written of another architecture: this {type(net).__name__} has no module {name!r}"
            f"{did_you_mean(name, known)}"
        ) from None
