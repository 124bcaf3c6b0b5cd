"""The GPU kernels of the leaky average, in Triton's interpreter and compiled for sm_90; tests/nn has the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import Scripts

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")


@pytest.mark.parametrize(
    "group", ["float32", "float16", pytest.param("second", marks=pytest.mark.slow), "containment", "surroundings"]
)
def test_the_gpu_kernel_in_the_interpreter(scripts: Scripts, group: str) -> None:
    assert f"passed {group}" in scripts.run("interpreted_leaky.py", group)


def test_the_gpu_kernel_compiles_for_hopper() -> None:
    # A compiler, and so a process of its own beside the interpreter's.
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "compiled_leaky.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    cases = {"short-averages"} | {
        f"{name}-{part}" for name in ("long", "gated", "plain", "wide") for part in ("ends", "averages")
    }
    assert lines == {(case, kernel) for case in cases for kernel in ("average", "average_backward")}
