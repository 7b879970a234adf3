"""The studies that come with natal contain what they promise, and nothing else."""

from __future__ import annotations

from natal.pruning.criteria import criteria
from natal.reading import stats
from natal.study import Recipe, load_study

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
    same = {"name", "description", "strategies", "claims"}
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
    assert (study.tasks, study.seeds, study.hidden) == (paper.tasks, paper.seeds, paper.hidden)
