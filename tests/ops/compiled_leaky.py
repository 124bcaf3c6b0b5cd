"""Compiles the leaky average for sm_90 on a machine without a GPU: ``python tests/ops/compiled_leaky.py``.

Prints a line per kernel: the case, its name, and how many matrix instructions it holds.
"""

from __future__ import annotations

from typing import Any

import compiled
import torch
from triton.runtime.jit import JITFunction

from epan.ops.triton import leaky

case = ""


def compile_both(self: Any, *args: Any, **named: Any) -> None:
    """Both launches of a long sequence: they are kernels of their own."""
    compiled.case = f"{case}-{'ends' if named['PARTIAL'] else 'averages'}"
    compiled.compile_only(self, *args, **named)


if __name__ == "__main__":
    JITFunction.run = compile_both
    for case, size, per_step, unit, length in (  # noqa: B007 (read by compile_both)
        ("short", 64, False, True, 128),
        ("long", 64, False, True, 4096),
        ("gated", 64, True, True, 4096),
        ("plain", 80, True, False, 4096),
        ("wide", 256, False, True, 4096),
    ):
        x = torch.zeros(1, 2, length, size, dtype=torch.bfloat16)
        rate = torch.zeros((1, 2, length) if per_step else (2,))
        _, last, carries = leaky._average(x, rate, None, unit)
        leaky._average_backward(x, last, x, rate, carries, unit)
