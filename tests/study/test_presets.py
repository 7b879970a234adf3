"""The studies that come with natal contain what they promise, and nothing else."""

from __future__ import annotations

import pytest

from natal.pruning.criteria import criteria
from natal.reading import stats
from natal.study import Recipe, load_study, presets
from natal.study.audit import load_audit

PAPER = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def test_the_papers_study() -> None:
    study = load_study("paper")
    assert [r.name for r in study.strategies] == ["magnitude", "random", "structured"]
    assert (study.task_names, study.sparsities, study.seeds) == (
        ("modular", "regression"),
        PAPER,
        (42, 123, 7),
    )
    assert (study.hidden, study.training.epochs, study.training.patience) == (128, 500, 100)
    assert (study.training.target, study.training.validation_fraction) == (0.999, 0.1)
    assert study.training.learning_rate == {"modular": 1e-2, "regression": 1e-3}
    assert len(study.runs()) == 144


def test_as_published_is_the_papers_study_but_for_its_random_masks() -> None:
    paper, published = load_study("paper"), load_study("as-published")
    same = {"name", "description", "strategies", "claims", "share"}
    assert not published.share
    assert published.model_dump(exclude=same) == paper.model_dump(exclude=same)
    magnitude, drawn, structured = published.strategies
    assert (magnitude, structured) == (paper.recipe("magnitude"), paper.recipe("structured"))
    assert drawn == Recipe(name="random-from-init-stream", criterion="init-stream", scope="threshold")


def test_criteria_has_every_criterion_at_the_papers_sparsities() -> None:
    paper, study = load_study("paper"), load_study("criteria")
    same = {"name", "description", "strategies", "claims", "seeds"}
    assert study.model_dump(exclude=same) == paper.model_dump(exclude=same)
    # init-stream is the published program's flaw, not a criterion of the field
    plain = {r.criterion for r in study.strategies if r == Recipe(name=r.name, criterion=r.criterion)}
    assert plain == set(criteria) - {"init-stream", "grasp-published", "prospr-published"}
    assert {r.granularity for r in study.strategies} == {"weight", "neuron"}


def test_controls_has_every_control_of_the_papers_strategies_and_no_early_stopping() -> None:
    weights = {"shuffle", "reinit", "invert", "quota-random"}
    neurons = {"shuffle", "reinit", "random-neurons", "highest-norm", "fresh-narrow"}
    found: dict[str, set[str]] = {}
    study = load_study("controls")
    for strategy, _, kind in stats.controls(study):
        found.setdefault(strategy, set()).add(kind)
    assert found == {"magnitude": weights | {"scope", "units"}, "random": weights, "structured": neurons}
    assert len(study.strategies) == 3 + sum(map(len, found.values()))
    assert study.training.patience is None
    assert set(study.sparsities) <= set(PAPER)
    paper = load_study("paper")
    assert study.training.model_copy(update={"patience": 100}) == paper.training
    assert (study.tasks, study.hidden) == (paper.tasks, paper.hidden)


def test_presets_that_compare_have_six_seeds_or_more() -> None:
    rebuilt = {"paper", "as-published"}
    assert {name: len(load_study(name).seeds) for name in presets() if name not in rebuilt} == dict.fromkeys(
        set(presets()) - rebuilt, 6
    )
    # the paper's own seeds are among them, so that its runs are found again
    for name in ("criteria", "controls"):
        assert set(load_study("paper").seeds) <= set(load_study(name).seeds)


def test_digits_asks_the_fields_question_of_two_networks() -> None:
    study = load_study("digits")
    assert study.network_names == ("lenet-300-100", "lenet-5")
    assert {"random", "magnitude", "snip", "grasp", "synflow"} <= {r.criterion for r in study.strategies}
    assert {"shuffle", "small-dense"} <= {r.control for r in study.strategies}
    assert max(study.sparsities) == 0.99


