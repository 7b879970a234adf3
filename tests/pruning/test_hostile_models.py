"""Models and settings that are unusual: handled, or refused in one line; never a raw error, never silently wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

import natal
from natal import Mask, NatalError
from natal.pruning.choose import problem_of, score
from natal.pruning.criteria import criteria
from networks import layer_of, network

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:criterion .* score 0")
BUILT_IN = sorted(name for name in criteria if criteria[name].__module__.startswith("natal."))


def same(a: Mask, b: Mask) -> bool:
    parts = ("weights", "biases", "units", "redrawn")
    return all(
        list(getattr(a, p)) == list(getattr(b, p))
        and all(torch.equal(t, getattr(b, p)[n]) for n, t in getattr(a, p).items())
        for p in parts
    )


# -- the caller's defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("criterion", BUILT_IN)
def test_no_criterion_depends_on_the_callers_default_dtype_or_device(criterion: str, device: str) -> None:
    model, batch = network("deep")
    plain = natal.prune(model, 0.5, criterion, batch=batch, seed=3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(device)
    try:
        other = natal.prune(model, 0.5, criterion, batch=batch, seed=3)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, device)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert same(plain, other)


CONTROLS = ["shuffle", "reinit", "invert", "quota-random"]
OF_NEURONS = ["shuffle", "reinit", "random-neurons", "highest-norm", "fresh-narrow"]
GRANULAR: list[tuple[Any, str]] = [
    *((g, c) for g in ("weight", "kernel", "2:4", {"block": [2, 2]}) for c in CONTROLS),
    *(("neuron", c) for c in OF_NEURONS),
]


@pytest.mark.parametrize(("granularity", "control"), GRANULAR, ids=str)
@pytest.mark.parametrize("scope", ["global", "erk"])
def test_no_control_does_either(granularity: Any, control: str, scope: str) -> None:
    if scope == "erk" and granularity in ("neuron", "2:4"):
        scope = "layerwise"
    model, batch = network("deep")

    def prune() -> Mask:
        return natal.prune(model, 0.5, "magnitude", scope, granularity, control=control, seed=3, batch=batch)

    plain = prune()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        other = prune()
        net = natal.apply(model, other)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert same(plain, other)
    assert {p.device.type for p in net.parameters()} == {"cpu"}


# -- checkpointing ---------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Recomputes its middle layer while derivatives are taken, in the newer or the older way, or not at all."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        h = self.b(h) if self.reentrant is None else checkpoint(self.b, h, use_reentrant=self.reentrant)
        out: Tensor = self.c(h.tanh())
        return out


@pytest.mark.parametrize(
    "criterion", ["snip", "iterative-snip", "grasp", "grasp-published", "prospr", "synflow", "ntk-sap"]
)
def test_checkpointed_layers_score_as_plain_ones(criterion: str) -> None:
    plain, recomputing = Checkpointed(None), Checkpointed(False)
    recomputing.load_state_dict(plain.state_dict())
    batch = (torch.randn(8, 5), torch.arange(8) % 3)
    expected, found = (natal.prune(m, 0.5, criterion, batch=batch) for m in (plain, recomputing))
    assert same(expected, found)


class Hidden(nn.Module):
    """The older kind of checkpoint around the only layer, whose input needs no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(checkpoint(self.a, x, use_reentrant=True).tanh())
        return out


@pytest.mark.parametrize("make", [lambda: Checkpointed(True), Hidden])
@pytest.mark.parametrize("criterion", ["snip", "grasp", "prospr"])
def test_the_older_checkpoint_is_refused_with_the_cure(criterion: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(NatalError, match="use_reentrant=False") as said:
        natal.prune(make(), 0.5, criterion, batch=(torch.randn(8, 5), torch.arange(8) % 3))
    assert "\n" not in str(said.value)


# -- what cannot be scored -------------------------------------------------------------------------------


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.ctc_loss(outputs.log_softmax(-1), targets, torch.full((8,), 6), torch.full((8,), 2))


@pytest.mark.parametrize(
    "criterion", ["grasp", "grasp-absolute", "grasp-published", "prospr", "prospr-published"]
)
def test_a_loss_without_a_second_derivative_is_refused(criterion: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4))
    batch = (torch.randn(8, 8, 5), torch.randint(1, 4, (8, 2)))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        n = len(targets)
        return F.ctc_loss(
            outputs.transpose(0, 1).log_softmax(-1), targets, torch.full((n,), 8), torch.full((n,), 2)
        )

    assert natal.prune(model, 0.5, "snip", batch=batch, loss=loss).kept == 36
    with pytest.raises(
        NatalError, match=r"no derivative that the criterion needs: .*; choose a criterion"
    ) as said:
        natal.prune(model, 0.5, criterion, batch=batch, loss=loss)
    assert "\n" not in str(said.value)


def sparse() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def integer() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(4, 4, device="meta"), r"'0.weight' is on the meta device, without values; give"),
        (sparse, r"'0.weight' is torch.float32, torch.sparse_coo; only dense floating-point"),
        (integer, r"'0.weight' is torch.int8, torch.strided; only dense floating-point"),
        (lambda: nn.LazyLinear(4), r"'0.weight' has no shape yet"),
        (
            lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
            r"'0.weight' is computed, .* or exclude it",
        ),
    ],
)
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "synflow", "random"])
def test_weights_that_cannot_be_pruned_are_named(
    make: Callable[[], nn.Module], message: str, criterion: str
) -> None:
    model = nn.Sequential(make(), nn.ReLU(), nn.Linear(4, 3))
    batch = (torch.randn(6, 4), torch.arange(6) % 3)
    with pytest.raises(NatalError, match=message) as said:
        natal.prune(model, 0.5, criterion, batch=batch)
    assert "\n" not in str(said.value)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("criterion", [name for name in BUILT_IN if name not in ("phew", "init-stream")])
