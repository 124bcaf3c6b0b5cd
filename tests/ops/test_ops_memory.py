"""What the tiled backend holds and computes: memory linear in the length, and no work on tiles without weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import epan
from epan.testing import conformance, tolerance
from epan.testing.conformance.agreement import answers, judge_gradients
from epan.testing.execution import backend, run
from epan.testing.inputs import Case, Inputs

SIZE = 8
KINDS: dict[str, dict[str, Any]] = {
    "biweight": {"kernel": "biweight"},
    "gaussian": {"kernel": "gaussian"},
    "anchored": {"kernel": "epanechnikov", "normalization": "anchored"},
    "fixed": {"kernel": "triweight", "normalization": "fixed", "similarity": "euclidean"},
    "nearest": {"kernel": "gaussian", "normalization": epan.Nearest(k=4)},
    "causal": {"is_causal": True, "alibi_slopes": torch.tensor([0.01])},
    "dropout": {"dropout_p": 0.2},
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes above what was there before: the most at any time, and the largest piece."""

    peak: int
    largest: int


def memory_of(work: Callable[[], object]) -> Memory:
    """What the allocator reports, also from inside opaque operators."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    assert events, "the profiler saw no allocation"
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return Memory(peak, max(event.nbytes() for event in events))


def step(length: int, name: str, **options: Any) -> Callable[[], None]:
    """Forward and backward of one head."""
    inputs = [torch.randn(1, 1, length, SIZE, requires_grad=True) for _ in range(3)]

    def work() -> None:
        epan.attention(*inputs, backend=name, **options).sum().backward()

    return work


def test_the_measure_sees_quadratic_memory() -> None:
    """The dense definition makes whole matrices of scores, and four times as much at twice the length."""
    short, long = (memory_of(step(n, "eager")) for n in (512, 1024))
    assert long.largest >= 4 * 1024**2
    assert 3.5 < long.peak / short.peak < 4.5


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_of_scores_is_ever_made(kind: str) -> None:
    length = 2048
    # A quarter of the matrix in float32, so not a boolean one either.
    assert memory_of(step(length, "tiled", **KINDS[kind])).largest < length**2


def test_memory_is_linear_in_the_length() -> None:
    short, long = (memory_of(step(n, "tiled")) for n in (4096, 8192))
    assert long.peak < 2.5 * short.peak
    # A tenth of one float32 matrix of scores, of which the definition holds several.
    assert long.peak < 4 * 8192**2 / 5


def test_heads_share_one_panel_of_scores() -> None:
    """64 heads hold no more scores at a time than one long head does: about a million, in a few copies."""
    x = torch.randn(1, 64, 1024, SIZE)
    with torch.no_grad():
        memory = memory_of(lambda: epan.attention(x, x, x, backend="tiled"))
    assert memory.largest <= 3 * 4 * 2**20


def test_packed_sequences_do_not_pay_for_their_number() -> None:
    """Sixteen sequences of 128 need less than one of 2048: no block holds keys of other sequences."""
    inputs = [torch.randn(2048, 1, SIZE, requires_grad=True) for _ in range(3)]

    def work(count: int) -> Callable[[], None]:
        offsets = torch.linspace(0, 2048, count + 1).int()

        def packed() -> None:
            out = epan.attention_varlen(*inputs, offsets, offsets, 2048 // count, 2048 // count, backend="tiled")
            assert isinstance(out, Tensor)
            out.sum().backward()

        return packed

    assert memory_of(work(16)).largest <= memory_of(work(1)).largest / 8


def products_of(work: Callable[[], object]) -> float:
    """Floating-point operations of all matrix products."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as recorded:
        work()
    return float(sum(event.flops or 0 for event in recorded.events() if "mm" in event.name))


