"""Which device to compute on, reproducible arithmetic on it, and how much memory a job took."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from portrait_shared.errors import PortraitDiffusionError


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; raises PortraitDiffusionError ``device-unavailable``."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise PortraitDiffusionError(
            "device-unavailable",
            "no CUDA device can be used here",
            "Use --device cpu, or see what portrait-diffusion doctor says about the GPU",
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def describe_device(device: torch.device) -> str:
    """Return the device for people: "cpu (2 threads)" or "cuda (its product name)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def stage_generator(seed: int, stage: str, device: torch.device) -> torch.Generator:
    """Return a generator that depends on (seed, stage) only, so that a stage gives the same result alone and in a full run."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def reproducible() -> Iterator[None]:
    """Use deterministic kernels wherever torch has them; the previous mode returns afterwards. The number of threads stays."""
    keep_threads()
    options: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), options.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it first starts
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` is the same, but loads torch's compiler: 1.5 s
    options.fill_uninitialized_memory = False  # it would write every new tensor twice
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        options.fill_uninitialized_memory = fill


def keep_threads() -> None:
    """Give numba as many threads as torch has, now.

    numba starts its OpenMP threads at its first parallel kernel and thereby changes torch's number in the middle of a job:
    a job that goes on after that stage would add up sums in another order.
    """
    import numba

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)


def peak_memory_mb() -> int | None:
    """Return the largest resident memory of this process so far in MB (10^6 bytes), None where the system can't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def peak_gpu_memory_mb(device: torch.device) -> int | None:
    """Return the largest GPU memory since the last `reset_gpu_peak` in MB, None on the CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6) if device.type == "cuda" else None


def reset_gpu_peak(device: torch.device) -> None:
    """Start a new GPU memory measurement."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
