"""A run that is killed again and again; ``soak.py`` does it as often as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "soak.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_survives_kills(kills: int) -> None:
    # Forks a process without threads, which pytest's may have.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", str(kills)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout.splitlines()[-1]
    assert "no litter" in done.stdout
