"""Inputs that are hard for fused kernels, one function each, through the public functions with ``backend="triton"``.

Every case takes (device, dtype) and a size, so that the small ones run in Triton's interpreter and all of them on a GPU.
The reference is the eager backend in float64, the yardstick the eager backend in the same dtype, and the rule that of
:mod:`epan.testing.tolerance`. For long sequences the incoming gradient is zero outside a few rows: then the gradients of
all keys and values follow from these rows alone, which float64 can afford.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import epan
from epan._timing import captured
from epan.testing.tolerance import NOISE, ROW_SUM, assert_equal_bits, assert_within, band

__all__ = ["CASES", "GPU_ONLY", "HALF"]

Case = Callable[[torch.device, torch.dtype, int], None]
#: Size by name: what the interpreter runs, and what a GPU runs.
CASES: dict[str, tuple[Case, Sequence[int], Sequence[int]]] = {}
#: What the interpreter runs in half precision.
HALF: dict[str, Sequence[int]] = {}
GPU_ONLY: dict[str, tuple[Case, Sequence[int]]] = {}
KERNEL = epan.kernels.get("biweight")


def case(
    small: Sequence[int], large: Sequence[int] | None = None, half: Sequence[int] | None = None
) -> Callable[[Case], Case]:
    """Enters a case: its sizes in the interpreter, and on a GPU if others. No small size: it needs a GPU.

    The interpreter takes as long as there are tiles, which have 32 rows in float32 and 128 in half precision (``half``, if
    the sizes are others there). Two or three of them, the last not full, go through the same code as many.
    """

    def enter(function: Case) -> Case:
        if small:
            CASES[function.__name__] = function, small, small if large is None else large
            HALF[function.__name__] = small if half is None else half
        else:
            assert large is not None
            GPU_ONLY[function.__name__] = function, large
        return function

    return enter


def tile(dtype: torch.dtype) -> int:
    """Queries of a block and keys of a tile."""
    return 32 if dtype == torch.float32 else 128


def lengths(device: torch.device) -> tuple[int, int]:
    """Queries and keys of a case whose size is another."""
    return (140, 200) if device.type == "cuda" else (40, 70)


def draw(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device=device, dtype=dtype)


def triple(
    device: torch.device,
    dtype: torch.dtype,
    q_len: int,
    k_len: int | None = None,
    *,
    heads: int | None = None,
    key_heads: int | None = None,
    size: int = 64,
    value_size: int | None = None,
    batch: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; two heads on a GPU, one in the interpreter, unless ``heads`` says otherwise."""
    if heads is None:
        heads = 2 if device.type == "cuda" else 1
    k_len, key_heads = q_len if k_len is None else k_len, heads if key_heads is None else key_heads
    shapes = (
        (batch, heads, q_len, size),
        (batch, key_heads, k_len, size),
        (batch, key_heads, k_len, value_size or size),
    )
    q, k, v = (draw(*shape, device=device, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes))
    return q, k, v


def run(
    backend: str, tensors: Sequence[Tensor], grad: Tensor, wrt: str, dtype: torch.dtype, options: dict[str, Any]
) -> list[Tensor]:
    """The output and the gradients by ``wrt`` (of "qkv"), all on one backend in one dtype."""
    leaves = [t.detach().to(dtype) for t in tensors]
    wanted = [leaf.requires_grad_() for name, leaf in zip("qkv", leaves, strict=True) if name in wrt]
    out = epan.attention(*leaves, backend=backend, **options)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad.to(dtype))]


