"""The compiled engine's bits: the same on every processor, as written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "data" / "compiled_bits.json").read_text())
AVX2 = {  # what the libraries and Numba do on a processor without AVX-512
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX",
}
COMPATIBLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("environment", "torch_path"),
    [
        ({}, None),
        pytest.param(COMPATIBLE, "DEFAULT", marks=pytest.mark.slow),
        pytest.param(AVX2, "AVX2", marks=pytest.mark.slow),
    ],
    ids=["this-machine", "libraries-compatible", "avx2"],
)
def test_bits_are_those_written_down(environment: dict[str, str], torch_path: str | None) -> None:
    known = {name: value for name, value in os.environ.items() if name not in (*AVX2, *COMPATIBLE)}
    # NumPy says on stderr that a processor had none of the features anyway
    asked = subprocess.run(
        [sys.executable, str(TESTS / "bits.py")],
        env=known | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert torch_path in (None, found["torch"])
    if "NUMBA_CPU_NAME" in environment:
        assert found["panel"] == 1
    assert found["digests"] == GOLDEN
