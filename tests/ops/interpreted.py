"""Runs some of ``fused_cases`` in Triton's interpreter: a process of its own, as that is chosen when Triton is imported.

python tests/ops/interpreted.py NAME...
"""

from __future__ import annotations

import sys
import time

import interpreter  # noqa: F401  isort: skip (before Triton)

from fused_cases import ITEMS

from epan.testing.execution import backend

if __name__ == "__main__":
    for name in sys.argv[1:] or list(ITEMS):
        start = time.perf_counter()
        # The public function, on tensors of the CPU, which this backend takes in the interpreter alone.
        ITEMS[name](backend("triton"), backend("eager"))
        print(f"passed {name} {time.perf_counter() - start:.1f} s", flush=True)
