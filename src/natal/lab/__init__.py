"""Running studies: tasks, networks, engines, executors, and the plan that joins them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natal.errors import require

require("torch", "numba", "safetensors", "threadpoolctl", "filelock")

DATA = "NATAL_DATA"
"""The environment variable that names the folder of data files; the option ``data`` sets it for one call."""


@contextmanager
def data_in(folder: str | Path | None) -> Iterator[None]:
    """Let data files be found in a folder, by default the one that is named already, wherever a plugin goes."""
    before = os.environ.get(DATA)
    if named := folder or before:
        os.environ[DATA] = os.path.abspath(os.path.expanduser(named))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DATA, None)
        else:
            os.environ[DATA] = before
