"""The methods compute what they are said to compute, and what is said of their errors and tiles is true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import epan
from accuracy import TILE, density, errors, thresholds, tile_map
from cells import PRESETS
from epan.testing.tolerance import EXACT, NOISE, assert_within, band
from problem import Problem
from rivals import RIVALS
from workloads import Inputs, Shape, make

CPU = torch.device("cpu")
SHAPE = Shape(1, 2, 384, 16)
GPU_ONLY = {"epan_long", "fa2", "cudnn", "fa4", "adasplash1", "adasplash2", "flex", "flex_threshold", "epan"}


def problem(kernel: str = "biweight", normalization: str = "adaptive", dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(SHAPE, dtype, CPU, kernel, normalization)


def inputs(dtype: torch.dtype = torch.float32) -> Inputs:
    return make("segments", 3, SHAPE, dtype, CPU)


def definition(asked: Problem, tensors: Inputs, dtype: torch.dtype, noise: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        t.to(dtype) * (1 + noise * torch.randn(t.shape, generator=generator, dtype=torch.float64)).to(dtype)
        for t in tensors[:3]
    )
    return epan.attention(q, k, v, **asked.options(), backend="eager")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["epanechnikov", "biweight", "triweight"])
@pytest.mark.parametrize("name", ["entmax", "flex", "flex_threshold", "epan_tiled", "eager", "sdpa"])
def test_a_method_is_the_definition_of_its_kernel(name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The mathematics is the same without the compiler.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    rival, asked, tensors = RIVALS[name], problem(kernel), inputs()
    computed = asked.gaussian() if rival.dense else asked
    assert rival.refuses(asked) is None
    found = rival.prepare(asked, tensors)(*tensors[:3])
    exact = definition(computed, tensors, torch.float64)
    moved = definition(computed, tensors, torch.float64, NOISE * torch.finfo(torch.float32).eps)
    baseline = definition(computed, tensors, torch.float32)
    assert_within(found, exact, baseline, band=band(exact, [moved], torch.float32), label=name)


@pytest.mark.parametrize("name", ["flex", "flex_threshold"])
def test_flex_attention_visits_the_tiles_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, tensors = problem(), inputs()
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, score_mod: object, block_mask: Any) -> Tensor:
        seen.append(block_mask.to_dense().bool())
        # Each tile once: whole tiles and those that need a mask are two lists.
        listed = block_mask.kv_num_blocks + block_mask.full_kv_num_blocks
        assert torch.equal(listed, seen[0].sum(-1))
        return v

    monkeypatch.setattr(torch, "compile", lambda function, **_: attend)
    RIVALS[name].prepare(asked, tensors)(*tensors[:3])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    expected = causal if name == "flex" else tile_map(asked, tensors, thresholds(asked, tensors))
    assert torch.equal(seen[0].expand(1, 2, 3, 3), expected.expand(1, 2, 3, 3))
    assert name == "flex" or not bool(expected.equal(causal.expand(1, 2, 3, 3)))


def test_what_needs_a_gpu_says_so_on_a_cpu() -> None:
    missing = {name for name, rival in RIVALS.items() if "GPU" in (rival.missing(CPU) or "")}
    assert missing == GPU_ONLY
    assert all(rival.name == name and rival.title for name, rival in RIVALS.items())


def test_what_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert RIVALS["entmax"].missing(CPU) == "not installed: pip install entmax"
    assert RIVALS["fa4"].missing(torch.device("cuda")) == "not installed: pip install flash-attn-4"


def test_adasplash_2_is_asked_for_its_own_problem_alone() -> None:
    rival = RIVALS["adasplash2"]
    at = {N: replace(problem(), shape=Shape(1, 2, N, 64)) for N in (4096, 8192)}
    assert rival.refuses(at[4096]) is None
    assert "4096, 16384, 65536" in (rival.refuses(at[8192]) or "")
    assert "anchored" in (rival.refuses(replace(at[4096], normalization="anchored")) or "")
    assert "triweight" in (rival.refuses(replace(at[4096], kernel="triweight")) or "")


@pytest.mark.parametrize(
    ("kernel", "rule"), [("biweight", "adaptive"), ("epanechnikov", "anchored"), ("biweight", "fixed")]
)
def test_tiles_are_those_with_weight(kernel: str, rule: str) -> None:
    shape = Shape(1, 2, 300, 16)
    tensors = Inputs(*(t[:, :, :300] for t in inputs(torch.float64)))
    asked = Problem(shape, torch.float64, CPU, kernel, rule)
    found = tile_map(asked, tensors, thresholds(asked, tensors))
    count = found.shape[-1]
    # Key j carries weight for query i exactly if the output moves with its value.
    v = torch.eye(300, dtype=torch.float64).expand(1, 2, 300, 300)
    matrix = epan.attention(tensors.q, tensors.k, v, **asked.options(), backend="eager")
    for row in range(count):
        for column in range(count):
            part = matrix[:, :, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            assert torch.equal(found[:, :, row, column], (part > 0).any(-1).any(-1)), (row, column)
    assert density(asked, found) == float(found.sum()) / (2 * count * (count + 1) / 2)


def shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that does not see the query's own position."""
    return epan.attention(q, k, v, scale=0.25, window=(None, -1), backend="eager")


BROKEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mask": shifted,
    "temperature": lambda q, k, v: epan.attention(q, k, v, is_causal=True, scale=0.26, backend="eager"),
    "kernel": lambda q, k, v: epan.attention(q, k, v, is_causal=True, scale=0.25, kernel="triweight", backend="eager"),
    "values": lambda q, k, v: 1.001 * epan.attention(q, k, v, is_causal=True, scale=0.25, backend="eager"),
}


def test_the_definition_has_no_error() -> None:
    tensors, asked = inputs(torch.float64), problem(dtype=torch.float64)
    found, eager = errors(asked, tensors, RIVALS["eager"].prepare(asked, tensors), gradients=True)
    assert set(found) == {"out", "dq", "dk", "dv"}
    assert max(found.values()) < EXACT
    assert max(eager.values()) < EXACT


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_has_an_error_everywhere(name: str) -> None:
    tensors, asked = inputs(torch.float64), problem(dtype=torch.float64)
    found, _ = errors(asked, tensors, BROKEN[name], gradients=True)
    assert min(found.values()) > 1e3 * EXACT, found


def test_every_entry_of_a_preset_names_a_method_and_a_workload_that_exist() -> None:
    from workloads import WORKLOADS

    for groups in PRESETS.values():
        for group in groups:
            for entry in group.entries:
                assert entry.rival in RIVALS
                assert entry.workload in WORKLOADS
                epan.kernels.get(entry.kernel)
                epan.normalizations.get(entry.normalization)
