"""A row's chain of stages: what is cut when, what is wound back, which keys are shared, and what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import tiny
from natal import NatalError, load_study
from natal.study import Maker, Recipe, Run, Stage, Study, Timeline, keys, stage_of, untimely

MAKER = Maker("torch", 1, "cpu", "2", "2", "0")
ROWS = 100
LONG = {"epochs": 20, "patience": "none", "target": "none"}


def study(*strategies: Any, training: dict[str, Any] | None = None, **changes: Any) -> Study:
    """The tiny study with these strategies, trained for 20 full-batch steps unless ``training`` says otherwise."""
    return load_study(tiny(strategies=list(strategies), training={**LONG, **(training or {})}, **changes))


def magnitude(name: str = "m", **keys: Any) -> dict[str, Any]:
    return {"name": name, "criterion": "magnitude", **keys}


def chain(of: Study, sparsity: float, strategy: str = "m") -> list[Stage]:
    return list(stage_of(of, Run("regression", strategy, sparsity, 1), 0.1, ROWS))


def key(of: Study, stage: Stage) -> str:
    return keys.Keys(of, lambda run: {}).of_stage(stage, MAKER)


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_ladder_of_sparsities() -> None:
    laddered = study("magnitude", sparsities={"keep": 0.8, "rounds": 3})
    assert laddered.sparsities == (0.0, 0.2, 0.36, 0.488)
    assert laddered == load_study(laddered)


def test_one_chain_goes_through_the_levels() -> None:
    of = study(magnitude(at="end", rounds="levels", rewind="init"), sparsities=[0.0, 0.2, 0.4, 0.6])
    stages = chain(of, 0.6)
    assert [stage.targets for stage in stages] == [(), (0.2,), (0.4,), (0.6,)]
    assert [stage.parent for stage in stages] == [None, *stages[:-1]]
    assert {(stage.at, stage.start, stage.first) for stage in stages[1:]} == {("end", "init", 0)}
    assert [len(stage.needs) for stage in stages] == [0, 1, 1, 1]
    # each level's training is what the next level's starts from
    assert [key(of, stage) for stage in stages[:-1]] == [key(of, stage) for stage in chain(of, 0.4)]


def test_rounds_share_out_what_goes() -> None:
    stages = chain(study(magnitude(at="end", rounds=3, rewind="init")), 0.9)
    tenth = 1 - 0.9
    assert [stage.run.sparsity for stage in stages] == [0.0, 1 - tenth ** (1 / 3), 1 - tenth ** (2 / 3), 0.9]


def test_a_control_branches_off_the_stages_without_it() -> None:
    ticket = magnitude("ticket", at="end", rounds="levels", rewind="init")
    of = study(ticket, {**ticket, "name": "reinit", "control": "reinit"})
    mine, control = (chain(of, 0.9, name) for name in ("ticket", "reinit"))
    assert [key(of, s) for s in mine[:-1]] == [key(of, s) for s in control[:-1]]
    assert key(of, mine[-1]) != key(of, control[-1])


@pytest.mark.parametrize(
    ("rewind", "first", "needs"),
    [("none", 5, ["5it"]), ("init", 0, ["5it"]), ("clock", 0, ["5it"]), ("3it", 3, ["5it", "3it"])],
)
def test_what_is_wound_back_after_an_early_cut(rewind: str, first: int, needs: list[str]) -> None:
    (trunk, stage) = chain(study(magnitude(at="5ep", rewind=rewind)), 0.5)
    assert (stage.first, stage.steps) == (first, 20)
    assert [need.clock for need in stage.needs] == needs
    assert all(need.stage is trunk for need in stage.needs)


def test_cuts_with_no_training_between_are_made_of_one_state() -> None:
    for at, rewind in (("init", "none"), ("5it", "none"), ("5it", "5it")):
        *before, stage = chain(study(magnitude(at=at, rewind=rewind, rounds="levels")), 0.9)
        assert len(before) == (at != "init")
        assert stage.targets == (0.5, 0.9)


def test_without_rewinding_it_trains_on_at_the_last_rate() -> None:
    of = study(magnitude(at="end"), training={"retrain": "5ep", "schedule": [["10it", 0.5]]})
    (trunk, stage) = chain(of, 0.5)
    assert (trunk.steps, trunk.learning_rate, trunk.training.retrain) == (20, 0.1, None)
    assert (stage.steps, stage.learning_rate, stage.training.length) == (5, 0.05, "5ep")
    assert stage.training.factors(ROWS) == [1.0] * 5


def test_many_cuts_are_one_stage_from_birth() -> None:
    (stage,) = chain(study(magnitude(at={"from": "10%", "to": "70%", "every": "2it"})), 0.5)
    assert (stage.beyond_birth, stage.needs) == (True, [])


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_training_from_birth_has_the_key_it_ever_had() -> None:
    of = study("magnitude", "snip", magnitude(at="end", rewind="init"), training={"epochs": 7})
    for run in (Run("regression", "snip", 0.5, 1), Run("regression", "m", 0.0, 2)):
        stage = stage_of(of, run, 0.1, ROWS)
        assert key(of, stage) == keys.key(of, run, MAKER, 0.1, {})
    dense = Run("regression", "magnitude", 0.0, 1)
    # as natal named it before it knew chains
    assert keys.key(of, dense, MAKER, 0.1, {}) == keys.key(
        study("magnitude", training={"epochs": 7}), dense, MAKER, 0.1, {}
    )


def test_what_is_trained_afterwards_changes_no_key_before() -> None:
    plain, more = (
        study(magnitude(at="end", rewind="init")),
        study(magnitude(at="end"), training={"retrain": "5ep"}),
    )
    assert key(plain, chain(plain, 0.5)[0]) == key(more, chain(more, 0.5)[0])
    assert key(plain, chain(plain, 0.5)[1]) != key(more, chain(more, 0.5)[1])


def test_a_moment_has_one_key_however_it_is_written() -> None:
    found = {key(of, chain(of, 0.5)[-1]) for at in ("5it", "5ep", "25%") for of in [study(magnitude(at=at))]}
    assert len(found) == 1
    ends = [
        study(magnitude(at=at, rewind=back))
        for at, back in (("end", "init"), ("100%", "0it"), ("20it", "0%"))
    ]
    assert len({key(of, chain(of, 0.5)[-1]) for of in ends}) == 1


def test_one_level_is_one_round() -> None:
    of = study(magnitude("a", rounds="levels"), magnitude("b"))
    assert key(of, chain(of, 0.5, "a")[-1]) == key(of, chain(of, 0.5, "b")[-1])
    assert key(of, chain(of, 0.9, "a")[-1]) != key(of, chain(of, 0.9, "b")[-1])


# -- what makes no sense -----------------------------------------------------------------------------------------------

SPREAD = {"from": "10%", "to": "70%", "every": "2it"}
WELL = {"at": "end", "rewind": "init"}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"at": "later"}, "must be a position in training"),
        ({"at": {"from": "1it", "to": "2it"}}, 'many cuts inside one training are { from = "10%"'),
        ({"rounds": 0}, "must be a whole number from 1 to 10000, such as 1"),
        ({"rounds": "all"}, 'or "levels"'),
        ({"rewind": "back"}, 'must be "none", "init", "clock"'),
        ({"rewind": "init"}, "strategies.0.rewind: has nothing to wind back, got 'init'"),
        ({"at": "end", "rewind": "end"}, "rewind: goes back to"),
        ({"regrow": "random"}, "regrow: needs cuts inside a training"),
        ({"regrow": "random", "at": "end", "rewind": "init"}, "regrow: needs cuts inside a training"),
        (
            {"fraction": 0.5},
            'fraction: belongs to regrow = "random" or "gradient", got 0.5 without; leave it out',
        ),
        (
            {**WELL, "rounds": 251},
            "rounds: make a chain of 251 trainings, one after the other; set at most 250",
        ),
        ({"at": SPREAD, "regrow": "random", "fraction": 1.0}, "fraction: must lie strictly between 0 and 1"),
        ({"at": SPREAD, "rounds": 2}, "rounds: do not go with at = { from, to, every }"),
        ({"at": SPREAD, "rewind": "init"}, "rewind: does not go with"),
        ({"at": SPREAD, "control": "shuffle"}, "control: does not go with"),
        (
            {"at": SPREAD, "granularity": "2:4"},
            "granularity: does not go with at = { from, to, every }, got '2:4'",
        ),
        (
            {"at": SPREAD, "granularity": "neuron", "regrow": "random"},
            "granularity: does not go with at = { from, to, every } and regrow",
        ),
        ({"at": SPREAD, "scope": "layerwise", "rates": {"last": 0.5}}, "rates: do not go with"),
        ({**WELL, "rates": {"last": 0.5}}, "only scope = \"layerwise\" does, got scope 'global'"),
        (
            {**WELL, "rates": {"last": 0.5}, "scope": "layerwise", "granularity": "neuron"},
            "rates: count single weights",
        ),
        ({**WELL, "rates": {"last": 1.5}, "scope": "layerwise"}, "the rate of layer 'last' must lie in"),
        ({"at": "end", "rewind": "clock", "control": "reinit"}, "control: reinit redraws initial weights"),
        ({"at": "5it", "control": "reinit"}, "control: reinit redraws initial weights"),
        ({**WELL, "control": "small-dense"}, "control: small-dense trains a smaller network from birth"),
        ({"at": "end", "rewind": "clock", "rounds": 2, "control": "shuffle"}, "set to zero for good"),
        ({**WELL, "rounds": 2, "granularity": "2:4"}, "rounds: pass through other sparsities"),
        ({"at": "end"}, "strategies.0.at: needs something after the cut"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(NatalError) as refused:
        study(magnitude(**recipe))
    assert words in str(refused.value)
    assert str(refused.value).startswith("study: strategies.0")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsities": [0.5, 0.0]}, 'strategies.0.rounds = "levels" goes through the sparsities in order'),
        ({"sparsities": [0.5, 0.5]}, "lists 0.5 twice"),
        ({"sparsities": {"keep": 0.8}}, "a ladder of sparsities is"),
        ({"sparsities": {"keep": 1.5, "rounds": 3}}, "keep must lie strictly between 0 and 1, got 1.5"),
        ({"sparsities": {"keep": 0.5, "rounds": 0}}, "rounds must be a whole number from 1 to 10000, got 0"),
        ({"training": {"retrain": "5ep"}}, "training.retrain: is for a cut"),
        ({"training": {"retrain": "soon"}}, "training.retrain: must be a number of epochs or steps"),
        ({"keep": ["later"]}, "keep.0: must be a position in training"),
        (
            {"keep": ["5it"], "training": {"patience": 5}},
            "keep: lists a moment inside training, got '5it', and a training that stops",
        ),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NatalError) as refused:
        study(magnitude(rounds="levels", **WELL), **changes)
    assert words in str(refused.value)


@pytest.mark.parametrize("recipe", [{"at": "5it"}, {"at": SPREAD}, {"at": "end", "rewind": "5it"}])
def test_a_training_that_stops_early_may_not_reach_a_moment(recipe: dict[str, Any]) -> None:
    with pytest.raises(NatalError, match=r'set training\.patience = "none" and training\.target'):
        study(magnitude(**recipe), training={"patience": 5})


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"at": "5it", "rewind": "6it"},
            "rewind = '6it' (step 6) is later than the cut, at = '5it' (step 5)",
        ),
        ({"at": "21it", "rewind": "init"}, "at = '21it' is beyond the 20 steps of training"),
        (
            {"at": "20it"},
            "at = '20it' is the end of the 20 steps of training, after which nothing is trained",
        ),
        ({"at": "end", "rewind": "20it"}, "rewind = '20it' is the end of the 20 steps of training"),
        ({"at": {**SPREAD, "to": "5%"}}, "to = '5%' (step 1) must come after from = '10%' (step 2)"),
        ({"at": {**SPREAD, "to": "21it"}}, "to = '21it' is beyond the 20 steps of training"),
        (
            {"at": {**SPREAD, "every": "13it"}},
            "every = '13it' is longer than the 12 steps from '10%' to '70%'",
        ),
    ],
)
def test_moments_that_do_not_fit_the_clock(recipe: dict[str, Any], words: str) -> None:
    said = untimely(Recipe.model_validate(magnitude(**recipe)), Timeline(1, 20))
    assert said.startswith("strategy 'm': ")
    assert words in said


def test_names_tell_moments() -> None:
    of = study(
        {
            "criterion": "magnitude",
            "scope": "layerwise",
            "at": "end",
            "rounds": "levels",
            "rates": {"last": 0.5},
            "rewind": "init",
        },
        {"criterion": "magnitude", "at": SPREAD, "regrow": "random"},
        {"criterion": "snip", "at": "5it"},
    )
    assert [recipe.name for recipe in of.strategies] == [
        "magnitude-layerwise-at-end-levels-last-0.5-rewind-init",
        "magnitude-from-10%-to-70%-every-2it-regrow-random",
        "snip-at-5it",
    ]
