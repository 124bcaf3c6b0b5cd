"""First and second derivatives by finite differences, for every kernel × normalization and every differentiable input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import epan
from epan.errors import UnsupportedError
from epan.testing import catalogue, tolerance
from epan.testing.catalogue import Entry
from epan.testing.conformance.agreement import answers, judge_gradients
from epan.testing.execution import backend, run
from epan.testing.inputs import Case

# What an empty row does is a constant, so one policy stands for all.
ENTRIES = [e for e in catalogue.legal() if e.normalization_id not in ("fixed-zero", "fixed-uniform")]
SHARP = [
    Case(kernel="biweight"),
    Case(kernel="epanechnikov", normalization="anchored", similarity="euclidean"),
    Case(kernel="triweight", normalization="fixed", similarity="euclidean"),
    Case(kernel="gaussian"),
]
SCALES = {"scalar": (), "head": (2, 1, 1), "query": (1, 2, 3, 1)}


def draw(*shape: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def points() -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, 2, 3, 3, spread=1.3), draw(1, 2, 4, 3, spread=1.3), draw(1, 2, 4, 2)


def positive(*shape: int) -> Tensor:
    return (0.6 + torch.rand(shape, dtype=torch.float64)).requires_grad_()


def call_of(entry: Entry, name: str, order: Tensor | None) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The call as a function of every differentiable input, and the inputs; the learnt order is the last."""
    leaves = (*points(), positive(2, 1, 1), draw(3, 4), positive(2))
    if order is not None:
        leaves = (*leaves, order)

    def call(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, mask: Tensor, slopes: Tensor, *n: Tensor) -> Tensor:
        kernel = epan.Polynomial(order=n[0]) if n else entry.kernel
        return epan.attention(
            q,
            k,
            v,
            attn_mask=mask,
            scale=scale,
            alibi_slopes=slopes,
            kernel=kernel,
            normalization=entry.normalization,
            similarity=entry.similarity,
            backend=name,
        )

    return call, leaves


def order_of(entry: Entry) -> Tensor | None:
    if entry.order is None:
        return None
    return torch.tensor(entry.order, dtype=torch.float64).view(-1, 1, 1).requires_grad_()


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_eager_first_and_second_derivatives(entry: Entry) -> None:
    call, leaves = call_of(entry, "eager", order_of(entry))
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_tiled_first_derivatives(entry: Entry) -> None:
    call, leaves = call_of(entry, "tiled", order_of(entry))
    assert gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("extent", SCALES)
@pytest.mark.parametrize("kind", SHARP, ids=str)
def test_scale_of_every_extent(kind: Case, extent: str) -> None:
    scale = positive(*SCALES[extent])
    leaves = (*points(), scale)

    def call(name: str) -> Callable[..., Tensor]:
        options = {"kernel": kind.kernel, "normalization": kind.normalization, "similarity": kind.similarity}
        return lambda q, k, v, s: epan.attention(q, k, v, scale=s, backend=name, **options)

    assert gradcheck(call("eager"), leaves)
    assert gradgradcheck(call("eager"), leaves, fast_mode=True)
    assert gradcheck(call("tiled"), leaves)


