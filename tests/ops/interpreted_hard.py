"""Runs the hard inputs of tests/gpu, small, in Triton's interpreter; a process of its own, as that is chosen at import.

python tests/ops/interpreted_hard.py DTYPE [NAME ...], or list
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import interpreter  # noqa: F401  isort: skip (before Triton)

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))

import cases
import torch

if __name__ == "__main__":
    if sys.argv[1] == "list":
        print(*cases.CASES)
        sys.exit()
    dtype = {"float32": torch.float32, "float16": torch.float16}[sys.argv[1]]
    for name in sys.argv[2:] or cases.CASES:
        function, sizes, _ = cases.CASES[name]
        start = time.monotonic()
        for size in sizes if dtype == torch.float32 else cases.HALF[name]:
            torch.manual_seed(0)
            function(torch.device("cpu"), dtype, size)
        print("passed", name, f"{time.monotonic() - start:.1f} s", flush=True)
