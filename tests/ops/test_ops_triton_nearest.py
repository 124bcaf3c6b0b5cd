"""The search of the nearest rule and the tiles that it lists, in Triton's interpreter; test_ops_triton has the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
SCRIPT = Path(__file__).parent / "interpreted_nearest.py"


@pytest.mark.slow
def test_the_search_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), "search"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "passed search" in done.stdout