@pytest.mark.parametrize("empty", ["zero", "uniform", "nearest"])
def test_empty_rows_are_constants(empty: str) -> None:
    """One query is out of every key's reach, another is not; the first has no derivative but that of the values."""
    q, k, v = points()
    q = torch.cat((q.detach()[:, :, :2], q.detach()[:, :, 2:] + 50.0), dim=2).requires_grad_()

    def call(name: str) -> Callable[..., Tensor]:
        rule = epan.Fixed(empty=empty)
        return lambda q, k, v: epan.attention(
            q, k, v, scale=0.3, kernel="triweight", normalization=rule, similarity="euclidean", backend=name
        )

    assert gradcheck(call("eager"), (q, k, v))
    assert gradgradcheck(call("eager"), (q, k, v))
    assert gradcheck(call("tiled"), (q, k, v))
    grad_q, _, grad_v = torch.autograd.grad(call("eager")(q, k, v)[:, :, 2].sum(), (q, k, v))
    assert bool((grad_q == 0).all())
    assert bool((grad_v == 0).all()) == (empty == "zero")


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.similarity == "euclidean"], ids=str)
def test_second_derivatives_with_masked_rows(entry: Entry) -> None:
    """A fully masked row, a row of one key: 0/0 must appear in no derivative."""
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    order = order_of(entry)

    def call(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        return epan.attention(
            q,
            k,
            v,
            attn_mask=mask,
            scale=scale,
            kernel=entry.kernel if order is None else epan.Polynomial(order=order.detach()),
            normalization=entry.normalization,
            similarity=entry.similarity,
            backend="eager",
        )

    leaves = (*points(), positive(2, 1, 1))
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", catalogue.backends())
@pytest.mark.parametrize("kind", SHARP, ids=str)
def test_packed_sequences(kind: Case, name: str) -> None:
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    leaves = (draw(6, 2, 3), draw(6, 1, 3), draw(6, 1, 2), positive(6, 2, 1), positive(2))

    def call(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, slopes: Tensor) -> Tensor:
        options = {"kernel": kind.kernel, "normalization": kind.normalization, "similarity": kind.similarity}
        packed = epan.attention_varlen(
            q, k, v, offsets, offsets, 3, 3, scale=scale, alibi_slopes=slopes, window=(None, 1), backend=name, **options
        )
        assert isinstance(packed, Tensor)
        return packed

    assert gradcheck(call, leaves)
    if name == "eager":
        assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", catalogue.backends())
@pytest.mark.parametrize("shape", [(), (2, 1), (7, 2, 1)], ids=["one", "per head", "per head and token"])
def test_packed_sequences_with_a_tensor_order(shape: tuple[int, ...], name: str) -> None:
    """The order of a polynomial broadcasts over (T, H, 1) as the scale does; each sequence is as if alone."""
    offsets = torch.tensor([0, 3, 7], dtype=torch.int32)
    q, k, v = draw(7, 2, 3), draw(7, 2, 3), draw(7, 2, 2)
    order = (1.5 + 20.0 * torch.rand(shape, dtype=torch.float64)).requires_grad_()
    by_head = order.expand(7, 2, 1).transpose(0, 1)
    packed = epan.attention_varlen(
        q, k, v, offsets, offsets, 4, 4, kernel=epan.Polynomial(order=order), is_causal=True, backend=name
    )
    assert isinstance(packed, Tensor)
    alone = [
        epan.attention(
            *(t[a:b].transpose(0, 1).unsqueeze(0) for t in (q, k, v)),
            kernel=epan.Polynomial(order=by_head[:, a:b]),
            is_causal=True,
            backend="eager",
        )
        for a, b in ((0, 3), (3, 7))
    ]
    expected = torch.cat([part.squeeze(0).transpose(0, 1) for part in alone])
    tolerance.assert_within(packed, expected, band=tolerance.EXACT)
    upstream = torch.randn(7, 2, 2, dtype=torch.float64)
    for actual, reference in zip(
        torch.autograd.grad(packed, (q, k, v, order), upstream),
        torch.autograd.grad(expected, (q, k, v, order), upstream),
        strict=True,
    ):
        tolerance.assert_within(actual, reference, band=tolerance.EXACT * max(1.0, tolerance.largest(reference)))


@pytest.mark.parametrize("name", catalogue.backends())
@pytest.mark.parametrize("kind", SHARP, ids=str)
def test_any_subset_of_the_inputs_may_require_grad(kind: Case, name: str) -> None:
    """Each input alone, and each pair: the gradient is the formula's, and nothing else gets one."""
    inputs = kind.but(mask="float_full", scale="head", alibi="head", key_heads=1).build()
    answer, moved = answers(inputs)
    leaves = inputs.leaves()
    names = sorted(leaves)
    for chosen in [*((a,) for a in names), *((a, b) for a in names for b in names if a < b)]:
        live = {n: leaves[n].detach().requires_grad_(n in chosen) for n in names}
        call = inputs.with_leaves(live)
        backend(name)(call.query, call.key, call.value, **call.options()).backward(inputs.grad)
        for leaf, tensor in live.items():
            assert (tensor.grad is not None) == (leaf in chosen)
            if tensor.grad is not None:
                width = tolerance.band(answer.grads[leaf], [other.grads[leaf] for other in moved], torch.float64)
                label = f"gradient of {leaf} with {chosen}"
                tolerance.assert_within(tensor.grad, answer.grads[leaf], kind="gradient", band=width, label=label)


@pytest.mark.parametrize("name", catalogue.backends())
def test_gradients_accumulate_over_shared_inputs(name: str) -> None:
    """One tensor as query, key and value gets the sum of the three gradients."""
    case = Case(kernel="biweight", q_len=6, k_len=6, is_causal=True)
    inputs = case.build()
    shared = inputs.with_leaves({"key": inputs.query, "value": inputs.query})
    answer, moved = answers(shared)
    parts = run(backend(name), shared)
    judge_gradients(parts, shared, answer, moved, None)
    x = inputs.query.detach().requires_grad_()
    (total,) = torch.autograd.grad(backend(name)(x, x, x, **shared.options()), x, shared.grad)
    expected = sum(answer.grads[n] for n in ("query", "key", "value"))
    assert isinstance(expected, Tensor)
    tolerance.assert_within(total, expected, band=3 * tolerance.band(expected, [], torch.float64))


def test_a_second_derivative_of_tiled_is_refused() -> None:
    q, k, v = points()
    out = epan.attention(q, k, v, backend="tiled")
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(UnsupportedError) as caught:
        grad.sum().backward()
    assert "second derivative" in str(caught.value)
    assert 'backend="eager"' in str(caught.value.fix)


def test_first_derivatives_of_tiled_survive_create_graph() -> None:
    """Asking for a graph changes no bit of the first derivative."""
    q, k, v = points()
    plain = torch.autograd.grad(epan.attention(q, k, v, backend="tiled").sum(), (q, k, v))
    recorded = torch.autograd.grad(epan.attention(q, k, v, backend="tiled").sum(), (q, k, v), create_graph=True)
    for a, b in zip(recorded, plain, strict=True):
        tolerance.assert_equal_bits(a.detach(), b)


def test_the_inputs_of_these_tests_are_sparse_but_not_trivially_so() -> None:
    """Finite differences over rows of one key, or of all keys, would see neither threshold nor support."""
    sizes = set()
    for seed in range(5):
        torch.manual_seed(seed)
        _, stats = epan.attention(*points(), scale=1.0, kernel="epanechnikov", return_stats=True)
        sizes |= set(stats.support_size.flatten().tolist())
    assert {1, 2, 3} <= sizes