def moved(tensors: Sequence[Tensor], options: dict[str, Any], seed: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Inputs and scores off by a few units in the last place of float32, in float64."""
    torch.manual_seed(seed)
    noise = NOISE * torch.finfo(torch.float32).eps
    q, k, v = (t.double() * (1 + noise * (2 * torch.rand_like(t, dtype=torch.float64) - 1)) for t in tensors)
    beta = options.get("scale") or q.shape[-1] ** -0.5
    groups = q.shape[1] // k.shape[1]
    scores = beta * (q @ k.repeat_interleave(groups, 1).transpose(-2, -1))
    size = scores.abs()
    if options.get("similarity") == "euclidean":
        size = size + beta * (q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2))
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype != torch.bool:
        size = size + torch.where(mask == -torch.inf, 0.0, mask.double().abs())
    bias = noise * (1 + size) * (2 * torch.rand_like(scores) - 1)
    if mask is not None:
        bias = torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask
    return [q, k, v], {**options, "attn_mask": bias}


def judge(
    tensors: Sequence[Tensor],
    *,
    wrt: str = "qkv",
    rows: Sequence[int] | None = None,
    label: str = "",
    grad: Tensor | None = None,
    **options: Any,
) -> list[Tensor]:
    """Output and gradients on the fused kernels, after a check against the eager backend; ``rows``: of these queries only."""
    q, k, v = tensors
    options = {"kernel": KERNEL, "enable_gqa": q.shape[1] != k.shape[1], **options}
    if grad is None:
        grad = draw(*q.shape[:3], v.shape[-1], device=q.device, dtype=q.dtype, seed=9)
    at: Any = slice(None)
    seen = dict(options)
    if rows is not None:
        at = torch.tensor(sorted(set(rows)), device=q.device)
        whole, grad = grad, torch.zeros_like(grad)
        grad[:, :, at] = whole[:, :, at]
        if seen.pop("is_causal", False):
            seen["attn_mask"] = torch.arange(k.shape[2], device=q.device) <= at[:, None]
    found = run("triton", tensors, grad, wrt, q.dtype, options)
    few = (q[:, :, at], k, v)
    reference = run("eager", few, grad[:, :, at], wrt, torch.float64, seen)
    yardstick = run("eager", few, grad[:, :, at], wrt, q.dtype, seen)
    others = []
    for seed in (1, 2):
        inputs, changed = moved(few, seen, seed)
        others.append(run("eager", inputs, grad[:, :, at], wrt, torch.float64, changed))
    names = ["output", *(f"gradient of {name}" for name in wrt)]
    for place, name in enumerate(names):
        of_queries = place == 0 or wrt[place - 1] == "q"
        got = found[place][:, :, at] if of_queries else found[place]
        right, base = reference[place], yardstick[place]
        width = band(right, [other[place] for other in others], q.dtype)
        if place > 0 and wrt[place - 1] != "v" and not bool(right.any()):
            # A difference of equal terms, g − Σwg: what is left is the rounding of either.
            width += one_term(q, k, v, grad, options.get("scale"), of_queries)
        kind = "output" if place == 0 else "gradient"
        assert_within(got, right, base, kind=kind, band=width, label=f"{label} {name}")
        if rows is not None and of_queries and place > 0:
            rest = torch.ones(q.shape[2], dtype=torch.bool, device=q.device)
            rest[at] = False
            assert not bool(found[place][:, :, rest].any()), f"{label} {name}: a row without gradient has one"
    return found


def one_term(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float | None, of_queries: bool) -> float:
    """Rounding of β (dO·v) k, or of β (dO·v) q for the gradient of the keys, in float32."""
    beta = q.shape[-1] ** -0.5 if scale is None else scale
    product = float(grad.float().norm(dim=-1).max() * v.float().norm(dim=-1).max())
    return NOISE * torch.finfo(torch.float32).eps * beta * product * float((k if of_queries else q).abs().max())


def compare(call: Callable[..., Tensor], named: dict[str, Tensor], label: str = "") -> dict[str, Tensor]:
    """Output and gradients of ``call(backend=…, **named)`` on the fused kernels, by name, after a check of all of them.

    Parameters
    ----------
    named: tensors that are differentiated.
    """
    shape = call(backend="eager", **named).shape
    first = next(iter(named.values()))
    grad = draw(*shape, device=first.device, dtype=first.dtype, seed=9)
    noise = NOISE * torch.finfo(torch.float32).eps

    def answers(backend: str, double: bool, seed: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(seed or 0)
        leaves = {name: t.double() if double else t.clone() for name, t in named.items()}
        if seed is not None:
            leaves = {name: t * (1 + noise * (2 * torch.rand_like(t) - 1)) for name, t in leaves.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        out = call(backend=backend, **leaves)
        grads = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}

    found, exact, base = answers("triton", False), answers("eager", True), answers("eager", False)
    others = [answers("eager", True, seed) for seed in (1, 2)]
    for name, got in found.items():
        width = band(exact[name], [other[name] for other in others], got.dtype)
        kind = "output" if name == "out" else "gradient"
        assert_within(got, exact[name], base[name], kind=kind, band=width, label=f"{label} {name}")
    return found


def sampled(length: int, count: int = 24) -> list[int]:
    """Queries at both ends, about the borders of tiles, and in between."""
    drawn = torch.randint(length, (count,), generator=torch.Generator().manual_seed(3)).tolist()
    return [i for i in (0, 1, 127, 128, length // 2, length - 2, length - 1, *drawn) if 0 <= i < length]


def with_ones(value: Tensor) -> Tensor:
    """Values whose first column is one, so that the first column of the output is the sum of the weights."""
    value = value.clone()
    value[..., 0] = 1.0
    return value


def sums_to_one(out: Tensor) -> None:
    assert float((out[..., 0].double() - 1).abs().max()) <= ROW_SUM[out.dtype]


@case([70], [4097, 65_536, 262_144])
def equal_and_nearly_equal_scores(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n, heads=1)
    v = with_ones(v)
    for label, keys in (("equal", torch.ones_like(k)), ("nearly equal", (1 + 0.01 * k.float()).to(dtype))):
        for kernel in ("epanechnikov", "biweight", "triweight") if n == 4097 else ("biweight",):
            found = judge((torch.ones_like(q), keys, v), rows=sampled(n), is_causal=True, label=label, kernel=kernel)
            sums_to_one(found[0])


@case([70], [1000])
def zero_query_and_zero_tile(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    q[:, :, 5] = 0.0
    k[:, :, tile(dtype) : 2 * tile(dtype)] = 0.0
    sums_to_one(judge((q, k, with_ones(v)))[0])


@case([40], [4097])
def one_peak_over_ties(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    q, k = torch.ones_like(q), 0.25 * torch.ones_like(k)
    k[:, :, n // 2] = 0.375
    judge((q, k, v))
    judge((q, k, v), normalization="anchored")


@case([40], [1000])
def duplicated_keys(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    source = torch.randint(max(2, n // 50), (n,), generator=torch.Generator().manual_seed(1)).to(device)
    for normalization in ("adaptive", "anchored"):
        judge((2 * q, k[:, :, source], v), normalization=normalization)


@case([40], [1000])
def offset_scores(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    for offset in (-2e3, 1e4):
        mask = torch.full((1, 1, n, 1), offset, device=device)
        judge((q, k, v), attn_mask=mask, label=f"offset {offset}")
    # The same through the products: one column that all queries share.
    for offset in (-2e3, 1e4):
        keys, queries = k.clone(), q.clone()
        queries[..., 0], keys[..., 0] = 64.0, offset / 8
        judge((queries, keys, v), label=f"product {offset}")


@case([40], [1000])
def scale_ten_thousand(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    # The interpreter rounds k·qᵀ, from which the backward pass makes the weights of the columns, unlike q·kᵀ.
    wrt = "qkv" if device.type == "cuda" else "q"
    for normalization in ("adaptive", "anchored"):
        judge((q, k, v), wrt=wrt, scale=1e4, normalization=normalization)


@case([40], [4097])
def support_is_the_whole_row(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    options = {"scale": 1e-5, "kernel": "triweight"}
    judge((q, k, v), **options)
    with torch.no_grad():
        _, stats = epan.attention(q, k, v, backend="triton", return_stats=True, **options)
    assert bool((stats.support_size == n).all())


@case([40], [4097], half=[100])
def one_huge_key(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    q = q.abs()
    k[:, :, n // 3] = 100.0
    for kernel, order in (("epanechnikov", 1.0), ("biweight", 2.0), ("triweight", 3.0)):
        judge((q, k, v), kernel=kernel)
        with torch.no_grad():
            out, stats = epan.attention(q, k, v, backend="triton", return_stats=True, kernel=kernel)
        assert bool((stats.support_size == 1).all())
        # The threshold is the largest score less the order, and the output that key's value to the last bit.
        top = (q.double() @ k.double().transpose(-2, -1)).amax(-1) / q.shape[-1] ** 0.5
        limit = NOISE * torch.finfo(torch.float32).eps * float(top.abs().max())
        assert float((stats.threshold.double() - (top - order)).abs().max()) <= limit
        assert_equal_bits(out, v[:, :, n // 3, None].expand_as(out))


@case([1, 2, 33, 65], [1, 2, 63, 65, 1000, 4097])
def any_length(device: torch.device, dtype: torch.dtype, n: int) -> None:
    judge(triple(device, dtype, n), is_causal=True)


@case([33], [129, 257], half=[129])
def first_queries_that_see_no_key(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """So many that without them there is a block less."""
    q, k, v = triple(device, dtype, n)
    judge((q, k, v), window=(None, -1))
    slopes = torch.tensor([0.01, 0.02, 0.03, 0.04], device=device)[: q.shape[1]]
    judge((q, k, v), window=(20, -1), alibi_slopes=slopes, label="slopes")
    judge((q, k, v), window=(None, -1), normalization="fixed", similarity="euclidean", scale=0.02, label="fixed")


@case([40], [1000])
def other_numbers_of_keys(device: torch.device, dtype: torch.dtype, n: int) -> None:
    for k_len in (n // 3, 2 * n + 1):
        tensors = triple(device, dtype, n, k_len)
        judge(tensors, label=f"{k_len} keys")
        judge(tensors, window=(None, k_len - n), label=f"lower right, {k_len} keys")


@case([90], [3000], half=[300])
def packed_sequences(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """Empty sequences first, in the middle and last; borders inside tiles; tokens beyond the last sequence."""
    side = tile(dtype)
    ends = [0, 0, 1, side - 1, side - 1, n // 2, n // 2 + side + 1, n - 7, n - 7]
    offsets = torch.tensor(ends, dtype=torch.int32, device=device)
    q, k, v, grad = (draw(n, 2, 64, device=device, dtype=dtype, seed=seed) for seed in range(4))

    def answers(backend: str, precision: torch.dtype) -> list[Tensor]:
        leaves = [t.to(precision).requires_grad_() for t in (q, k, v)]
        out = epan.attention_varlen(*leaves, offsets, offsets, n, n, is_causal=True, kernel=KERNEL, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(precision))]

    found, exact, base = answers("triton", dtype), answers("eager", torch.float64), answers("eager", dtype)
    for place, (got, right, other) in enumerate(zip(found, exact, base, strict=True)):
        kind = "gradient" if place else "output"
        assert_within(got, right, other, kind=kind, band=band(right, [], dtype), label=f"packed {place}")
        assert not bool(got[n - 7 :].any())


@case([40], [1000], half=[100])
def fully_masked_rows(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    keep = torch.rand(1, q.shape[1], n, n, generator=torch.Generator().manual_seed(2)).to(device) < 0.5
    keep[:, :, ::3] = False
    for normalization in ("adaptive", "anchored"):
        out, d_q, *_ = judge((q, k, v), attn_mask=keep, normalization=normalization)
        assert not bool(out[:, :, ::3].any())
        assert not bool(d_q[:, :, ::3].any())
    judge((q, k, v), attn_mask=keep, normalization="fixed", similarity="euclidean", scale=0.02)


@case([40], [1000])
def nothing_in_reach(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    q[:, :, ::2] += 30.0
    for empty in ("zero", "uniform", "nearest"):
        rule = epan.Fixed(empty=empty)
        out, d_q, *_ = judge((q, k, v), normalization=rule, similarity="euclidean", scale=0.02, label=empty)
        if empty == "zero":
            assert not bool(out[:, :, ::2].any())
        assert not bool(d_q[:, :, ::2].any())


@case([32, 80], [32, 80, 96, 128, 192, 256])
def any_head_size(device: torch.device, dtype: torch.dtype, size: int) -> None:
    judge(triple(device, dtype, *lengths(device), size=size))


@case([24], [24, 128])
def values_of_another_size(device: torch.device, dtype: torch.dtype, size: int) -> None:
    judge(triple(device, dtype, *lengths(device), value_size=size))


@case([40], [1000])
def any_strides(device: torch.device, dtype: torch.dtype, n: int) -> None:
    packed = draw(1, n, 3, 2, 64, device=device, dtype=dtype)
    beside = tuple(packed.permute(2, 0, 3, 1, 4))
    plain = tuple(t.contiguous() for t in beside)
    apart = tuple(torch.stack([t, torch.full_like(t, torch.nan)], -1).flatten(-2)[..., ::2] for t in plain)
    expected = judge(plain)
    for tensors in (beside, apart):
        for got, right in zip(judge(tensors), expected, strict=True):
            assert_equal_bits(got.contiguous(), right)
    one = plain[1][:, :1]
    judge((plain[0], one.expand_as(plain[1]), plain[2][:, :1].expand_as(plain[2])), label="expanded")


@case([40], [1000])
def gradients_of_some(device: torch.device, dtype: torch.dtype, n: int) -> None:
    tensors = triple(device, dtype, n)
    every = dict(zip(("out", "q", "k", "v"), judge(tensors), strict=True))
    for wrt in ("k", "v", "q"):
        _, only = judge(tensors, wrt=wrt)
        assert_equal_bits(only, every[wrt])


@case([40], [1000])
def shared_key_heads(device: torch.device, dtype: torch.dtype, n: int) -> None:
    group = 8 if device.type == "cuda" else 3
    judge(triple(device, dtype, n, heads=group, key_heads=1), is_causal=True, label="MQA")
    judge(triple(device, dtype, n, heads=2 * group, key_heads=2), is_causal=True, label=f"{group}:1")


@case([70], [4097])
def a_sink_column(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    q[..., 0] = 8.0
    k[:, :, 0], k[..., 0] = 0.0, 0.0
    k[:, :, 0, 0] = 2.0
    judge((q, k, v), is_causal=True)


@case([128], [4097])
def keys_that_nobody_attends(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    unseen = slice(n // 4, 3 * n // 4)
    q[..., 0] = 16.0
    k[:, :, unseen, 0] = -64.0
    _, _, d_k, d_v = judge((q, k, v))
    assert not bool(d_k[:, :, unseen].any())
    assert not bool(d_v[:, :, unseen].any())
    # The second is so wide that tiles lie in it as a whole, and others begin or end there.
    for left in (20, 2 * tile(dtype) + 6):
        judge((q, k, v), window=(left, -1))


@case([40], [1000])
def one_graph_for_all_lengths(device: torch.device, dtype: torch.dtype, n: int) -> None:
    torch.compiler.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return epan.attention(q, k, v, is_causal=True, kernel=KERNEL, backend="triton")

    compiled = torch.compile(
        call, fullgraph=True, dynamic=True, backend="aot_eager" if device.type == "cpu" else "inductor"
    )
    for length in (n, n + 40):
        tensors = [t.requires_grad_() for t in triple(device, dtype, length)]
        outs = [function(*tensors) for function in (compiled, call)]
        grads = [torch.autograd.grad(out, tensors, torch.ones_like(out)) for out in outs]
        for got, right in zip((outs[0], *grads[0]), (outs[1], *grads[1]), strict=True):
            assert_equal_bits(got, right)


@case([40], [4097])
def reruns_are_equal(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n)
    grad = draw(*q.shape, device=device, dtype=dtype, seed=9)
    for options in ({"is_causal": True}, {"normalization": "anchored"}):
        first, *again = [run("triton", (q, k, v), grad, "qkv", dtype, {"kernel": KERNEL, **options}) for _ in range(3)]
        for other in again:
            for got, right in zip(other, first, strict=True):
                assert_equal_bits(got, right)


@case([70], [1000])
def nonfinite_numbers_stay_in_their_rows(device: torch.device, dtype: torch.dtype, n: int) -> None:
    q, k, v = triple(device, dtype, n, heads=2)
    grad = draw(*q.shape, device=device, dtype=dtype, seed=9)
    for bad in (torch.nan, torch.inf):
        changed = [t.clone() for t in (q, k, v)]
        changed[0][:, 0, 7, 1] = bad
        changed[1][:, 0, n // 2, 3] = bad
        changed[2][:, 1, n - 40, 0] = bad
        options = {"is_causal": True, "kernel": KERNEL}
        reached = torch.zeros(1, 2, n, dtype=torch.bool, device=device)
        reached[:, 0, 7], reached[:, 0, n // 2 :], reached[:, 1, n - 40 :] = True, True, True
        # What a query that is reached sends back belongs to no one else.
        sent = torch.where(reached[..., None], 0.0, grad)
        clean = run("triton", (q, k, v), sent, "qkv", dtype, options)
        found = run("triton", changed, grad, "qkv", dtype, options)
        assert bool(torch.isnan(found[0][reached]).all())
        assert_equal_bits(found[0][~reached], clean[0][~reached])
        assert_equal_bits(found[1][~reached], clean[1][~reached])
        assert bool(torch.isfinite(clean[0]).all())
        for place in (2, 3):
            good = torch.isfinite(changed[1]).all(-1) & torch.isfinite(changed[2]).all(-1)
            assert_equal_bits(found[place][good], clean[place][good])


@case([45], [1000, 9000])
def masked_edges_below_zero(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """Rows whose keys all lie in inner tiles, with scores below zero: what no key has reached is no bound."""
    q, k, v = triple(device, dtype, n, n - 1)
    q, k = q.abs(), -k.abs()
    keep = torch.ones(n, n - 1, dtype=torch.bool, device=device)
    # The last tile, which is not full, is an edge tile; every second row sees nothing of it.
    keep[::2, (n - 1) // tile(dtype) * tile(dtype) :] = False
    added = torch.where(keep, 0.0, -torch.inf).to(dtype)
    for normalization in ("adaptive", "anchored"):
        for mask in (keep, added):
            judge((q, k, v), attn_mask=mask, normalization=normalization, label=f"{normalization} {mask.dtype}")


@case([100], [1000])
def gradient_of_the_scale(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """Values with much in common, next to which the rounding of the output would drown the gradient of the scale."""
    q, k, v = triple(device, dtype, n)
    v = v + 16.0
    for options in (
        {"kernel": KERNEL},
        {"kernel": KERNEL, "normalization": "anchored"},
        {"kernel": KERNEL, "normalization": "fixed", "similarity": "euclidean"},
        {"kernel": "gaussian"},
    ):

        def call(scale: Tensor, backend: str, options: dict[str, Any] = options) -> Tensor:
            tensors = [t.double() if scale.dtype == torch.float64 else t for t in (q, k, v)]
            return epan.attention(*tensors, scale=scale, backend=backend, **options)

        compare(call, {"scale": torch.full((q.shape[1], 1, 1), 0.02, device=device)}, label=str(options))


@case([40], [1000], half=[100])
def values_with_an_offset(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """What the values have in common has no gradient: the output is the mean of the values as the product weighs them."""
    q, k, v = triple(device, dtype, n)
    for normalization, similarity in (("anchored", "dot"), ("fixed", "euclidean")):
        judge((q, k, v + 16.0), kernel=KERNEL, scale=0.02, normalization=normalization, similarity=similarity)


@case([40], [1000], half=[100])
def equal_keys_cancel(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """What keys have in common drops out of the gradient of the queries, however large it and the values are."""
    q, k, v = triple(device, dtype, n)
    for kernel, similarity in ((KERNEL, "dot"), (KERNEL, "euclidean"), ("gaussian", "euclidean")):
        judge((q, torch.full_like(k, 24.0), v + 16.0), kernel=kernel, scale=0.01, similarity=similarity)


@case([40], [1000])
def negative_scales(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """A scale below zero looks for the farthest keys; every row may have a sign of its own."""
    q, k, v = triple(device, dtype, n, heads=2)
    for shape in ((2, 1, 1), (1, 2, n, 1)):
        scale = draw(*shape, device=device, dtype=torch.float32, seed=5)
        scale = scale.sign() * (0.1 + 0.2 * scale.abs())
        named = {"query": q, "key": k, "value": v, "scale": scale}
        for options in ({"kernel": KERNEL}, {"kernel": KERNEL, "normalization": "anchored"}, {"kernel": "gaussian"}):
            call = functools.partial(epan.attention, is_causal=True, **options)
            compare(call, named, label=f"{tuple(shape)} {options}")


@case([40], [1000], half=[100])
def one_key_has_no_gradient(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """All weight is on one key, whatever its score: no gradient but to its value."""
    q, k, v = triple(device, dtype, n)
    grad = draw(*q.shape, device=device, dtype=dtype, seed=9)
    for options in (
        {"kernel": KERNEL, "normalization": "anchored"},
        {"kernel": "cosine", "normalization": "anchored"},
        {"kernel": KERNEL, "normalization": "fixed", "similarity": "euclidean", "scale": 1e-3},
        {"kernel": "cosine", "normalization": "fixed", "similarity": "euclidean", "scale": 1e-3},
    ):
        out, d_q, d_k, d_v = run("triton", (q, k, v + 16.0), grad, "qkv", dtype, {"window": (0, 0), **options})
        assert not bool(d_q.any()), f"{options}: gradient of a query"
        assert not bool(d_k.any()), f"{options}: gradient of a key"
        # The weight is one up to the rounding of Σφ.
        assert_within(out, (v + 16.0).double(), band=band(v + 16.0, [], dtype), label=f"{options} output")
        assert_within(d_v, grad.double(), band=band(grad, [], dtype), label=f"{options} gradient of v")


@case([48], [48, 1000], half=[48])
def rows_of_a_block_are_strangers(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """The threshold of a query has the same bits whatever the other queries of its block need."""
    for trial in range(3):
        q, k, v = triple(device, dtype, n)
        first = (0.3 + 0.3 * trial) * q[:, :, :1]
        for kernel in (KERNEL, epan.Polynomial(order=40.0)):
            outs = []
            for other in (0.0, 1.0, 30.0):
                queries = torch.cat([first, other * q[:, :, 1:2]], 2)
                outs.append(epan.attention(queries, k, v, kernel=kernel, backend="triton")[:, :, :1])
            for out in outs[1:]:
                assert_equal_bits(out, outs[0], f"{kernel}, trial {trial}")


def coarse(device: torch.device, dtype: torch.dtype, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best keys lie in a tile with a huge one, beside which 8 bits make them zero."""
    q, k, v = triple(device, dtype, n)
    q, k = 1 + 0.1 * q, 0.1 + 0.01 * k
    k[:, :, :8] *= 2.0
    q[..., -1] = 0.0
    k[:, :, 9, :-1], k[:, :, 9, -1] = 0.0, 1000.0
    return q, k, v


@case([70], [1000], half=[140])
def eight_bit_products_find_every_tile(device: torch.device, dtype: torch.dtype, n: int) -> None:
    hard, plain = coarse(device, dtype, n), triple(device, dtype, n)
    for mode in ("always", "never", "auto"):
        with epan.ops.triton.screen(mode):
            judge(hard, scale=8.0, label=mode)
            judge((2 * plain[0], *plain[1:]), is_causal=True, label=mode)


@case([70], [1000])
def eight_bit_products_without_bars_are_noticed(device: torch.device, dtype: torch.dtype, n: int) -> None:
    launch, plans = (importlib.import_module(f"epan.ops.triton.{name}") for name in ("launch", "plans"))
    prepare = launch._prepare

    def barless(plan: Any, args: Any, tensors: dict[str, Tensor], constants: Any) -> None:
        prepare(plan, args, tensors, constants)
        if tensors["Q8"].dtype == torch.int8:
            tensors["Q_UNITS"][2].zero_()
            tensors["K_UNITS"][..., 1].zero_()

    # What a call like one before starts does not pass through here.
    plans.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_prepare", barless)
        with epan.ops.triton.screen("always"), pytest.raises(AssertionError, match="output"):
            judge(coarse(device, dtype, n), scale=8.0)
        with epan.ops.triton.screen("never"):
            judge(coarse(device, dtype, n), scale=8.0)


@case([], [1000])
def calls_like_one_before(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """Other numbers at other addresses, then other settings and strides: no call takes what belongs to another."""
    importlib.import_module("epan.ops.triton.plans").forget()
    for turn in range(3):
        q, k, v = (t * (1 + turn) for t in triple(device, dtype, n))
        judge((q, k, v), is_causal=True, label=f"turn {turn}")
        judge((q, k, v), is_causal=turn == 1, scale=0.1 * (1 + turn), label=f"setting {turn}")
        # The same shape one element further in memory, and the heads of a packed projection.
        shifted = [torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape) for t in (q, k, v)]
        judge(shifted, is_causal=True, label=f"shifted {turn}")
        packed = torch.cat((q, k, v), -1).chunk(3, -1)
        judge(packed, is_causal=True, label=f"packed {turn}")
        judge((q, k, v), is_causal=True, wrt="kv"[: turn or 1], label=f"some {turn}")


@case([], [4097])
def part_of_a_cuda_graph(device: torch.device, dtype: torch.dtype, n: int) -> None:
    tensors = [t.requires_grad_() for t in triple(device, dtype, n)]
    grad = draw(*tensors[0].shape, device=device, dtype=dtype, seed=9)

    def both() -> list[Tensor]:
        out = epan.attention(*tensors, is_causal=True, kernel=KERNEL, backend="triton")
        return [out, *torch.autograd.grad(out, tensors, grad)]

    replay = captured(both, device)
    with torch.no_grad():
        for tensor, fresh in zip(tensors, triple(device, dtype, n), strict=True):
            tensor.copy_(2 * fresh)
    for got, right in zip(replay(), both(), strict=True):
        assert_equal_bits(got, right)


@case([], [1024])
def more_than_two_to_the_31_elements(device: torch.device, dtype: torch.dtype, n: int) -> None:
    heads, size = 33_000, 64
    assert heads * n * size > 2**31
    # Heads beside each other: even the rows of one head lie 2³¹ elements apart.
    x = torch.randn(1, n, heads, size, device=device, dtype=dtype).transpose(1, 2)
    leaves = [x.detach().requires_grad_() for _ in range(3)]
    options = {"window": (63, 0), "kernel": KERNEL}
    out = epan.attention(*leaves, backend="triton", **options)
    found = [out.detach(), *torch.autograd.grad(out, leaves, x)]
    for part in (slice(0, 1), slice(heads // 2, heads // 2 + 1), slice(heads - 2, heads)):
        few = (x[:, part],) * 3
        reference = run("eager", few, x[:, part], "qkv", torch.float64, options)
        yardstick = run("eager", few, x[:, part], "qkv", dtype, options)
        for place, (got, right, base) in enumerate(zip(found, reference, yardstick, strict=True)):
            kind = "gradient" if place else "output"
            assert_within(got[:, part], right, base, kind=kind, band=band(right, [], dtype), label=f"{part} {place}")
