"""The house: three wings on one ground. Imports point one way, and what reads results never imports torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import natal

HOUSE = Path(natal.__file__).parent
GROUND = {"errors", "registry", "wording", "streams", "determinism", "machine", "notebook"}
TOP = {"front", "cli", "progress", "explain", "__main__"}
MAY_IMPORT = {
    "ground": {"ground"},
    "study": {"study", "ground"},
    "store": {"store", "study", "ground"},
    "pruning": {"pruning", "study", "ground"},
    "lightning": {"pruning", "study", "ground"},
    "lab": {"lab", "pruning", "store", "study", "ground"},
    "reading": {"reading", "store", "study", "ground"},
    "top": {"top", "lab", "reading", "pruning", "store", "study", "ground"},
}
"""Which wings a module of a wing may import from."""
BRIDGES = {("reading.results", "lab.restore")}
"""What else is imported, inside functions: results give networks back where the lab is installed."""
LIGHT = ("study", "store", "reading", "top")
"""Wings that work on a machine without torch and Numba."""
HEAVY = {"torch", "torchvision", "safetensors", "numba"}


@functools.cache
def modules() -> dict[str, Path]:
    """Return the house's modules by name, without ``natal.``."""
    found = {}
    for path in HOUSE.rglob("*.py"):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def wing(name: str) -> str:
    """Return the wing a module stands in."""
    first = name.split(".")[0]
    return "ground" if first in GROUND else "top" if first in TOP else first


def imports(path: Path, *, types_too: bool = True) -> Iterator[str]:
    """Yield what a file imports anywhere in it, from the house as ``natal.x``."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only and not types_too:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("natal.") in modules() else str(node.module)


def within(path: Path, *, types_too: bool = True) -> Iterator[str]:
    """Yield the house's modules that a file imports, without ``natal.``."""
    for wanted in imports(path, types_too=types_too):
        if wanted.startswith("natal."):
            yield wanted.removeprefix("natal.")


def test_every_module_stands_in_a_wing() -> None:
    assert {wing(name) for name in modules()} == set(MAY_IMPORT)


def test_imports_point_one_way() -> None:
    upwards = [
        f"{name} imports {wanted}"
        for name, path in modules().items()
        for wanted in within(path, types_too=False)
        if wing(wanted) not in MAY_IMPORT[wing(name)] and (name, wanted) not in BRIDGES
    ]
    assert upwards == []


def test_pruning_knows_nothing_of_studies_but_a_recipe() -> None:
    # one front door of the wing, so that a reader sees what is used of it
    used = {
        alias.name
        for name, path in modules().items()
        if wing(name) == "pruning"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "natal.study"
        for alias in node.names
    }
    assert used <= {"Recipe", "SCOPES", "unknown_scope", "one_line", "recipe_of", "Timeline", "untimely"}


def test_there_are_no_circles() -> None:
    house = modules()
    below = {name: {w for w in within(path, types_too=False) if w != name} for name, path in house.items()}
    while free := {name for name, wanted in below.items() if not wanted & set(below)}:
        below = {name: wanted for name, wanted in below.items() if name not in free}
    assert below == {}


def test_the_front_door_imports_nothing() -> None:
    assert list(within(HOUSE / "__init__.py", types_too=False)) == []


def test_only_the_command_line_uses_the_front_door() -> None:
    through = {name for name, path in modules().items() if "natal" in imports(path)}
    assert through <= {"cli"}


def test_light_wings_never_name_torch() -> None:
    heavy = {
        f"{name} imports {wanted}"
        for name, path in modules().items()
        if wing(name) in LIGHT
        for wanted in imports(path)
        if wanted.split(".")[0] in HEAVY
    }
    assert heavy == set()


def test_light_wings_never_load_torch() -> None:
    names = ["natal", *(f"natal.{name}" for name in modules() if wing(name) in LIGHT)]
    code = f"import sys, {', '.join(names)}; print(sorted(HEAVY & set(sys.modules)))".replace(
        "HEAVY", repr(HEAVY)
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")
