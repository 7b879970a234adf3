"""docs/interop.md: every block runs, in order, under its heading."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "interop.md").read_text("utf-8")
SLOW = {"torch.export", "ONNX", "Lightning"}


def blocks() -> dict[str, str]:
    """Return the code under each heading."""
    sections = re.split(r"^#+ (.*)$", PAGE, flags=re.M)[1:]
    return {
        title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }


def run_with(title: str) -> None:
    """Run the page's first block, what a section builds upon, and the section."""
    known: dict[str, Any] = {"__name__": "interop"}
    found = blocks()
    needed = ["With other tools", "safetensors", "A smaller network", title]
    for name in dict.fromkeys(needed):
        exec(compile(found[name], f"docs/interop.md ({name})", "exec"), known)


def test_every_tool_has_a_section_with_code() -> None:
    tools = {"torch.nn.utils.prune", "safetensors", "torch.export", "ONNX", "Lightning"}
    assert tools <= set(blocks())
    assert [title for title, code in blocks().items() if "assert" not in code][1:] == []


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t
        for t in blocks()
        if t != "With other tools"
    ],
)
def test_a_round_trip_works(title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs: few workers, few batches
        run_with(title)
