"""States as bytes: what workers hand back, files hold, and jobs carry to the stages that start from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from natal.errors import NatalError
from natal.lab.state import State
from natal.pruning.mask import Mask, prunable


@dataclass(frozen=True)
class Kept:
    """A state with what a chain remembers of the rounds before: ``units``, the neurons that stay of a mask of whole
    neurons (`Mask`), and ``rounds``, the realised sparsity of every cut."""

    state: State
    units: Mapping[str, Tensor] = field(default_factory=dict)
    rounds: Sequence[float] = ()

    def mask(self, net: nn.Module) -> Mask | None:
        """Return the mask of a network of this kind, None if nothing was removed."""
        kept = self.state.mask
        if all(bool(part.all()) for part in kept.values()):
            return None
        weights = {name: kept[name] for name in prunable(net, whole=True) if name in kept}
        return Mask(weights, {n: part for n, part in kept.items() if n not in weights}, units=self.units)

    @property
    def digest(self) -> str:
        """A 16-digit hash of the parameters and buffers."""
        return digest(self.state.tensors)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a 16-digit hash of tensors, by name and to the last bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


_PARTS = ("tensors", "optimiser", "streams", "mask", "units")
_BITS = ("mask", "units")
"""Parts that are yes or no: eight of them a byte."""


def pack(kept: Kept) -> bytes:
    """Return a state as the content of a safetensors file: names ``PART/NAME``, masks as bits."""
    state = kept.state
    parts: dict[str, Mapping[str, Tensor]] = {
        "tensors": state.tensors,
        "optimiser": state.optimiser,
        "streams": state.streams,
        "mask": state.mask,
        "units": kept.units,
    }
    tensors = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in parts[part].items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if name.startswith(_BITS)}
    told = {
        "step": state.step,
        "shapes": shapes,
        "rounds": list(kept.rounds),
        "digest": digest(tensors),
    }
    # one entry: the library writes several in any order, and equal states should be equal files
    note = {"natal": json.dumps(told, sort_keys=True)}
    return save({n: _bits(t) if n in shapes else t.contiguous() for n, t in tensors.items()}, note)


def unpack(content: bytes, where: str) -> Kept:
    """Return the state that was packed; raise NatalError saying ``where`` it is damaged."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        told = json.loads(header["__metadata__"]["natal"])
        tensors, shapes = load(content), told["shapes"]
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for full, tensor in tensors.items():
            part, _, name = full.partition("/")
            parts[part][name] = _unbits(tensor, shapes[full]) if full in shapes else tensor
        state = State(told["step"], parts["tensors"], parts["optimiser"], parts["mask"], parts["streams"])
        kept = Kept(state, parts["units"], tuple(told["rounds"]))
        whole = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in parts[part].items()}
        intact = digest(whole) == told["digest"]
    except Exception as error:  # whatever a broken file makes a reader say
        raise NatalError(f"{where} is damaged ({error}); remove it, and `natal run` makes it again") from None
    if not intact:
        raise NatalError(f"{where} is damaged: its digest differs; remove it, and `natal run` makes it again")
    return kept


def _bits(tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(tensor.bool().flatten().numpy()))


def _unbits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=prod(shape)).astype(bool)).reshape(tuple(shape))


def size(net: nn.Module, moments: int) -> int:
    """Return about how many bytes a network's state takes, with so many ``moments`` a parameter."""
    of = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    parameters = sum(p.numel() * p.element_size() for p in net.parameters())
    return int(of + moments * parameters + mask_size(net))


def mask_size(net: nn.Module) -> int:
    """Return about how many bytes a network's mask takes."""
    return sum(w.numel() for w in prunable(net).values()) // 8
