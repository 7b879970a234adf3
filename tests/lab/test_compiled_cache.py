"""What is compiled is kept on disk: said once, taken if whole, and never in anyone's way."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from natal.lab.engines.compiled import cache

SOURCE = """
from natal.lab.engines.compiled.cache import entry

@entry
def triple(x):
    return 3 * x
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Import a module with one compiled function as a new process would, its cache below ``tmp_path``."""
    file = tmp_path / "some_kernels.py"
    file.write_text(SOURCE)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def module() -> Any:
        monkeypatch.setattr(cache, "_said", False)
        spec = importlib.util.spec_from_file_location("some_kernels", file)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made.triple

    return module


def stored(tmp_path: Path, kind: str) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(f"*.{kind}"))


def test_compiling_is_said_once_and_done_once(
    load: Callable[[], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    triple = load()
    assert triple(2) == 6
    assert triple(2.5) == 7.5
    assert capsys.readouterr().err == cache.SAID + "\n"
    assert [len(stored(tmp_path, kind)) for kind in ("nbi", "nbc")] == [1, 2]
    again = load()
    assert (again(2), again(2.5)) == (6, 7.5)
    assert capsys.readouterr().err == ""
    assert sum(again.stats.cache_hits.values()) == 2


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["one bit", "half", "nothing left", "gone"])
def test_a_damaged_cache_is_made_anew(
    kind: str, damage: str, load: Callable[[], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    load()(2)
    (file,) = stored(tmp_path, kind)
    whole = file.read_bytes()
    middle = len(whole) // 2
    broken = {
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "half": whole[:middle],
        "nothing left": b"",
    }
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(broken[damage])
    capsys.readouterr()
    assert load()(2) == 6
    assert capsys.readouterr().err == cache.SAID + "\n"
    assert load()(2) == 6
    assert capsys.readouterr().err == ""  # it is whole again


def test_without_room_for_a_cache_it_is_compiled_every_time(
    load: Callable[[], Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])  # no other place
    for _ in range(2):
        assert load()(2) == 6
        assert capsys.readouterr().err == cache.SAID + "\n"


def test_a_cache_that_cannot_be_written_any_more_is_done_without(
    load: Callable[[], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    triple = load()
    for folder in (tmp_path / "cache").iterdir():
        folder.rmdir()
        folder.write_text("")  # neither a lock nor a file fits here
    assert triple(2) == 6
    assert capsys.readouterr().err == cache.SAID + "\n"


def test_what_other_sources_made_is_not_taken(
    load: Callable[[], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()(2)
    monkeypatch.setattr(cache, "_sources", lambda: "of another version")
    capsys.readouterr()
    assert load()(2) == 6
    assert capsys.readouterr().err == cache.SAID + "\n"


@pytest.mark.slow
def test_two_commands_at_once_compile_once(tmp_path: Path) -> None:
    (tmp_path / "some_kernels.py").write_text(SOURCE)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "import some_kernels; assert some_kernels.triple(2) == 6"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(said) == ["", cache.SAID + "\n"]
