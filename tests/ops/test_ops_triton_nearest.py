"""The search of the nearest rule and the tiles that it lists, in Triton's interpreter; test_ops_triton has the rest."""

from __future__ import annotations

import pytest
from scripts import Scripts

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")


@pytest.mark.slow
def test_the_search_in_the_interpreter(scripts: Scripts) -> None:
    assert "passed search" in scripts.run("interpreted_nearest.py", "search")
