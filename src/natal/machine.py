"""What natal runs on here: versions, processor, kernels, devices. Only an accelerator's name needs torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

HOME = Path(__file__).parent
"""Where natal's own modules lie."""
LAB = ("torch", "numba", "safetensors")
READING = ("numpy", "scipy", "pandas", "matplotlib", "pydantic", "typer")


def facts() -> Iterator[tuple[str, str]]:
    """Yield what a report of a fault should tell, as (what, value); the commonest question first."""
    yield "natal", f"{version('natal')}, in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    for name in (*LAB, *READING):
        yield name, version(name)
    yield "platform", platform.platform()
    yield "processor", f"{processor()}, {cores()} cores for this process"
    yield "kernels", kernels()
    yield "data", os.environ.get("NATAL_DATA") or "no folder of data files: NATAL_DATA is not set"
    yield "devices", devices()


def version(package: str) -> str:
    """Return an installed package's version, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's model; Python alone knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kernels() -> str:
    """Return where the compiled engine's kernels lie, or that they are still to be compiled."""
    engine = Path(__file__).parent / "lab" / "engines" / "compiled"
    own = os.environ.get("NUMBA_CACHE_DIR")
    # where Numba looks, in its order
    places = [Path(own)] if own else [engine / "__pycache__", Path("~/.cache/numba").expanduser()]
    for place in places:
        if next(place.rglob("*.nbc"), None) is not None:
            return f"compiled, in {place}"
    return "not compiled yet: the first training does it, once, in some seconds"


def devices() -> str:
    """Return the devices that ``--device`` takes; torch is asked only where there is a driver to ask about."""
    if not _has_cuda_driver():
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu (an accelerator's driver is here, torch is not)"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(names))])


def _has_cuda_driver() -> bool:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
