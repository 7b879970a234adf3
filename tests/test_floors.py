"""The house's floors: imports point one way, and the half that reads results never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import natal

HOUSE = Path(natal.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "registry", "streams", "spec"),
    ("store", "determinism", "tasks", "nets", "masks", "units"),
    (
        "flow",
        "criteria.problem",
        "criteria.simple",
        "criteria.gradient",
        "criteria.flow",
        "criteria.choose",
        "criteria",
    ),
    ("pruning", "doctor", "compaction", "interop"),
    ("engine.ticket", "engine.sequential", "engine.kernels", "engine.batched", "engine"),
    ("worker", "preload", "executors"),
    ("results", "stats", "claims", "words", "figures", "checkup", "report", "validate"),
    ("runner",),
    ("progress",),
    ("cli",),
)
"""A module imports from lower floors, or from its left on its own; the lowest floor comes first."""
ORDER = [name for floor in FLOORS for name in floor]
RIGHT_HALF = (
    "errors",
    "registry",
    "spec",
    "store",
    "results",
    "stats",
    "claims",
    "words",
    "figures",
    "checkup",
    "report",
    "validate",
    "progress",
    "cli",
)
HEAVY = {"torch", "torchvision", "safetensors", "numba"}


def modules() -> dict[str, Path]:
    """Return the house's modules by name, without ``natal.``."""
    found = {}
    for path in HOUSE.rglob("*.py"):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name not in ("", "studies")}


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


def test_every_module_has_its_place() -> None:
    assert sorted(modules()) == sorted(ORDER)


def test_imports_point_one_way() -> None:
    upwards = [
        f"{name} imports {wanted}"
        for name, path in modules().items()
        for wanted in imports(path)
        if wanted.startswith("natal.") and ORDER.index(wanted.removeprefix("natal.")) >= ORDER.index(name)
    ]
    assert upwards == []


def test_the_front_door_imports_nothing() -> None:
    assert [
        name for name in imports(HOUSE / "__init__.py", types_too=False) if name.startswith("natal")
    ] == []


def test_only_the_command_line_uses_the_front_door() -> None:
    through = {name for name, path in modules().items() if "natal" in imports(path)}
    assert through <= {"cli"}


def test_the_right_half_never_names_torch() -> None:
    heavy = {
        f"{name} imports {wanted}"
        for name in RIGHT_HALF
        for wanted in imports(modules()[name])
        if wanted.split(".")[0] in HEAVY
    }
    assert heavy == set()


def test_the_right_half_never_loads_torch() -> None:
    names = ["natal", *(f"natal.{name}" for name in RIGHT_HALF)]
    code = f"import sys, {', '.join(names)}; print(sorted(HEAVY & set(sys.modules)))".replace(
        "HEAVY", repr(HEAVY)
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
