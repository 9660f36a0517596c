"""Compiled kernels are kept from one start to the next; none may outlive the source it was made of."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from portrait_backend.prior import flow_kernel
from portrait_backend.radiance import grid_kernels, march_kernel

BACKEND = Path(inspect.getfile(grid_kernels)).parents[1]


def test_kernels_that_inline_functions_of_another_file_change_with_it() -> None:
    digits = hashlib.sha256(Path(inspect.getfile(grid_kernels)).read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:12]
    for kernel in (march_kernel, flow_kernel):
        assert digits == kernel.INLINED, f"grid_kernels.py has changed: write INLINED = {digits!r} in {Path(inspect.getfile(kernel)).name}"


def test_every_kernel_that_inlines_functions_of_another_file_says_so() -> None:
    files = [path for path in BACKEND.rglob("*.py") if "cache=True" in path.read_text(encoding="utf-8")]
    assert len(files) >= 5
    borrowing = {path.stem for path in files if "import REPEATABLE" in path.read_text(encoding="utf-8")}
    assert borrowing == {"march_kernel", "flow_kernel"}
