"""Precision, autocast, strides, gradient modes, and inputs that are left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import epan
from epan.testing import catalogue, conformance, tolerance
from epan.testing.conformance.agreement import answers, judge_gradients
from epan.testing.execution import backend, run
from epan.testing.inputs import Case, Inputs

BACKENDS = catalogue.backends()
KINDS = [
    Case(kernel="biweight"),
    Case(kernel="gaussian"),
    Case(kernel="epanechnikov", normalization="anchored"),
    Case(kernel="triweight", normalization="fixed", similarity="euclidean", scale=0.4),
]
HALVES = [torch.bfloat16, torch.float16]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
each_backend = pytest.mark.parametrize("name", BACKENDS)


def rule_of(case: Case) -> dict[str, Any]:
    return {"kernel": case.kernel, "normalization": case.normalization, "similarity": case.similarity}


@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_kind
def test_sums_of_many_equal_terms_do_not_stall(kind: Case, dtype: torch.dtype, name: str) -> None:
    """4096 equal terms: a sum kept in bfloat16 would stop growing at 256 of them, in float16 at 2048."""
    many, two = (torch.zeros(1, 1, length, 4, dtype=dtype) for length in (4096, 2))
    v = torch.ones(1, 1, 4096, 1, dtype=dtype)
    out, stats = epan.attention(two, many, v, return_stats=True, backend=name, **rule_of(kind))
    assert bool((out == 1).all())
    assert bool((stats.support_size == 4096).all())
    v = v[:, :, :2].clone().requires_grad_()
    out = epan.attention(many, two, v, backend=name, **rule_of(kind))
    upstream = torch.rand(out.shape).to(dtype)
    (grad,) = torch.autograd.grad(out, v, upstream)
    # Each key has half the weight of every query; the sum is rounded once.
    expected = (upstream.double().sum() / 2).expand(grad.shape)
    tolerance.assert_within(grad, expected, band=tolerance.band(expected, [], dtype), kind="gradient")


@each_backend
@each_kind
def test_scores_beyond_the_range_of_float16(kind: Case, name: str) -> None:
    """Squares and products of 300 are no float16 numbers, the outputs are."""
    case = kind.but(dtype=torch.float16, spread=300.0, scale=1e-5, k_len=40)
    conformance.agrees_with_formula(backend(name), case)
    assert bool(torch.isfinite(run(backend(name), case.build()).grads["query"]).all())


@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_float32_bias_and_scale_keep_their_digits(dtype: torch.dtype, name: str) -> None:
    """Beside 16-bit inputs the scale, a float mask and slopes may be float32, and are used and differentiated as such."""
    case = Case(dtype=dtype, mask="float32", scale="head", alibi="head")
    inputs = case.build()
    conformance.agrees_with_formula(backend(name), case, None if name == "eager" else backend("eager"))
    # Half a unit in the last place of 16 bits, which a cast to them would lose.
    nudge = 1.0 + torch.finfo(dtype).eps / 4
    assert inputs.scale is not None
    moved = inputs.with_leaves({"scale": torch.as_tensor(inputs.scale) * nudge})
    stats, other = (run(backend(name), each, stats=True).stats for each in (inputs, moved))
    assert stats is not None
    assert other is not None
    assert not torch.equal(stats.threshold, other.threshold)
    grads = run(backend(name), inputs).grads
    assert {n: g.dtype for n, g in grads.items()} == {n: t.dtype for n, t in inputs.leaves().items()}


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_outputs_have_the_dtype_of_the_values_and_statistics_at_least_float32(dtype: torch.dtype, name: str) -> None:
    x = torch.randn(2, 2, 5, 4).to(dtype).requires_grad_()
    out, stats = epan.attention(x, x, x, return_stats=True, backend=name)
    assert out.dtype == dtype
    assert out.requires_grad
    assert stats.threshold.dtype == stats.partition.dtype == torch.promote_types(dtype, torch.float32)
    assert stats.support_size.dtype == torch.int64
    for field in stats[:3]:
        assert field.shape == (2, 2, 5)
        assert not field.requires_grad


@each_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_is_a_cast_of_the_inputs(dtype: torch.dtype, name: str) -> None:
    """As for scaled_dot_product_attention: float32 and mixed inputs run in the autocast dtype, and nothing else does."""
    q, k, v = (torch.randn(2, 2, 6, 4, requires_grad=True) for _ in range(3))
    options = {"scale": torch.full((2, 1, 1), 0.7), "attn_mask": torch.randn(6, 6), "backend": name}
    with torch.autocast("cpu", dtype=dtype):
        out, stats = epan.attention(q, k, v, return_stats=True, **options)
        mixed = epan.attention(q.to(dtype), k, v.double().float(), **options)
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    by_hand, stats_by_hand = epan.attention(*(t.to(dtype) for t in (q, k, v)), return_stats=True, **options)
    assert out.dtype == theirs.dtype == dtype
    tolerance.assert_equal_bits(out.detach(), by_hand.detach(), "autocast against a cast by hand")
    tolerance.assert_equal_bits(mixed.detach(), by_hand.detach(), "mixed inputs")
    tolerance.assert_equal_bits(stats.threshold, stats_by_hand.threshold)
    assert stats.threshold.dtype == torch.float32
    grads = torch.autograd.grad(out.float().sum(), (q, k, v))
    for grad, expected in zip(grads, torch.autograd.grad(by_hand.float().sum(), (q, k, v)), strict=True):
        assert grad.dtype == torch.float32
        tolerance.assert_equal_bits(grad, expected)


@each_backend
def test_autocast_leaves_float64_and_disabled_regions_alone(name: str) -> None:
    x = torch.randn(1, 2, 6, 4)
    plain, double = epan.attention(x, x, x, backend=name), epan.attention(*[x.double()] * 3, backend=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tolerance.assert_equal_bits(epan.attention(*[x.double()] * 3, backend=name), double)
        with torch.autocast("cpu", enabled=False):
            tolerance.assert_equal_bits(epan.attention(x, x, x, backend=name), plain)
        weights = epan.attention_weights(torch.randn(3, 5))
    assert weights.dtype == torch.float32


@each_backend
def test_autocast_of_packed_sequences(name: str) -> None:
    x, offsets = torch.randn(6, 2, 4), torch.tensor([0, 2, 6])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = epan.attention_varlen(x, x, x, offsets, offsets, 4, 4, backend=name)
    half = x.bfloat16()
    by_hand = epan.attention_varlen(half, half, half, offsets, offsets, 4, 4, backend=name)
    assert isinstance(cast, Tensor)
    assert isinstance(by_hand, Tensor)
    tolerance.assert_equal_bits(cast, by_hand)


def judged(name: str, inputs: Inputs) -> None:
    """Output and gradients of some inputs against the formula."""
    answer, moved = answers(inputs)
    result = run(backend(name), inputs)
    width = tolerance.band(answer.out, [other.out for other in moved], torch.float64)
    tolerance.assert_within(result.out, answer.out, band=width)
    judge_gradients(result, inputs, answer, moved, None)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "negative view": lambda t: torch.complex(t, -t).conj().imag,
    "one point everywhere": lambda t: t[:1, :1, :1].expand(t.shape),
    "one batch entry": lambda t: t[:1].expand(t.shape),
    "one coordinate": lambda t: t[..., :1].expand(t.shape),
}


@each_backend
@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_every_kind(layout: str, kind: Case, name: str) -> None:
    inputs = kind.but(scale="head", mask="bool_full").build()
    laid = {n: LAYOUTS[layout](t) for n, t in inputs.leaves().items() if n in ("query", "key", "value")}
    if layout.startswith("one"):
        # Expanded keys tie, and a tie is a kink; queries and values may be whatever they like.
        laid["key"] = inputs.key
    assert any(not t.is_contiguous() or t.is_neg() for t in laid.values())
    judged(name, inputs.with_leaves(laid))


@each_backend
def test_expanded_masks_scales_and_gradients(name: str) -> None:
    """Stride zero in every argument that broadcasts, and in the gradient that comes back."""
    inputs = Case(mask="float_full", scale="query", alibi="batch").build()
    assert inputs.attn_mask is not None
    assert isinstance(inputs.scale, Tensor)
    assert inputs.alibi_slopes is not None
    judged(
        name,
        dataclasses.replace(
            inputs,
            attn_mask=inputs.attn_mask[:1, :, :1].expand(inputs.attn_mask.shape),
            scale=inputs.scale[..., :1, :].expand(inputs.scale.shape),
            alibi_slopes=inputs.alibi_slopes[:1].expand(inputs.alibi_slopes.shape),
            grad=inputs.grad[..., :1].expand(inputs.grad.shape),
        ),
    )


@each_backend
@each_kind
def test_gradient_modes_give_the_same_numbers(kind: Case, name: str) -> None:
    inputs = kind.but(mask="bool", is_causal=True, k_len=7).build()
    q, k, v = (t.requires_grad_() for t in (inputs.query, inputs.key, inputs.value))
    options = inputs.options()
    with torch.no_grad():
        silent = backend(name)(q, k, v, **options)
    with torch.inference_mode():
        inferred = backend(name)(q, k, v, **options)
        fresh = backend(name)(*(t.detach().clone() for t in (q, k, v)), **options)
    assert not silent.requires_grad
    assert not silent.is_inference()
    assert inferred.is_inference()
    tolerance.assert_equal_bits(inferred.clone(), silent, "inference_mode")
    tolerance.assert_equal_bits(fresh.clone(), silent, "inference_mode with inference tensors")
    recorded = backend(name)(q, k, v, **options)
    assert recorded.requires_grad
    answer, moved = answers(inputs)
    width = tolerance.band(answer.out, [other.out for other in moved], torch.float64)
    tolerance.assert_within(recorded, answer.out, band=width)


@each_backend
@each_kind
def test_inputs_are_never_written_to(kind: Case, name: str) -> None:
    """Neither forward nor backward, with or without record, touches a tensor that it was given, at any length."""
    for q_len, k_len in ((5, 9), (40, 1200)):
        case = kind.but(batch=1, q_len=q_len, k_len=k_len, mask="float_inf", scale="query", alibi="head")
        inputs = case.build()
        for dropout_p, wants in ((0.0, True), (0.3, True), (0.0, False)):
            live = {n: t.detach().clone().requires_grad_(wants) for n, t in inputs.leaves().items()}
            call = dataclasses.replace(inputs.with_leaves(live), dropout_p=dropout_p)
            versions = {n: t._version for n, t in live.items()}
            out = backend(name)(call.query, call.key, call.value, **call.options())
            if wants:
                upstream = inputs.grad.clone()
                out.backward(upstream)
                tolerance.assert_equal_bits(upstream, inputs.grad, "the gradient that came back")
            for n, tensor in live.items():
                assert tensor._version == versions[n], n
                tolerance.assert_equal_bits(tensor.detach(), inputs.leaves()[n], n)


@each_backend
def test_boolean_masks_and_offsets_are_never_written_to(name: str) -> None:
    x = torch.randn(6, 2, 4, requires_grad=True)
    mask, offsets = torch.rand(6, 6) < 0.5, torch.tensor([0, 2, 6])
    before = mask.clone(), offsets.clone()
    q = x.transpose(0, 1).unsqueeze(0)
    epan.attention(q, q, q, attn_mask=mask, backend=name).sum().backward()
    packed = epan.attention_varlen(x, x, x, offsets, offsets, 4, 4, backend=name)
    assert isinstance(packed, Tensor)
    packed.sum().backward()
    assert torch.equal(mask, before[0])
    assert torch.equal(offsets, before[1])


@each_backend
def test_an_input_may_change_once_the_gradient_is_taken_but_not_before(name: str) -> None:
    """What backward needs is kept by reference, and autograd notices that it was overwritten."""
    q, k, v = (torch.randn(1, 1, 4, 3, requires_grad=True) for _ in range(3))
    value = v.clone()
    out = epan.attention(q, k, value, backend=name)
    with torch.no_grad():
        value.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@each_backend
@each_kind
def test_long_rows_repeat_bit_by_bit(kind: Case, name: str) -> None:
    case = kind.but(batch=1, heads=2, q_len=70, k_len=1300, dtype=torch.float32, alibi="head", mask="float_inf")
    conformance.repeats_itself(backend(name), case)


@each_backend
def test_the_default_dtype_does_not_matter(name: str) -> None:
    x = torch.randn(1, 2, 40, 4)
    options = {"is_causal": True, "return_stats": True, "backend": name}
    before = torch.get_default_dtype()
    for kernel in ("biweight", "gaussian", epan.Polynomial(order=40.0)):
        expected, stats = epan.attention(x, x, x, kernel=kernel, **options)
        torch.set_default_dtype(torch.float64)
        try:
            actual, others = epan.attention(x, x, x, kernel=kernel, **options)
        finally:
            torch.set_default_dtype(before)
        tolerance.assert_equal_bits(actual, expected)
        for other, stat in zip(others[:3], stats[:3], strict=True):
            tolerance.assert_equal_bits(other, stat)