@pytest.mark.parametrize(
    "computed",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        torch.nn.utils.weight_norm,
    ],
)
def test_an_excluded_layer_may_have_computed_weights(
    computed: Callable[[nn.Module], nn.Module], criterion: str
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4).double()
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3).double())
        batch = (torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)
    weights = copy.deepcopy(model).state_dict()
    model[0] = computed(layer)
    with torch.no_grad():
        plain = nn.Sequential(nn.Linear(4, 4).double(), nn.Tanh(), nn.Linear(4, 3).double())
        model.eval()
        plain.load_state_dict(weights)
        layer_of(plain, "0", nn.Linear).weight.copy_(layer_of(model, "0", nn.Linear).weight)
    found = natal.prune(model, 0.5, criterion, batch=batch, exclude=("0",))
    assert found.densities() == {"2.weight": 0.5}
    if criterion in ("snip", "grasp", "synflow", "grasp-published"):
        ours, theirs = (
            score(
                criterion,
                problem_of(m, 0, exclude=("0",), inputs=batch[0], targets=batch[1], loss=F.cross_entropy),
            )
            for m in (model, plain)
        )
        assert torch.allclose(ours["2.weight"], theirs["2.weight"], rtol=1e-9)


def test_first_and_last_may_name_layers_with_computed_weights() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4),
        parametrizations.weight_norm(nn.Linear(4, 3)),
    )
    assert list(natal.prune(model, 0.5, "magnitude", exclude=("first", "last")).weights) == ["1.weight"]


# -- shared weights --------------------------------------------------------------------------------------


class Language(nn.Module):
    """An embedding tied to a head; either may be registered first."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        head = nn.Linear(6, 9, bias=False)
        if head_first:
            self.head = head
        self.embed, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = head
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(self.embed(tokens)).tanh()).mean(1)
        return out


@pytest.mark.parametrize("criterion", [name for name in BUILT_IN if name != "phew"])
def test_the_order_in_which_tied_layers_register_changes_no_score(criterion: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = Language(True), Language(False)
        tokens = torch.randint(9, (8, 3))
    second.load_state_dict(first.state_dict())
    batch = (tokens, torch.arange(8) % 9)
    exclude = ("mix",)  # so that the layers' order does not matter either
    found = [natal.prune(m, 0.5, criterion, batch=batch, exclude=exclude).weights for m in (first, second)]
    assert [list(weights) for weights in found] == [["head.weight"], ["head.weight"]]
    assert torch.equal(found[0]["head.weight"], found[1]["head.weight"])


def test_both_names_of_a_tied_weight_can_be_excluded() -> None:
    for name in ("head", "embed", "head.weight", "embed.weight"):
        assert list(natal.prune(Language(False), 0.5, "magnitude", exclude=(name,)).weights) == ["mix.weight"]


# -- torch's own pruning ---------------------------------------------------------------------------------


def test_a_buffer_that_looks_like_a_mask_is_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].register_buffer("causal_mask", torch.ones(4, 4).tril())
    model[0].register_buffer("weight_mask", torch.zeros(4, 4))
    with pytest.raises(NatalError, match="has not been here"):
        natal.from_torch_prune(model)
    torch_prune.l1_unstructured(model[2], "weight", 0.5)  # type: ignore[no-untyped-call]
    torch_prune.l1_unstructured(model[2], "bias", 0.5)  # type: ignore[no-untyped-call]
    torch_prune.l1_unstructured(model[1], "weight", 0.5)  # type: ignore[no-untyped-call]
    found = natal.from_torch_prune(model)
    assert list(found.weights) == ["2.weight"]
    assert set(found.biases) == {"2.bias", "1.weight"}


def test_a_shared_weight_pruned_in_two_ways_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    kept = torch.ones(4, 4)
    torch_prune.custom_from_mask(model[0], "weight", kept)  # type: ignore[no-untyped-call]
    torch_prune.custom_from_mask(model[1], "weight", kept.tril())  # type: ignore[no-untyped-call]
    with pytest.raises(
        NatalError, match=r"'0.weight' and '1.weight' are one parameter that is pruned differently"
    ):
        natal.from_torch_prune(model)


def test_recurrent_weights_train_in_the_inner_loop_of_prospr() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.cell(x)[0][:, -1])
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Reads(), torch.randn(6, 3, 4)
    problem = problem_of(model, 0, inputs=x, targets=torch.arange(6) % 3, loss=F.cross_entropy)
    learning = score("prospr", problem)["head.weight"]
    frozen = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run: Callable[..., Any] = frozen.cell.forward
        frozen.cell.forward = lambda x: (run(x)[0].detach(), None)  # type: ignore[method-assign, assignment]
        without = score(
            "prospr", problem_of(frozen, 0, inputs=x, targets=torch.arange(6) % 3, loss=F.cross_entropy)
        )
    assert not torch.allclose(learning, without["head.weight"])
