"""Every mistake of the caller is an EpanError that says what was found and what is allowed or what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import epan
from epan.errors import EpanError
from epan.testing import catalogue

X = torch.randn(2, 4, 5, 8)
K, V = torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 3)
P = torch.randn(6, 4, 8)
I64 = torch.int64


def offsets(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def same(**options: Any) -> Callable[[str], Any]:
    return lambda name: epan.attention(X, X, X, backend=name, **options)


def inputs(query: Any, key: Any, value: Any, **options: Any) -> Callable[[str], Any]:
    return lambda name: epan.attention(query, key, value, backend=name, **options)


def packed(cu: Any = None, longest: Any = 4, **options: Any) -> Callable[[str], Any]:
    cu = offsets(0, 2, 6) if cu is None else cu
    return lambda name: epan.attention_varlen(P, P, P, cu, cu, longest, longest, backend=name, **options)


def packed_pair(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int = 4, max_k: int = 4, **options: Any
) -> Callable[[str], Any]:
    return lambda name: epan.attention_varlen(query, key, value, cu_q, cu_k, max_q, max_k, backend=name, **options)


CU = offsets(0, 2, 6)
# What is wrong, the call, and words that the message must hold: the finding and the way out.
MISTAKES: list[tuple[str, Callable[[str], Any], tuple[str, ...]]] = [
    # Inputs.
    ("a list", inputs([1.0], X, X), ("query", "list")),
    ("None", inputs(X, X, None), ("value", "NoneType")),
    ("an array", inputs(X, np.zeros((2, 4, 5, 8), np.float32), X), ("key", "ndarray")),
    ("integers", inputs(X.int(), X.int(), X.int()), ("floating point", "torch.int32")),
    ("booleans", inputs(X.bool(), X.bool(), X.bool()), ("floating point", "torch.bool")),
    ("complex numbers", inputs(X.cfloat(), X.cfloat(), X.cfloat()), ("floating point", "torch.complex64")),
    ("key of another dtype", inputs(X, X.double(), X), ("torch.float64", "key.to(query.dtype)")),
    ("value of another dtype", inputs(X, X, X.half()), ("torch.float16", "cast them to one dtype")),
    ("another device", inputs(X, X.to("meta"), X), ("cpu, meta, cpu", "devices")),
    ("two dimensions", inputs(X[0, 0], X[0, 0], X[0, 0]), ("(5, 8)", "(batch, heads, length, size)")),
    ("five dimensions", inputs(X[None], X[None], X[None]), ("(1, 2, 4, 5, 8)", "(batch, heads, length, size)")),
    ("three and four dimensions", inputs(X[0], X, X), ("(4, 5, 8)", "(batch, length, size)")),
    ("four and three dimensions", inputs(X, X[0], X[0]), ("key", "(4, 5, 8)")),
    ("other batch", inputs(X, X[:1], X[:1]), ("batch sizes", "(1, 4, 5, 8)")),
    ("other number of values", inputs(X, X, X[:, :, :3]), ("key lengths", "(2, 4, 3, 8)")),
    ("other heads of values", inputs(X, X, X[:, :2]), ("key heads", "(2, 2, 5, 8)")),
    ("other head size", inputs(X, X[..., :3], X), ("head size", "(2, 4, 5, 3)")),
    ("no head size", inputs(X[..., :0], X[..., :0], X), ("head size is zero", "(2, 4, 5, 0)")),
    ("fewer key heads", inputs(X, K, V), ("number of heads", "enable_gqa=True")),
    ("heads that do not divide", inputs(X[:, :3], K, V, enable_gqa=True), ("multiple", "(2, 3, 5, 8)")),
    ("more key heads", inputs(X[:, :1], K, V, enable_gqa=True), ("multiple", "(2, 1, 5, 8)")),
    ("no key heads", inputs(X, K[:, :0], V[:, :0], enable_gqa=True), ("multiple", "(2, 0, 7, 8)")),
    # Masks.
    ("causal and lengths", inputs(X, K, V, is_causal=True, enable_gqa=True), ("Lq = 5, Lk = 7", "causal_lower_right")),
    ("mask of integers", same(attn_mask=torch.ones(5, 5, dtype=I64)), ("torch.int64", "attn_mask.bool()")),
    ("mask of complex numbers", same(attn_mask=torch.ones(5, 5).cfloat()), ("torch.complex64", "attn_mask.bool()")),
    ("mask too wide", same(attn_mask=torch.ones(5, 6)), ("(5, 6)", "broadcastable to (2, 4, 5, 5)")),
    ("mask of another batch", same(attn_mask=torch.ones(3, 1, 5, 5)), ("(3, 1, 5, 5)", "broadcastable")),
    ("mask of five dimensions", same(attn_mask=torch.ones(1, 1, 1, 5, 5)), ("(1, 1, 1, 5, 5)", "broadcastable")),
    ("mask as a list", same(attn_mask=[[True]]), ("list", "tensor")),
    ("causal bias of other lengths", same(attn_mask=causal_lower_right(4, 5)), ("(4, 5)", "(5, 5)")),
    ("upper-left bias of other lengths", same(attn_mask=causal_upper_left(5, 4)), ("(5, 4)", "(5, 5)")),
    ("window of one number", same(window=3), ("3", "pair (left, right)")),
    ("window of three", same(window=(1, 2, 3)), ("(1, 2, 3)", "pair (left, right)")),
    ("window of one", same(window=(1,)), ("(1,)", "pair (left, right)")),
    ("window of a float", same(window=(1.0, 0)), ("(1.0, 0)", "integers or None")),
    ("window of a boolean", same(window=(True, 0)), ("(True, 0)", "integers or None")),
    ("window of letters", same(window="ab"), ("ab", "pair (left, right)")),
    ("window as a tensor", same(window=torch.tensor([1, 2])), ("tensor", "pair (left, right)")),
    # Numbers.
    ("negative dropout", same(dropout_p=-0.1), ("-0.1", "0 <= dropout_p <= 1")),
    ("dropout above one", same(dropout_p=1.1), ("1.1", "0 <= dropout_p <= 1")),
    ("dropout NaN", same(dropout_p=math.nan), ("nan", "0 <= dropout_p <= 1")),
    ("scale NaN", same(scale=math.nan), ("nan", "finite")),
    ("scale infinite", same(scale=math.inf), ("inf", "finite")),
    ("scale as text", same(scale="1"), ("1", "a number, a tensor or None")),
    ("scale as a truth", same(scale=True), ("True", "a number, a tensor or None")),
    ("scale as a list", same(scale=[1.0]), ("[1.0]", "a number, a tensor or None")),
    ("scale complex", same(scale=1j), ("1j", "a number, a tensor or None")),
    ("scale of one dimension", same(scale=torch.ones(4)), ("ambiguous", "scale.view(-1, 1, 1)")),
    ("scale of integers", same(scale=torch.ones((), dtype=I64)), ("floating point", "torch.int64")),
    ("scale of other heads", same(scale=torch.ones(3, 1, 1)), ("(3, 1, 1)", "broadcastable to (2, 4, 5, 1)")),
    ("scale per key", same(scale=torch.ones(5, 5)), ("(5, 5)", "broadcastable to (2, 4, 5, 1)")),
    ("scale of five dimensions", same(scale=torch.ones(1, 1, 1, 1, 1)), ("(1, 1, 1, 1, 1)", "broadcastable")),
    ("slopes of other heads", same(alibi_slopes=torch.ones(3)), ("(3,)", "(4,) or (2, 4)")),
    ("slopes of four dimensions", same(alibi_slopes=torch.ones(1, 4, 1, 1)), ("(1, 4, 1, 1)", "(4,) or (2, 4)")),
    ("slopes of integers", same(alibi_slopes=torch.ones(4, dtype=I64)), ("alibi_slopes", "floating-point")),
    ("slopes as a list", same(alibi_slopes=[1.0] * 4), ("list", "floating-point tensor")),
    (
        "order of other heads",
        same(kernel=epan.Polynomial(order=torch.full((3, 1, 1), 2.0))),
        ("(3, 1, 1)", "(2, 4, 5, 1)"),
    ),
    ("order of one dimension", same(kernel=epan.Polynomial(order=torch.full((4,), 2.0))), ("(4,)", "broadcastable")),
    # Names.
    ("misspelt kernel", same(kernel="biwieght"), ("'biwieght'", "did you mean 'biweight'", "epanechnikov")),
    ("familiar kernel", same(kernel="softmax"), ("'softmax'", 'kernel="gaussian"')),
    ("normalization as kernel", same(kernel="adaptive"), ("normalization", 'normalization="adaptive"')),
    ("kernel class", same(kernel=epan.Biweight), ("Biweight", "Biweight()")),
    ("no kernel", same(kernel=None), ("name", "gaussian")),
    ("kernel without its parameter", same(kernel={"name": "polynomial"}), ("polynomial", "order")),
    ("misspelt normalization", same(normalization="adaptiv"), ("'adaptiv'", "did you mean 'adaptive'?")),
    ("nearest without k", same(normalization="nearest"), ("epan.Nearest(k=16)", "neighbours")),
    ("familiar normalization", same(normalization="sparsemax"), ("'sparsemax'", 'kernel="epanechnikov"')),
    ("normalization class", same(normalization=epan.Nearest), ("Nearest", "instance")),
    ("no normalization", same(normalization=None), ("name", "adaptive")),
    ("k of zero", same(normalization={"name": "nearest", "k": 0}), ("0", "k >= 1")),
    ("misspelt similarity", same(similarity="euclid"), ("'euclid'", "did you mean 'euclidean'?")),
    ("no similarity", same(similarity=None), ("None", "dot, euclidean")),
    ("fixed with dot", same(normalization="fixed"), ("distances", 'similarity="euclidean"')),
    # Packed sequences.
    ("packed as four dimensions", packed_pair(P[None], P, P, CU, CU), ("(1, 6, 4, 8)", "(tokens, heads, size)")),
    ("packed as an array", packed_pair(P, P.numpy(), P, CU, CU), ("ndarray", "(tokens, heads, size)")),
    ("packed key of another dtype", packed_pair(P, P.double(), P, CU, CU), ("torch.float64", "cast them")),
    ("packed heads that do not divide", packed_pair(P, P[:, :3], P[:, :3], CU, CU), ("multiple", "key (1, 3, 6, 8)")),
    ("packed head size", packed_pair(P, P[..., :3], P, CU, CU), ("head size", "query")),
    ("fewer values than keys", packed_pair(P, P, P[:5], CU, CU), ("key lengths", "value")),
    ("offsets as a list", packed([0, 2, 6]), ("list", "(sequences + 1,)")),
    ("offsets of floats", packed(CU.float()), ("torch.float32", "integer offsets")),
    ("offsets of two dimensions", packed(CU[None]), ("(1, 3)", "(sequences + 1,)")),
    ("a single offset", packed(offsets(0)), ("(1,)", "(sequences + 1,)")),
    ("no offsets for keys", packed_pair(P, P, P, CU, None), ("cu_seq_k", "NoneType", "(sequences + 1,)")),
    ("offsets that decrease", packed(offsets(0, 4, 2)), ("never decrease", "[0, 4, 2]")),
    ("offsets from one", packed(offsets(1, 2, 6)), ("start at 0", "[1, 2, 6]")),
    ("negative offsets", packed(offsets(-1, 2, 6)), ("start at 0", "[-1, 2, 6]")),
    ("offsets beyond the tokens", packed(offsets(0, 2, 7)), ("number of tokens", "7 for 6 tokens")),
    ("offsets beyond the keys", packed_pair(P, P[:5], P[:5], CU, CU), ("cu_seq_k", "6 for 5 tokens")),
    ("other number of sequences", packed_pair(P, P, P, CU, offsets(0, 6), max_k=6), ("numbers of sequences", "3, 2")),
    ("longest query too short", packed(CU, 3), ("max_q", "3 < 4")),
    ("longest key too short", packed_pair(P, P, P, CU, CU, max_k=3), ("max_k", "3 < 4")),
    (
        "causal with two offsets",
        packed_pair(P, P, P, CU, CU.clone(), is_causal=True),
        ("same object", "window=(None, 0)"),
    ),
    ("packed scale of one dimension", packed(scale=torch.ones(4)), ("(4,)", "(4, 1) or (6, 4, 1)")),
    ("packed scale as for batches", packed(scale=torch.ones(4, 1, 1)), ("(4, 1, 1)", "(4, 1) or (6, 4, 1)")),
    ("packed scale NaN", packed(scale=math.nan), ("nan", "finite")),
    ("packed slopes per sequence", packed(alibi_slopes=torch.ones(2, 4)), ("(2, 4)", "(4,)")),
    ("packed window", packed(window=(1,)), ("(1,)", "pair (left, right)")),
    ("packed dropout", packed(dropout_p=2.0), ("2.0", "0 <= dropout_p <= 1")),
    ("packed kernel", packed(kernel="gausian"), ("'gausian'", "did you mean 'gaussian'?")),
    ("packed normalization", packed(normalization="anchord"), ("'anchord'", "did you mean 'anchored'?")),
    ("packed similarity", packed(similarity="dott"), ("'dott'", "did you mean 'dot'?")),
]


@pytest.mark.parametrize("name", [*catalogue.backends(), "auto"])
@pytest.mark.parametrize(("call", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_say_what_was_found_and_what_to_do(
    call: Callable[[str], Any], words: tuple[str, ...], name: str
) -> None:
    with pytest.raises(EpanError) as caught:
        call(name)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert any(label in message for label in ("Found: ", "Allowed: ", "Fix: "))


@pytest.mark.parametrize(
    ("misspelt", "words"),
    [
        ("eagre", ("'eagre'", "did you mean 'eager'?", "auto, eager, tiled")),
        ("titled", ("'titled'", "did you mean 'tiled'?")),
        ("flash", ("'flash'", 'backend="tiled"')),
        ("cuda", ("'cuda'", "auto, eager, tiled")),
        ("", ("''", "auto, eager, tiled")),
        (None, ("None", "auto, eager, tiled")),
    ],
)
def test_unknown_backends(misspelt: Any, words: tuple[str, ...]) -> None:
    for call in (same(), packed()):
        with pytest.raises(EpanError) as caught:
            call(misspelt)
        for word in words:
            assert word in str(caught.value)


def test_mistakes_are_value_errors_and_are_found_before_any_work() -> None:
    """Also where the inputs hold nothing."""
    empty = torch.zeros(0, 4, 0, 8)
    with pytest.raises(ValueError, match="finite"):
        epan.attention(empty, empty, empty, scale=math.nan)
    with pytest.raises(ValueError, match="probability"):
        epan.attention(empty, empty, empty, dropout_p=7.0)


@pytest.mark.parametrize("name", catalogue.backends())
def test_what_looks_odd_and_is_allowed(name: str) -> None:
    """The counterpart: none of these is a mistake."""
    for options in (
        {"window": [2, None]},
        {"window": (None, None)},
        {"window": (-3, 2)},
        {"attn_mask": torch.tensor(True)},
        {"attn_mask": torch.ones(5)},
        {"attn_mask": causal_lower_right(5, 5), "is_causal": True},
        {"attn_mask": torch.ones(5, 5).bool(), "is_causal": True, "window": (1, 1)},
        {"scale": 1},
        {"scale": torch.ones(1)},
        {"scale": torch.ones(5, 1)},
        {"alibi_slopes": torch.ones(2, 4)},
        {"dropout_p": 1.0},
        {"enable_gqa": True},
        {"kernel": {"name": "polynomial", "order": 2.5}, "normalization": {"name": "adaptive"}},
    ):
        assert epan.attention(X, X, X, backend=name, **options).shape == X.shape  # type: ignore[arg-type]
    for dtype in (torch.int32, torch.int64):
        assert packed(CU.to(dtype))(name).shape == P.shape
    assert packed(offsets(0, 2, 5))(name).shape == P.shape
