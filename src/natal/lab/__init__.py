"""Running studies: tasks, networks, engines, executors, and the plan that joins them."""

from natal.errors import require

require("torch", "numba", "safetensors", "threadpoolctl", "filelock")

DATA = "NATAL_DATA"
"""The environment variable that names the folder of data files; the option ``data`` sets it."""
