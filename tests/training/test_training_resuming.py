"""Runs that are stopped at random steps and go on, to the bit; ``resuming.py`` does it as often as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "resuming.py"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def resume(alone: int, together: int) -> list[str]:
    # Forks a process without threads, which pytest's may have.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--alone", str(alone), "--together", str(together)],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout.splitlines()


def test_resumed_runs_have_the_same_bits() -> None:
    assert resume(2, 2) == [
        "2 of 2 resumed runs in 1 process have the same SHA-256",
        "2 of 2 resumed runs in 2 processes have the same SHA-256",
    ]


@pytest.mark.slow
def test_twenty_two_resumed_runs_have_the_same_bits() -> None:
    assert resume(14, 8) == [
        "14 of 14 resumed runs in 1 process have the same SHA-256",
        "8 of 8 resumed runs in 2 processes have the same SHA-256",
    ]