def clusters(length: int, count: int = 16, size: int = 16) -> list[Tensor]:
    """Neighbouring tokens lie together and far from all others."""
    centres = (3.0 * torch.randn(count, size)).repeat_interleave(length // count, 0)
    return [(centres + 0.1 * torch.randn(length, size)).view(1, 1, length, size).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    # In units of one product of all queries with all keys: 2 forward and 5 backward without tiles left out.
    [("gaussian", 2.1, 5.3), ("biweight", 1.4, 0.5), ("fixed", 1.5, 0.5)],
)
def test_tiles_without_weight_are_left_out(kind: str, forward: float, backward: float) -> None:
    length, inputs = 2048, clusters(2048)
    unit = 2.0 * length**2 * inputs[0].shape[-1]
    outs: list[Tensor] = []
    spent = products_of(lambda: outs.append(epan.attention(*inputs, scale=1.0, backend="tiled", **KINDS[kind])))
    returned = products_of(lambda: outs[0].sum().backward())
    assert spent <= forward * unit
    assert returned <= backward * unit
    if kind == "gaussian":
        assert spent + returned >= 6.9 * unit, "the measure does not see every product"


def test_keys_outside_the_window_are_never_computed() -> None:
    inputs = clusters(2048)
    unit = 2.0 * 2048**2 * inputs[0].shape[-1]
    for options, most in (({"window": (64, 64)}, 0.3), ({"is_causal": True}, 1.1), ({}, 2.0)):
        with torch.no_grad():
            spent = products_of(
                lambda options=options: epan.attention(*inputs, kernel="gaussian", backend="tiled", **options)
            )
        assert spent <= most * unit, options


# Beyond 1024 keys tiles are gathered, which shorter cases never see.
GATHERED = Case(batch=1, heads=2, key_heads=1, size=4, q_len=40, k_len=1300, alibi="head", scale="query")
METHODS = [
    GATHERED,
    GATHERED.but(kernel="epanechnikov", mask="float_inf"),
    GATHERED.but(kernel="cosine", normalization="anchored", mask="float_full"),
    GATHERED.but(kernel="triweight", normalization="fixed", similarity="euclidean", window=(None, 1200)),
    GATHERED.but(kernel="gaussian", normalization=epan.Nearest(k=3)),
    GATHERED.but(order=(1.5, 24.0), mask="some_rows"),
]


@pytest.mark.parametrize("case", METHODS, ids=str)
def test_gathered_tiles_give_the_formula(case: Case) -> None:
    """Outputs and all gradients, float64 against the formula, lower precision against eager."""
    for dtype in (torch.float64, torch.float32):
        baseline = None if dtype == torch.float64 else backend("eager")
        conformance.agrees_with_formula(backend("tiled"), case.but(dtype=dtype), baseline)
        conformance.gradients_agree_with_formula(backend("tiled"), case.but(dtype=dtype), baseline)
    inputs = case.build()
    spent = products_of(lambda: run(backend("tiled"), inputs))
    assert spent < 6.9 * 2.0 * case.heads * case.q_len * case.k_len * case.size, "no tile was left out"


def apart(inputs: Inputs) -> Inputs:
    """The same call with queries that find all their keys in two far places."""
    offset = torch.zeros(inputs.key.shape[-2], 1, dtype=inputs.key.dtype)
    offset[100:180] = 6.0
    offset[900:950] = -6.0
    key = inputs.key * 0.2 + offset
    sign = torch.where(torch.arange(inputs.query.shape[-2]) % 2 == 0, 6.0, -6.0).to(key.dtype).view(-1, 1)
    return dataclasses.replace(inputs, query=inputs.query * 0.2 + sign, key=key)


@pytest.mark.parametrize("case", METHODS[:4], ids=str)
def test_tiles_gathered_from_two_places(case: Case) -> None:
    inputs = apart(case.but(alibi=None, mask="none", window=None).build())
    answer, moved = answers(inputs)
    result = run(backend("tiled"), inputs)
    width = tolerance.band(answer.out, [other.out for other in moved], torch.float64)
    tolerance.assert_within(result.out, answer.out, band=width)
    judge_gradients(result, inputs, answer, moved, None)
    used = (answer.rows.weights > 0).any((0, 1, 2)).nonzero().flatten()
    assert 100 <= int(used.min()) < 180
    assert 900 <= int(used.max()) < 950


@pytest.mark.parametrize("case", METHODS[:4], ids=str)
def test_dropout_statistics_and_nonfinite_keys_with_gathered_tiles(case: Case) -> None:
    case = case.but(dtype=torch.float32)
    conformance.drops_weights(backend("tiled"), case)
    conformance.reports_statistics(backend("tiled"), case, backend("eager"))
    conformance.contains_nonfinite(backend("tiled"), case.but(mask="padding", window=None, q_len=4))
