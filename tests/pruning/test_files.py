"""Masks and tickets survive the journey, and a bad file is one sentence."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from natal.errors import NatalError
from natal.pruning.apply import apply, prune
from natal.pruning.files import (
    Ticket,
    from_torch_prune,
    load_mask,
    load_ticket,
    read_provenance,
    save_mask,
    save_ticket,
    to_torch_prune,
)
from natal.pruning.mask import Mask, prunable, remove_neurons
from natal.study import STRATEGIES
from networks import mlp


@pytest.fixture
def net() -> nn.Sequential:
    return mlp(5, 4, 3, seed=0)


@pytest.fixture
def mask(net: nn.Module) -> Mask:
    return remove_neurons(prunable(net), {"hidden.weight": torch.tensor([True, False, True, True])})


def same(a: Mask, b: Mask) -> bool:
    return all(
        list(ours) == list(theirs) and all(torch.equal(t, theirs[name]) for name, t in ours.items())
        for ours, theirs in zip(parts(a), parts(b), strict=True)
    )


def parts(mask: Mask) -> list[Mapping[str, Tensor]]:
    return [mask.weights, mask.biases, mask.units, mask.redrawn]


def test_torch_prune_gives_the_masked_network(net: nn.Module, mask: Mask) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pruned = to_torch_prune(net, mask)
    assert torch_prune.is_pruned(pruned)
    assert not torch_prune.is_pruned(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(pruned.get_parameter("hidden.weight_orig"), net.get_parameter("hidden.weight"))
    assert torch.equal(pruned.get_buffer("hidden.weight_mask").bool(), mask.weights["hidden.weight"])
    assert torch.equal(pruned.get_buffer("hidden.bias_mask").bool(), mask.biases["hidden.bias"])
    x = torch.randn(6, 5)
    expected = pruned(x)
    assert same(from_torch_prune(pruned), Mask(mask.weights, mask.biases))
    mask.apply_(dict(net.named_parameters()))
    torch.testing.assert_close(expected, net(x))
    torch_prune.remove(pruned.get_submodule("hidden"), "weight")  # type: ignore[no-untyped-call]
    torch.testing.assert_close(pruned(x), expected)


def test_torch_prune_works_on_a_bare_layer() -> None:
    layer = nn.Linear(3, 2)
    kept = torch.tensor([[True, False, True], [False, True, True]])
    assert torch.equal(to_torch_prune(layer, Mask({"weight": kept})).get_buffer("weight_mask").bool(), kept)


def test_a_mask_survives_the_file(tmp_path: Path, mask: Mask) -> None:
    path = tmp_path / "mask.safetensors"
    save_mask(path, mask, {"seed": 42, "criterion": "magnitude", "note": "Größe"})
    assert same(load_mask(path), mask)
    told = read_provenance(path)
    assert told.pop("natal")
    assert told.pop("torch") == torch.__version__
    assert told == {"seed": 42, "criterion": "magnitude", "note": "Größe"}
    assert list(load_file(path))  # any safetensors reader can open it
    again = tmp_path / "again.safetensors"
    save_mask(str(again), load_mask(str(path)), {"note": "Größe", "criterion": "magnitude", "seed": 42})
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "mask.safetensors"]


@pytest.mark.parametrize("control", [None, "reinit", "fresh-narrow", "shuffle"])
def test_all_of_a_mask_survives_the_file(tmp_path: Path, net: nn.Module, control: str | None) -> None:
    mask = prune(net, 0.5, "magnitude", "layerwise", "neuron", control=control)
    save_mask(tmp_path / "m", mask)
    loaded = load_mask(tmp_path / "m")
    assert same(loaded, mask)
    x = torch.randn(6, 5)
    assert torch.equal(apply(net, loaded)(x), apply(net, mask)(x))
    assert torch.equal(to_torch_prune(net, loaded)(x), apply(net, mask)(x))


DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_survives_to_the_last_bit(tmp_path: Path, mask: Mask, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(2 if dtype == torch.bool else 256, (3, 16), generator=generator, dtype=torch.uint8)
    raw = raw.view(dtype)  # any bits at all: NaN, infinities and -0 among them
    weights = {"w": raw, "scalar": torch.ones((), dtype=dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    save_ticket(tmp_path / "t", Ticket(mask, weights))
    loaded = load_ticket(tmp_path / "t").weights
    assert list(loaded) == list(weights)
    for name, t in weights.items():
        assert (loaded[name].dtype, loaded[name].shape) == (t.dtype, t.shape)
        assert torch.equal(loaded[name].flatten().view(torch.uint8), t.flatten().view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [3.0, torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex128)],
)
def test_what_safetensors_cannot_hold_is_refused_by_name(tmp_path: Path, mask: Mask, tensor: Any) -> None:
    with pytest.raises(NatalError, match=r"cannot hold 'initial/w' \("):
        save_ticket(tmp_path / "t", Ticket(mask, {"w": tensor}))
    assert not list(tmp_path.iterdir())


def refusal(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except NatalError as error:
        return str(error)
    return ""


def test_a_file_damaged_anywhere_is_read_right_or_refused_in_one_line(
    tmp_path: Path, net: nn.Module, mask: Mask
) -> None:
    path, damaged = tmp_path / "t", tmp_path / "damaged"
    save_ticket(path, Ticket(mask, net.state_dict(), STRATEGIES["structured"], {"seed": 0}))
    content = path.read_bytes()
    random = numpy.random.RandomState(0)
    for turn in range(300):
        broken = bytearray(content)
        if turn % 2:
            broken[random.randint(len(broken))] = random.randint(256)
        else:
            del broken[random.randint(len(broken)) :]
        damaged.write_bytes(broken)
        for read in (load_ticket, load_mask, read_provenance):
            said = refusal(read, damaged)
            assert "\n" not in said
            assert said or turn % 2  # a truncated file is never accepted


def test_names_and_order_survive(tmp_path: Path) -> None:
    kept = torch.ones(2, 2, dtype=torch.bool)
    mask = Mask({"z.weight": kept, "a.weight": ~kept, "weights/odd": kept}, {"m.bias": kept[0]})
    save_mask(tmp_path / "m", mask)
    assert same(load_mask(tmp_path / "m"), mask)


def test_a_ticket_survives_the_file(tmp_path: Path, net: nn.Module, mask: Mask) -> None:
    path = tmp_path / "ticket.safetensors"
    recipe = STRATEGIES["structured"]
    save_ticket(path, Ticket(mask, net.state_dict(), recipe, {"seed": 0, "task": "modular"}))
    ticket = load_ticket(path)
    assert same(ticket.mask, mask)
    assert ticket.recipe == recipe
    assert ticket.provenance == {"seed": 0, "task": "modular"}
    twin = mlp(5, 4, 3, seed=1)
    twin.load_state_dict(ticket.weights)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), net.parameters(), strict=True))
    assert same(load_mask(path), mask)  # a ticket holds a mask
    save_ticket(path, Ticket(mask, net.state_dict()))
    assert load_ticket(path).recipe is None


def test_tied_weights_and_views_can_be_saved(tmp_path: Path, mask: Mask) -> None:
    w = torch.arange(6.0).view(2, 3)
    save_ticket(tmp_path / "t", Ticket(mask, {"a": w, "b": w, "c": w.T}))
    weights = load_ticket(tmp_path / "t").weights
    assert all(torch.equal(weights[k], v) for k, v in (("a", w), ("b", w), ("c", w.T)))


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("a pickle was executed",)


def written(path: Path, about: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    save_file(tensors or {"weights/a": torch.ones(2, dtype=torch.bool)}, path, {"natal": json.dumps(about)})


ABOUT = {"kind": "mask", "format": 1, "natal": "0", "torch": "0", "provenance": {}, "order": ["weights/a"]}


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, mask: Mask) -> None:
    f = tmp_path / "file"

    def refused(call: Callable[[], object], message: str) -> None:
        with pytest.raises(NatalError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    refused(lambda: load_mask(tmp_path / "missing"), "cannot read")
    refused(lambda: load_mask(tmp_path), "cannot read")
    f.write_bytes(pickle.dumps(Bomb()))
    refused(lambda: load_mask(f), "is no safetensors file")
    f.write_bytes(b"")
    refused(lambda: load_mask(f), "is no safetensors file")
    save_mask(f, mask)
    f.write_bytes(f.read_bytes()[:-3])
    refused(lambda: load_mask(f), "is no safetensors file")
    save_file({"a": torch.ones(2)}, f)
    refused(lambda: load_mask(f), "was not written by natal")
    save_mask(f, mask)
    refused(lambda: load_ticket(f), "holds a mask, not a ticket")
    written(f, {**ABOUT, "format": 2})
    refused(lambda: load_mask(f), "update natal")
    written(f, {**ABOUT, "provenance": "none"})
    refused(lambda: load_mask(f), "was not written by natal")
    written(f, {**ABOUT, "order": [["weights/a"]]})
    refused(lambda: load_mask(f), "is damaged")
    written(f, {**ABOUT, "order": ["weights/b"]})
    refused(lambda: load_mask(f), "is damaged")
    written(f, ABOUT, {"weights/a": torch.ones(2)})
    refused(lambda: load_mask(f), "not torch.bool")
    written(f, {**ABOUT, "kind": "ticket", "recipe": {"name": "x", "criterion": "y", "scope": "nowhere"}})
    refused(lambda: load_ticket(f), "recipe")
    refused(lambda: save_mask(f, mask, {"model": object()}), "provenance must be what JSON can hold")
    refused(lambda: save_mask(f, mask, {"loss": float("nan")}), "provenance must be what JSON can hold")
    refused(lambda: save_mask(tmp_path / "no" / "folder", mask), "cannot write")
    refused(lambda: to_torch_prune(mlp(2, 2, 2, 0), mask), "must be torch.bool of shape")
    refused(lambda: from_torch_prune(mlp(2, 2, 2, 0)), "torch.nn.utils.prune has not been here")
