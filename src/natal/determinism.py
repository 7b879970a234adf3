"""Settings of torch under which a result is the same every time, given back as they were afterwards."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.utils.deterministic
from threadpoolctl import ThreadpoolController
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def defaults_given_back() -> Iterator[None]:
    """Give torch's default dtype and device back as they were: a criterion, task or network may set them for all."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # None is torch's own, the CPU, and costs nothing with each operation
            torch.set_default_device(None if device.type == "cpu" else device)


@contextmanager
def deterministic(device: str = "cpu") -> Iterator[None]:
    """Run under torch's deterministic algorithms, in float32 as it is, whatever the caller has chosen.

    The caller's default dtype, autocast, inference mode and shorter float32 products (TF32, bfloat16) would give other
    bits.
    """
    if device != "cpu":  # cuBLAS reads it when first used; without it torch refuses its products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    tried, short = cudnn.benchmark, cudnn.allow_tf32
    before = torch.get_deterministic_debug_mode()
    memory = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    # the same switch as torch.use_deterministic_algorithms(True), which also imports the compiler, for a second
    torch.set_deterministic_debug_mode("error")
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a cost: no one reads it unwritten
    torch.set_float32_matmul_precision("highest")
    cudnn.benchmark = cudnn.allow_tf32 = False
    # on an accelerator the fused kernels of attention add gradients up in any order
    attention = nullcontext() if device == "cpu" else sdpa_kernel(SDPBackend.MATH)
    try:
        with (
            defaults_given_back(),
            attention,
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = tried, short
        torch.set_float32_matmul_precision(precision)
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch and NumPy's BLAS on one thread: at a study's sizes threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # a training that overflows is told apart by its loss
        with _thread_pools().limit(limits=1), np.errstate(all="ignore"):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, with denormal numbers flushed to zero.

    The number of threads would change the order of sums; denormals turn up in decaying moments and softmax tails, and
    are slow.
    """
    flushed = torch.full((1,), 1e-40, dtype=torch.float32).mul(1.0).item() == 0
    with single_threaded():
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Find the libraries that have threads, once: to look takes a millisecond, as long as making a mask."""
    return ThreadpoolController()
