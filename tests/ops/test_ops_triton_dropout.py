"""Which weights the GPU kernels drop, in Triton's interpreter."""

from __future__ import annotations

import pytest
from scripts import Scripts

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")


def test_the_generator_of_dropped_weights(scripts: Scripts) -> None:
    assert "passed" in scripts.run("interpreted_dropout.py")
