"""Compilation by Numba, once a machine."""
from __future__ import annotations
from collections.abc import Callable
from typing import Any, TypeVar
from numba import njit
F = TypeVar("F", bound=Callable[..., Any])
def inlined(function: F) -> F:
    """Let compiled functions call this one."""
    compiled: F = njit(error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)(function)
    return compiled
def entry(function: F) -> F:
    compiled: F = njit(error_model="numpy")(function)
    return compiled
