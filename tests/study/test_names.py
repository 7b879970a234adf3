"""Names reach terminals, reports and files as they are; and claims say which network they are about."""

from __future__ import annotations

from typing import Any

import pytest

from natal.errors import NatalError
from natal.study import Claim, Run, Setting, load_study

BASE: dict[str, Any] = {
    "name": "names", "tasks": ["regression"], "strategies": ["snip"], "sparsities": [0.5], "seeds": [1], "hidden": 8,
}  # fmt: skip
CLAIM: dict[str, Any] = {
    "text": "it scores", "quantity": "mean", "task": "regression", "strategy": "snip", "sparsity": 0.5,
    "published": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("word", ["a\nb", "a\x1b[31mb", "a\x00b", "a\tb", "a\u202eb"])
@pytest.mark.parametrize(("changes", "key"), [
    (lambda word: {"name": word}, "name"),
    (lambda word: {"strategies": [{"name": word, "criterion": "snip"}]}, "strategies.0.name"),
    (lambda word: {"tasks": [{"task": "regression", "name": word}]}, "tasks.0"),
    (lambda word: {"claims": [{**CLAIM, "text": word}]}, "claims.0.text"),
])  # fmt: skip
def test_what_a_terminal_would_obey_is_no_name(word: str, changes: Any, key: str) -> None:
    with pytest.raises(NatalError, match="printable text") as refusal:
        load_study({**BASE, **changes(word)})
    assert str(refusal.value).startswith(f"study: {key}")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("word", ["$x^$", "θ-snip", "a b", "_x", "100%"])
def test_any_other_word_is(word: str) -> None:
    assert (
        load_study({**BASE, "strategies": [{"name": word, "criterion": "snip"}]}).strategies[0].name == word
    )


def test_a_list_is_looked_through_once() -> None:
    # 0.2.0 looked through it once for every seed, which at this length is beyond any patience
    assert len(load_study({**BASE, "seeds": list(range(300_000))}).seeds) == 300_000
    with pytest.raises(NatalError, match="seeds: lists 3 twice; name each once"):
        load_study({**BASE, "seeds": [1, 3, 2, 3, 1]})


def test_a_claim_names_its_network_where_there_are_several() -> None:
    networks = {"networks": ["mlp", {"network": "mlp", "hidden": [8, 8]}]}
    table = {name: value for name, value in BASE.items() if name != "hidden"}
    with pytest.raises(NatalError, match=r"claims\.0 needs the key network, .* several: mlp, mlp-8x8"):
        load_study({**table, **networks, "claims": [CLAIM]})
    study = load_study({**table, **networks, "claims": [{**CLAIM, "network": "mlp-8x8"}]})
    assert study.claims[0].network == "mlp-8x8"
    assert study.settings() == [Setting("regression", "mlp"), Setting("regression", "mlp-8x8")]
    assert study.runs()[1].setting == study.settings()[1]
    assert Run("t", "s", 0.5, 1).setting == ("t", "mlp")


def test_a_claim_without_a_network_is_written_as_ever() -> None:
    assert set(Claim(**CLAIM).model_dump()) == set(CLAIM)
    assert load_study({**BASE, "claims": [CLAIM]}).model_dump(mode="json")["claims"] == [CLAIM]
