"""Names a study file can refer to: found, misspelt, taken, and fingerprinted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natal import NatalError
from natal.lab.tasks import tasks
from natal.pruning.criteria import criteria
from natal.registry import Registry, did_you_mean

Maker = Callable[[int], int]


def registry() -> Registry[Maker]:
    names: Registry[Maker] = Registry("maker")

    @names.register("double")
    def double(x: int) -> int:
        """Twice as much.

        And more words.
        """
        return 2 * x

    return names


def test_an_entry_is_found_under_its_name() -> None:
    names = registry()
    assert names["double"](21) == 42
    assert "double" in names
    assert list(names) == ["double"]
    assert names.summary("double") == "Twice as much."


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NatalError, match=r"^unknown maker 'dubble'; did you mean 'double'\?$"):
        registry()["dubble"]
    with pytest.raises(NatalError, match=r"^unknown criterion 'magnitud'; did you mean 'magnitude'\?$"):
        criteria["magnitud"]
    with pytest.raises(NatalError, match=r"^unknown maker 'xyz'; known: double$"):
        registry()["xyz"]
    assert did_you_mean("x", []) == "; known: none"


def test_a_taken_name_is_refused_and_a_second_import_is_not() -> None:
    names = registry()

    def halve(x: int) -> int:
        return x // 2

    with pytest.raises(NatalError, match="maker 'double' is already registered; choose another name"):
        names.register("double")(halve)
    names.register("half")(halve)
    names.register("half")(halve)
    assert list(names) == ["double", "half"]


def test_natals_own_entries_have_no_fingerprint() -> None:
    assert {criteria.fingerprint(n) for n in criteria if criteria[n].__module__.startswith("natal.")} == {""}
    assert [tasks.fingerprint(name) for name in ("modular", "regression")] == ["", ""]
    with pytest.raises(NatalError, match="unknown criterion 'magnitud'"):
        criteria.fingerprint("magnitud")


def test_a_fingerprint_is_of_the_file_that_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fingerprinted.py"
    text = "HELP = 1\ndef score(x):\n    return x\n"
    monkeypatch.syspath_prepend(str(tmp_path))

    def fingerprint(content: str) -> str:
        file.write_text(content)
        sys.modules.pop("fingerprinted", None)
        importlib.invalidate_caches()
        names: Registry[Any] = Registry("maker")
        names.register("score")(importlib.import_module("fingerprinted").score)
        file.write_text("edited while this process goes on with what it imported\n" * len(content))
        return names.fingerprint("score")

    assert fingerprint(text) == fingerprint(text)
    assert fingerprint(text) != fingerprint(text.replace("HELP = 1", "HELP = 22"))


def test_at_a_prompt_a_fingerprint_is_of_the_function() -> None:
    def typed(source: str) -> str:
        names: Registry[Any] = Registry("maker")
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, "<stdin>", "exec"), space)
        names.register("score")(space["score"])
        return names.fingerprint("score")

    one = "def score(x):\n    return [y * 2 for y in x.abs()]\n"
    assert typed(one) == typed("\n\n" + one)
    others = [
        typed(one.replace(*change)) for change in (("2", "3"), ("abs", "exp"), ("*", "+"), ("y * 2", "2"))
    ]
    assert len({typed(one), *others}) == 5
