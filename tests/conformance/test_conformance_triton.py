"""The conformance suite on the fused GPU kernels, in the precisions that they have; ``pytest -m gpu tests/conformance``.

In Triton's interpreter, without a GPU, ``tests/ops/test_ops_triton.py`` runs a part of it.
"""

from __future__ import annotations

import functools

import pytest
import torch

import epan
from epan.errors import UnsupportedError
from epan.ops.attention import choose_backend
from epan.testing import catalogue, conformance, inputs
from epan.testing.catalogue import Entry
from epan.testing.conformance import PackedCase
from epan.testing.execution import backend, device_of, varlen_backend
from epan.testing.inputs import LOADED, PER_QUERY, Case

pytestmark = pytest.mark.gpu

FUSED = [entry for entry in catalogue.legal() if entry.is_fused]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON, EAGER = backend("triton"), backend("eager")
PLAIN = {"scale": 0.5}
KINDS = [
    Case(dtype=torch.float32),
    Case(kernel="epanechnikov", normalization="anchored", dtype=torch.float32),
    Case(kernel="triweight", normalization="fixed", similarity="euclidean", scale=0.4, dtype=torch.float32),
    Case(kernel="gaussian", similarity="euclidean", dtype=torch.float32),
    Case(kernel="gaussian", normalization=epan.Nearest(k=4), dtype=torch.float32),
]
each_entry = pytest.mark.parametrize("entry", FUSED, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def verify(case: Case) -> None:
    conformance.agrees_with_formula(TRITON, case, EAGER)
    conformance.gradients_agree_with_formula(TRITON, case, EAGER)


def test_the_suite_runs_on_the_gpu() -> None:
    assert catalogue.fused_backends() == ("triton",)
    assert device_of("triton") == "cuda"


@pytest.mark.parametrize("setting", [PLAIN, LOADED, PER_QUERY], ids=["plain", "loaded", "per-query"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_entry
def test_results_stay_within_the_one_rule(entry: Entry, dtype: torch.dtype, setting: dict) -> None:
    case = entry.case(dtype=dtype, **setting)
    conformance.keeps_dtype_and_shape(TRITON, case)
    verify(case)


@pytest.mark.parametrize("entry", [entry for entry in catalogue.legal() if not entry.is_fused], ids=str)
def test_what_has_no_kernels_says_so(entry: Entry) -> None:
    given = entry.case(dtype=torch.float32).build()
    with pytest.raises(UnsupportedError) as caught:
        TRITON(given.query, given.key, given.value, **given.options())
    assert caught.value.fix
    assert 'backend="tiled"' in caught.value.fix


@each_entry
def test_every_rule_sees_the_same_keys(entry: Entry) -> None:
    for masks in (
        {"mask": "bool_full"},
        {"window": (2, 1), "mask": "float_inf", "alibi": "batch"},
        {"window": (None, -1)},
    ):
        conformance.sees_exactly_the_allowed_keys(TRITON, entry.case(dtype=torch.float32, **masks))


@each_entry
def test_nothing_that_is_hidden_leaves_a_trace(entry: Entry) -> None:
    case = entry.case(dtype=torch.float32)
    conformance.hidden_keys_leave_no_trace(TRITON, case.but(is_causal=True, q_len=9), positions=(0, 4, 8))
    for mask in ("padding", "some_rows"):
        conformance.contains_nonfinite(TRITON, case.but(mask=mask, scale="head", q_len=4, k_len=6))


@each_entry
def test_no_keys_no_output_no_gradient(entry: Entry) -> None:
    for changes in ({"mask": "some_rows"}, {"mask": "all_rows"}, {"window": (None, -2)}, {"window": (-12, None)}):
        case = entry.case(scale="query", alibi="head", dtype=torch.float32, **changes)
        conformance.fully_masked_rows_are_zero(TRITON, case)
    conformance.handles_nothing(TRITON, entry.case(scale="head", mask="float_full", alibi="head", dtype=torch.float32))
    conformance.handles_nothing(TRITON, entry.case(dtype=torch.float32))


@each_entry
def test_invariances_and_statistics(entry: Entry) -> None:
    case = entry.case(dtype=torch.float32)
    conformance.ignores_the_order_of_keys(TRITON, case.but(content="near", mask="float"), EAGER)
    spread = case.but(spread=0.6, k_len=30)
    conformance.answers_a_constant_shift(TRITON, spread, EAGER)
    conformance.reports_statistics(TRITON, case.but(mask="some_rows", scale="head", spread=1.3), EAGER)
    conformance.repeats_itself(TRITON, case.but(mask="float_inf", is_causal=True, q_len=9))
    conformance.takes_three_dimensions(TRITON, case.but(mask="float_inf", is_causal=True, q_len=9))


@each_entry
def test_dropout(entry: Entry) -> None:
    case = entry.case(scale="head", mask="float_inf", q_len=12, k_len=20, heads=4, key_heads=2, dtype=torch.float32)
    conformance.drops_weights(TRITON, case)


@each_kind
@pytest.mark.parametrize("mask", inputs.MASKS)
def test_masks_of_every_form(mask: str, kind: Case) -> None:
    for q_len, k_len in ((7, 9), (9, 7), (1, 6), (130, 300)):
        case = kind.but(mask=mask, q_len=q_len, k_len=k_len, key_heads=1, alibi="batch")
        verify(case)


@each_kind
@pytest.mark.parametrize(
    "window", [(None, 0), (None, -1), (3, 0), (0, 0), (2, 5), (-2, None), (1, -1), (-3, 2)], ids=str
)
def test_windows_count_from_the_top_left(window: tuple[int | None, int | None], kind: Case) -> None:
    for q_len, k_len in ((7, 9), (9, 7), (1, 6), (6, 1), (1, 1), (140, 270)):
        verify(kind.but(window=window, q_len=q_len, k_len=k_len, alibi="head"))


@each_kind
def test_lower_right_causal_is_a_window(kind: Case) -> None:
    for q_len, k_len in ((4, 9), (9, 4), (5, 5), (1, 8), (70, 140)):
        biased = kind.but(mask="lower_right", q_len=q_len, k_len=k_len)
        verify(biased)
        verify(kind.but(window=(None, k_len - q_len), q_len=q_len, k_len=k_len))
        verify(biased.but(alibi="head", window=(3, None)))


@each_kind
def test_head_sizes_heads_and_batches(kind: Case) -> None:
    for size, value_size in ((1, 1), (3, 8), (32, 1), (80, 33), (96, 96), (192, 64), (256, 256)):
        for dtype in DTYPES:
            verify(kind.but(size=size, value_size=value_size, scale="head", dtype=dtype, spread=0.5))
    for batch, heads, key_heads in ((1, 1, 1), (3, 6, 2), (2, 3, 1), (1, 8, 1)):
        verify(kind.but(batch=batch, heads=heads, key_heads=key_heads, scale="query", alibi="batch"))


@each_kind
@pytest.mark.parametrize("layout", inputs.LAYOUTS)
def test_strides(layout: str, kind: Case) -> None:
    for dtype in DTYPES:
        verify(kind.but(layout=layout, mask="bool_full", scale="scalar", dtype=dtype))


@each_kind
@pytest.mark.parametrize("content", inputs.CONTENTS)
def test_contents(content: str, kind: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = kind.but(content=content, k_len=33, dtype=dtype, scale="head")
        conformance.agrees_with_formula(TRITON, case, EAGER)
        if content not in ("ties", "duplicates", "constant"):
            # Exactly tied scores sit on kinks where the formula picks one of several gradients.
            verify(case)


# A test each: every one compiles all kernels anew.
BEYOND = [
    {"q_len": 130, "k_len": 400},
    {"q_len": 300, "k_len": 300, "is_causal": True, "scale": "query"},
    {"q_len": 513, "k_len": 513, "is_causal": True},
    {"q_len": 400, "k_len": 260, "window": (40, 3), "alibi": "head", "scale": "head"},
    {"q_len": 64, "k_len": 385, "mask": "float_inf"},
    {"q_len": 3, "k_len": 600, "mask": "padding", "scale": "scalar"},
]


@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", BEYOND, ids=lambda given: str(Case(**given)))
def test_lengths_beyond_one_tile(lengths: dict, dtype: torch.dtype, kind: Case) -> None:
    """Several blocks of queries and tiles of keys, so sparse that whole tiles carry no weight."""
    verify(kind.but(batch=1, heads=2, key_heads=1, size=16, spread=1.5, dtype=dtype, **lengths))


@each_kind
def test_long_causal_rows_leave_no_trace(kind: Case) -> None:
    case = kind.but(batch=1, heads=1, q_len=400, k_len=400, is_causal=True)
    for spread in (0.01, 1.0, 4.0):
        conformance.hidden_keys_leave_no_trace(TRITON, case.but(spread=spread), positions=(127, 128, 300, 399))


PACKED = [
    PackedCase(),
    PackedCase(q_lens=(0, 4, 0, 0, 7, 0), scale="head"),
    PackedCase(q_lens=(5, 2), tail=3, scale="token", base=Case(is_causal=True, alibi="head")),
    PackedCase(q_lens=(3, 6, 1), k_lens=(8, 0, 2), scale="token", base=Case(window=(1, 2))),
    PackedCase(q_lens=(3, 0, 4), k_lens=(0, 5, 9), tail=2, scale=0.7, base=Case(window=(None, -1), alibi="head")),
    PackedCase(q_lens=(0, 0), tail=4, scale="head"),
    PackedCase(q_lens=(70, 1, 250), scale="head", base=Case(is_causal=True, spread=2.0)),
    PackedCase(q_lens=(140, 60), k_lens=(30, 290), base=Case(window=(40, 9), spread=2.0)),
]


@each_kind
@pytest.mark.parametrize("case", PACKED, ids=str)
def test_each_packed_sequence_is_as_if_alone(case: PackedCase, kind: Case) -> None:
    for dtype in DTYPES:
        base = case.base.but(
            kernel=kind.kernel, normalization=kind.normalization, similarity=kind.similarity, dtype=dtype,
            heads=4, key_heads=2, value_size=5,
        )  # fmt: skip
        packed = PackedCase(case.q_lens, case.k_lens, case.tail, case.scale, base)
        conformance.packs_sequences(varlen_backend("triton"), packed, varlen_backend("eager"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, (None, 0), (None, -1)], ids=str)
def test_the_gaussian_through_torch(window: tuple[int | None, int | None] | None, dtype: torch.dtype) -> None:
    for q_len, size, key_heads in ((9, 8, None), (200, 64, 1), (130, 96, None)):
        case = Case(kernel="gaussian", dtype=dtype, q_len=q_len, k_len=q_len, size=size, window=window)
        verify(case.but(key_heads=key_heads))


def inputs_on_gpu(length: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(length)
    shapes = ((2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64))
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype).requires_grad_() for shape in shapes]


WAYS = {
    "adaptive": {},
    "anchored": {"normalization": "anchored"},
    "fixed": {"normalization": "fixed", "similarity": "euclidean", "scale": 0.05},
    "nearest": {"normalization": epan.Nearest(k=16), "kernel": "gaussian"},
    "gaussian": {"kernel": "gaussian", "window": (None, -1)},
    "dropout": {"dropout_p": 0.2},
    "per head": {"scale": torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1)},
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_the_device(way: str) -> None:
    """Neither pass copies to the host or from it, so that a call may be part of a CUDA graph."""
    options = {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in WAYS[way].items()}
    call = functools.partial(epan.attention, is_causal=True, enable_gqa=True, backend="triton", **options)
    given = inputs_on_gpu(300)
    call(*given).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(*given).sum().backward()
        call(*given, return_stats=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("way", WAYS)
def test_a_cuda_graph_repeats_both_passes(way: str) -> None:
    options = {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in WAYS[way].items()}
    call = functools.partial(epan.attention, is_causal=True, enable_gqa=True, backend="triton", **options)
    given = inputs_on_gpu(300)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(call(*given).sum(), given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*given)
        grads = torch.autograd.grad(out.sum(), given)
    other = inputs_on_gpu(301)
    with torch.no_grad():
        for mine, new in zip(given, other, strict=True):
            mine.copy_(new[:, :, :300])
    graph.replay()
    first = out.clone()
    if way == "dropout":
        graph.replay()
        assert not torch.equal(out, first), "every replay drops the same weights"
        return
    expected = call(*given)
    assert torch.equal(first, expected)
    # Torch's flash attention adds up its gradient of the queries in any order.
    start = 1 if way == "gaussian" else 0
    wanted = torch.autograd.grad(expected.sum(), given)
    assert all(torch.equal(a, b) for a, b in list(zip(grads, wanted, strict=True))[start:])


def test_two_streams_do_not_disturb_each_other() -> None:
    call = functools.partial(epan.attention, is_causal=True, enable_gqa=True, backend="triton")
    sets = [inputs_on_gpu(n) for n in (2000, 2100)]
    expected = [torch.autograd.grad(call(*given).float().sum(), given) for given in sets]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in sets]
    found: list = [None, None]
    for _ in range(5):
        for number, (stream, given) in enumerate(zip(streams, sets, strict=True)):
            with torch.cuda.stream(stream):
                found[number] = torch.autograd.grad(call(*given).float().sum(), given)
        torch.cuda.synchronize()
        for mine, reference in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, reference, strict=True))


def test_auto_takes_triton_where_it_can() -> None:
    x = torch.zeros(1, 1, 4, 64, device="cuda", dtype=torch.bfloat16)
    assert choose_backend(x)[0] == "triton"
    assert choose_backend(x, kernel=epan.kernels.get("cosine"), normalization=epan.Fixed())[0] == "triton"
    assert choose_backend(x.cpu())[0] == "tiled"
    learnt = epan.Polynomial(order=torch.tensor(2.0))
    for query, kernel in ((x.double(), None), (x, learnt), (x.repeat(1, 1, 1, 5), None)):
        name, reason = choose_backend(query, None, kernel)
        assert name == "tiled"
        assert "not triton, because" in reason
    for dtype in (torch.float32, torch.float16):
        assert choose_backend(x.to(dtype))[0] == "tiled"


@pytest.mark.parametrize("way", ["adaptive", "gaussian"])
def test_compiled_with_inductor(way: str) -> None:
    torch.compiler.reset()
    call = functools.partial(epan.attention, is_causal=True, enable_gqa=True, backend="triton", **WAYS[way])
    compiled = torch.compile(lambda q, k, v: call(q, k, v).float().square().sum(), fullgraph=True, dynamic=True)
    for length in (300, 500):
        ours, theirs = inputs_on_gpu(length), inputs_on_gpu(length)
        mine = torch.autograd.grad(compiled(*ours), ours)
        wanted = torch.autograd.grad(call(*theirs).float().square().sum(), theirs)
        for number, pair in enumerate(zip(mine, wanted, strict=True)):
            if way != "gaussian" or number:
                assert torch.equal(*pair), f"gradient of input {number}"


def test_autocast_follows_torch() -> None:
    q, k, v = (t.detach().float() for t in inputs_on_gpu(40))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = epan.attention(q, k, v, enable_gqa=True, backend="triton")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, epan.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), enable_gqa=True, backend="triton"))
