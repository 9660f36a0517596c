"""What a step would take, without taking it: memory and arithmetic of modules on the meta device, which have shapes and no contents."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that come to be within the block and are alive at the same time; `peak` is their maximum.

    Kernels' own workspaces are not in it, nor what an allocator loses to rounding and gaps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._holders: Counter[int] = Counter()
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._hold(tensor, storage._cdata, storage.nbytes(), storage._cdata in before)
        return out

    def _hold(self, tensor: torch.Tensor, storage: int, size: int, shared: bool) -> None:
        if id(tensor) in self._known or (shared and not self._holders[storage]):
            return  # an in-place result, or a view of what was there before
        self._known.add(id(tensor))
        if not self._holders[storage]:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._holders[storage] += 1
        weakref.finalize(tensor, self._release, id(tensor), storage, size)

    def _release(self, tensor: int, storage: int, size: int) -> None:
        self._known.discard(tensor)
        self._holders[storage] -= 1
        if not self._holders[storage]:
            self._now -= size


def cost_of(work: Callable[[], Any]) -> tuple[int, int]:
    """Return (peak bytes of new tensors, floating-point operations) of `work` on meta tensors."""
    with FlopCounterMode(display=False) as flops, PeakMemory() as memory:
        work()
    return memory.peak, flops.get_total_flops()
