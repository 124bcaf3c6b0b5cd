"""The fused GPU kernels without a GPU: conformance in Triton's interpreter, and compilation for sm_90."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("group", ["adaptive", "anchored", "fixed", "gaussian", "containment"])
def test_conformance_in_the_interpreter(group: str) -> None:
    assert f"passed {group}" in run("interpreted.py", group)


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper() -> None:
    lines = [line.split() for line in run("compiled.py").splitlines()]
    found = {(name, case) for case, name, *_ in lines}
    kernels = {"sweep", "attend", "by_rows", "columns", "by_columns"}
    cases = {case for case, *_ in lines}
    assert len(cases) == 4
    assert {name for name, _ in found} == kernels
    # The products go through the warp-group matrix instructions of that chip.
    assert all(int(products) > 0 for _, name, products in lines if name != "columns")
