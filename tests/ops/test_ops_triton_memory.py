"""No fused kernel touches memory that is not its own, and none reads what nobody wrote: all addresses in the interpreter."""

from __future__ import annotations

import pytest
from scripts import Scripts

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")


@pytest.mark.parametrize("name", ["reject", "adaptive", "fixed", "nearest"])
def test_kernels_touch_their_own_memory_alone(scripts: Scripts, name: str) -> None:
    assert f"passed {name} " in scripts.run("interpreted_memory.py", name)
