"""What suits the hardware: bf16 where it is multiplied in; emulated, a convolution takes ten times as long (docs/performance.md).

The order of an image's numbers in memory goes with it: on a processor without such units phi learns twice as fast with channels first.
"""

from __future__ import annotations

from functools import lru_cache

import torch

CPU_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Names in ``torch.cpu.get_capabilities()`` of instructions that multiply in bf16; those of ARM (the last two) were never tried."""


@lru_cache
def computes_bf16(kind: str) -> bool:
    """Return whether devices of a kind ("cpu", "cuda", ...) have instructions of their own for bf16."""
    if kind == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(bool(capabilities.get(unit)) for unit in CPU_UNITS)
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def bf16_autocast(kind: str, enabled: bool = True) -> torch.autocast:
    """Return the context in which networks on a kind of device compute in bf16 where that is quicker, else in their own precision."""
    return torch.autocast(kind, torch.bfloat16, enabled=enabled and computes_bf16(kind))


def convolution_layout(kind: str) -> torch.memory_format:
    """Return the memory format in which convolutions learn on a kind of device; tried on CPUs, others keep channels last."""
    return torch.channels_last if computes_bf16(kind) else torch.contiguous_format
