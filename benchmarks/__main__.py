"""`python3 -m benchmarks`: our paths against references on the same work, in one run; prints a markdown table."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks.comparison import table
from benchmarks.entries import ENTRIES, FULL, QUICK, run
from portrait_backend.devices import keep_threads
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head


def main() -> int:
    """Measure and print; always 0: an aim that is missed is told, not an error."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"of {', '.join(ENTRIES)}; default: all")
    parser.add_argument("--head", type=Path, help="a head.safetensors of `generate`; default: an analytic ellipsoid of the starter's size")
    parser.add_argument("--full", action="store_true", help="the sizes that the aims are about: minutes instead of seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    if unknown := set(given.entries) - set(ENTRIES):
        parser.error(f"no such entry: {', '.join(sorted(unknown))}")
    torch.set_num_threads(given.threads)
    keep_threads()  # numba's too
    head = Head.load(given.head) if given.head else ellipsoid_head(depth=2, size=128)
    rows = run(given.entries or list(ENTRIES), head, FULL if given.full else QUICK)
    name = given.head.name if given.head else "analytic ellipsoid"
    print(f"{name}, threads {given.threads}, torch {torch.__version__}, {platform.machine()}\n")
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
