"""The inputs that break fused kernels, on a GPU and at full size; ``tests/ops/interpreted_hard.py`` runs the small ones."""

from __future__ import annotations

import cases
import pytest
import torch

SIZES = [(name, size) for name, (_, _, sizes) in cases.CASES.items() for size in sizes]
SIZES += [(name, size) for name, (_, sizes) in cases.GPU_ONLY.items() for size in sizes]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_hard_inputs(name: str, size: int) -> None:
    function = cases.CASES[name][0] if name in cases.CASES else cases.GPU_ONLY[name][0]
    function(torch.device("cuda"), torch.bfloat16, size)
    torch.cuda.empty_cache()
