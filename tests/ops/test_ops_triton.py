"""The fused GPU kernels: conformance in Triton's interpreter, compilation for sm_90, and the same cases on a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import GROUPS, ITEMS
from scripts import Scripts

import epan
from epan.errors import EpanError, UnsupportedError
from epan.testing import conformance
from epan.testing.execution import backend
from epan.testing.inputs import Case

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton (pip install triton, on Linux)"
)


PRODUCTS = {"sweep", "attend", "by_rows", "by_columns"}


def compiled(*names: str) -> list[list[str]]:
    """What ``compiled.py`` prints about cases."""
    # A compiler, and so a process of its own beside the interpreter's.
    command = [sys.executable, "-W", "ignore", str(HERE / "compiled.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {case for case, *_ in lines} == set(names)
    return lines


def check(scripts: Scripts, group: str) -> None:
    said = scripts.run("interpreted.py", *GROUPS[group])
    assert [line.split()[1] for line in said.splitlines() if line.startswith("passed")] == GROUPS[group]


@needs_triton
@pytest.mark.parametrize("group", GROUPS)
def test_in_the_interpreter(scripts: Scripts, group: str) -> None:
    check(scripts, group)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ITEMS)
def test_on_a_gpu(name: str) -> None:
    ITEMS[name](backend("triton"), backend("eager"))


@needs_triton
@pytest.mark.parametrize(
    "names",
    [("plain-64", "alibi"), pytest.param(("plain-128", "fixed"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_every_kernel_compiles_for_hopper(names: tuple[str, ...]) -> None:
    lines = compiled(*names)
    assert {name for _, name, *_ in lines} >= PRODUCTS | {"prepare"}
    # The products go through the warp-group matrix instructions of that chip.
    assert all(int(count) > 0 for _, name, count, _ in lines if name in PRODUCTS)


@needs_triton
@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("float32-16",), False),
        pytest.param(("float32-64", "nearest-64"), False, marks=pytest.mark.slow),
        pytest.param(("float32-128", "nearest-128"), True, marks=pytest.mark.slow),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else str(given),
)
def test_products_of_float32_are_plain_up_to_64(names: tuple[str, ...], parts: bool) -> None:
    """Three TF32 parts per number are not as accurate, and serve only where rows are wider."""
    lines = [line for line in compiled(*names) if line[1].removeprefix("nearest_") in PRODUCTS]
    assert {case for case, *_ in lines} == set(names)
    for _, name, of_warp_groups, of_tf32 in lines:
        assert int(of_warp_groups) == 0, f"{name} is at the mercy of the assembler"
        assert (int(of_tf32) > 0) == parts, f"{name} has {of_tf32} products in TF32"


@needs_triton
@pytest.mark.parametrize("case", ["short", pytest.param("short-nearest", marks=pytest.mark.slow)])
def test_the_kernels_for_short_sequences_compile_for_hopper(case: str) -> None:
    assert {name for _, name, *_ in compiled(case)} == {"short_forward", "short_backward"}


def test_tensors_elsewhere_are_refused() -> None:
    x = torch.randn(1, 1, 4, 8)
    with pytest.raises(UnsupportedError, match="triton") as caught:
        epan.attention(x, x, x, backend="triton")
    assert caught.value.fix
    assert 'backend="tiled"' in caught.value.fix


def test_the_way_of_short_sequences_is_chosen_for_a_block_of_code() -> None:
    short_mode = importlib.import_module("epan.ops.triton.short_mode").short_mode
    with epan.ops.triton.short("never"):
        assert short_mode() == "never"
    assert short_mode() == "auto"
    with pytest.raises(EpanError, match="always"), epan.ops.triton.short("always"):
        pass


def test_the_screen_is_chosen_for_a_block_of_code() -> None:
    screening = importlib.import_module("epan.ops.triton.screening").screening
    assert screening() == "auto"
    with epan.ops.triton.screen("always"):
        with epan.ops.triton.screen("never"):
            assert screening() == "never"
        assert screening() == "always"
    with pytest.raises(ZeroDivisionError), epan.ops.triton.screen("never"):
        _ = 1 / 0
    assert screening() == "auto"
    with pytest.raises(epan.EpanError, match="did you mean 'never'"), epan.ops.triton.screen("nevr"):
        pass


def test_the_check_of_the_density_rejects_too_few_tiles() -> None:
    """A backend that says it left out every tile, though they have weight."""

    def claims(share: float, *args: Any, **options: Any) -> Any:
        found = backend("eager")(*args, **options)
        if isinstance(found, torch.Tensor):
            return found
        density = torch.full_like(found[1].partition, share, dtype=torch.float32)
        return found[0], found[1]._replace(tile_density=density)

    case = Case(q_len=140, k_len=260, batch=1, heads=1)
    conformance.reports_statistics(functools.partial(claims, 1.0), case)
    for share in (0.0, 0.6, 1.5):
        with pytest.raises(AssertionError, match="tile_density"):
            conformance.reports_statistics(functools.partial(claims, share), case)
