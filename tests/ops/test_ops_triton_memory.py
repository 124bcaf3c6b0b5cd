"""No fused kernel touches memory that is not its own, and none reads what nobody wrote: all addresses in the interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
SCRIPT = Path(__file__).parent / "interpreted_memory.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reject", "adaptive", "fixed", "nearest"])
def test_kernels_touch_their_own_memory_alone(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"passed {name} " in done.stdout