def test_depth_asks_the_papers_question_of_deeper_networks() -> None:
    study = load_study("depth")
    assert [network.options["hidden"] for network in study.networks] == [
        [128] * depth for depth in (1, 2, 4, 8)
    ]
    assert [r.name for r in study.strategies] == ["magnitude", "random", "structured"]
    assert study.sparsities == (0.0, 0.5, 0.9)


def test_lottery_is_frankle_and_carbins_protocol_beside_controls_and_pruning_at_birth() -> None:
    study = load_study("lottery")
    assert (study.task_names, study.network_names) == (("mnist",), ("lenet-300-100",))
    assert (study.tasks[0].entry, study.networks[0].init.scheme) == ("mnist-5k", "glorot-normal")
    ticket, reinit, shuffle = (study.recipe(name) for name in ("ticket", "reinit", "shuffle"))
    assert (ticket.criterion, ticket.scope, ticket.at, ticket.rounds) == (
        "magnitude",
        "layerwise",
        "end",
        "levels",
    )
    assert (ticket.rewind, ticket.rates) == ("init", {"last": 0.5})
    assert (reinit.plain, reinit.control) == (ticket.model_copy(update={"name": "reinit"}), "reinit")
    assert (shuffle.plain, shuffle.control) == (ticket.model_copy(update={"name": "shuffle"}), "shuffle")
    assert {"random", "snip", "synflow"} <= {
        recipe.name for recipe in study.strategies if recipe.at == "init"
    }
    assert study.sparsities[:3] == (0.0, 0.2, 0.36)
    training = study.training
    assert (training.optimiser.name, training.learning_rate, training.batch) == ("adam", 1.2e-3, 60)
    assert (training.length, training.decide, training.patience, training.target) == (
        "1200it",
        "val-loss",
        None,
        None,
    )


def test_sanity_has_every_test_of_a_mask_before_and_after_training() -> None:
    study = load_study("sanity")
    for name in ("snip", "grasp", "synflow", "after"):
        plain = study.recipe(name)
        for control in ("shuffle", "reinit", "invert"):
            with_it = study.recipe(f"{name}-{control}")
            assert with_it == plain.model_copy(update={"name": with_it.name, "control": control})
        assert plain.at == ("end" if name == "after" else "init")
    assert study.training == load_study("lottery").training


def test_mnist_1d_lottery_cuts_where_the_notebook_does() -> None:
    study = load_study("mnist-1d-lottery")
    timeline = study.training.timeline(3960)
    assert [timeline.steps(str(recipe.at)) for recipe in study.strategies] == [1001, 0, 1001, 1001]
    assert study.networks[0].options == {"hidden": [500, 500], "residual": True}
    assert (study.training.length, study.training.batch, study.training.decide) == ("1501it", 100, "end")
    # the notebook's levels, as far as they are here
    assert all(abs(99 * level - round(99 * level)) < 0.01 for level in study.sparsities)


@pytest.mark.parametrize("name", ["lottery", "sanity", "mnist-1d-lottery", "grokking-tickets"])
def test_claims_speak_of_cells_of_their_study(name: str) -> None:
    study = load_study(name)
    strategies = {"dense", *(recipe.name for recipe in study.strategies)}
    for claim in study.claims:
        assert {claim.strategy, claim.against or "dense"} <= strategies, claim.text
        assert claim.sparsity is None or claim.sparsity in study.sparsities, claim.text


def test_grokking_tickets_answers_its_audit() -> None:
    study, audit = load_study("grokking-tickets"), load_audit("grokking-tickets")
    strategies = {"dense", "same-norm", *(recipe.name for recipe in study.strategies)}
    for claim in audit.all_claims():
        assert claim.task in study.task_names
        assert {claim.strategy, claim.against or "dense"} <= strategies, claim.text
        assert claim.sparsity in study.sparsities
    early = study.recipe("early-ticket")
    assert early == study.recipe("grokked-ticket").model_copy(update={"name": early.name, "at": "10%"})
