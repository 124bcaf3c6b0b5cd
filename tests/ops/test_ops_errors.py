"""Every mistake of the caller is an EpanError that says what was found and what is allowed or what to do."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import epan
from epan.errors import EpanError
from epan.testing import catalogue, tolerance

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
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: Any = 4, max_k: Any = 4, **options: Any
) -> Callable[[str], Any]:
    return lambda name: epan.attention_varlen(query, key, value, cu_q, cu_k, max_q, max_k, backend=name, **options)


def order(*shape: int) -> epan.Polynomial:
    return epan.Polynomial(order=torch.full(shape, 2.0))


CU = offsets(0, 2, 6)
META = torch.zeros(5, 5, device="meta")
META_ORDER = epan.Polynomial(order=torch.full((), 2.0, device="meta"))
with warnings.catch_warnings():
    # Their interface is not final, and says so.
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([X[0], X[1]])
    JAGGED = torch.nested.nested_tensor([X[0, 0], X[1, 0, :2]], layout=torch.jagged)
# What is wrong, the call, and words that the message must hold: the finding and the way out.
MISTAKES: list[tuple[str, Callable[[str], Any], tuple[str, ...]]] = [
    # Inputs.
    ("a list", inputs([1.0], X, X), ("query", "list")),
    ("None", inputs(X, X, None), ("value", "NoneType")),
    ("an array", inputs(X, np.zeros((2, 4, 5, 8), np.float32), X), ("key", "ndarray")),
    ("integers", inputs(X.int(), X.int(), X.int()), ("floating-point", "torch.int32", "query.float()")),
    ("booleans", inputs(X.bool(), X.bool(), X.bool()), ("floating-point", "torch.bool")),
    ("complex numbers", inputs(X.cfloat(), X.cfloat(), X.cfloat()), ("floating-point", "torch.complex64")),
    ("key of another dtype", inputs(X, X.double(), X), ("torch.float64", "key.to(query.dtype)")),
    ("value of another dtype", inputs(X, X, X.half()), ("torch.float16", "cast them to one dtype")),
    ("another device", inputs(X, X.to("meta"), X), ("cpu, meta, cpu", "devices", "key.to(query.device)")),
    ("8 bits", inputs(*[X.to(torch.float8_e4m3fn)] * 3), ("query", "torch.float8_e4m3fn", "bfloat16", "query.float()")),
    ("values of 8 bits", inputs(X, X, X.to(torch.float8_e5m2)), ("value", "torch.float8_e5m2", "value.float()")),
    ("sparse query", inputs(X.to_sparse(), X, X), ("query", "torch.sparse_coo", "query.to_dense()")),
    ("sparse values", inputs(X, X, X.to_sparse()), ("value", "torch.sparse_coo", "value.to_dense()")),
    ("nested key", inputs(X, NESTED, X), ("key", "nested", "attention_varlen")),
    ("jagged key", inputs(X, JAGGED, X), ("key", "nested", "attention_varlen")),
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
    ("mask on another device", same(attn_mask=META.bool()), ("attn_mask on meta, query on cpu", "attn_mask.to(query.")),
    ("bias on another device", same(attn_mask=META), ("attn_mask on meta, query on cpu", "attn_mask.to(query.device)")),
    ("number as a bias on another device", same(attn_mask=META[0, 0]), ("attn_mask on meta", "attn_mask.to(query.")),
    ("sparse mask", same(attn_mask=torch.ones(5, 5).to_sparse()), ("attn_mask", "sparse_coo", "attn_mask.to_dense()")),
    ("mask of 8 bits", same(attn_mask=torch.ones(5, 5).to(torch.float8_e5m2)), ("float8_e5m2", "float16", "bool")),
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
    ("window of a huge number", same(window=(2**70, 0)), ("1180591620717411303424", "2**63", "None for no bound")),
    ("window of a huge negative number", same(window=(0, -(2**63))), ("-9223372036854775808", "2**63", "None for")),
    ("window of a NumPy float", same(window=(np.float64(1.0), 0)), ("1.0", "integers or None")),
    ("window of a NumPy boolean", same(window=(np.True_, 0)), ("True", "integers or None")),
    # Truth values.
    ("statistics as text", same(return_stats="x"), ("return_stats", "'x'", "True or False")),
    ("statistics as a number", same(return_stats=1), ("return_stats", "1", "True or False")),
    ("causal as text", same(is_causal="no"), ("is_causal", "'no'", "True or False")),
    ("shared heads as nothing", same(enable_gqa=None), ("enable_gqa", "None", "True or False")),
    # Numbers.
    ("dropout as text", same(dropout_p="a"), ("'a'", "0 <= dropout_p <= 1")),
    ("no dropout", same(dropout_p=None), ("None", "0 <= dropout_p <= 1")),
    ("dropout as a truth", same(dropout_p=True), ("True", "0 <= dropout_p <= 1")),
    ("dropout as a tensor", same(dropout_p=torch.tensor(0.5)), ("tensor(0.5", "0 <= dropout_p <= 1")),
    ("dropout beyond any float", same(dropout_p=10**400), ("0 <= dropout_p <= 1",)),
    ("negative dropout", same(dropout_p=-0.1), ("-0.1", "0 <= dropout_p <= 1")),
    ("dropout above one", same(dropout_p=1.1), ("1.1", "0 <= dropout_p <= 1")),
    ("dropout NaN", same(dropout_p=math.nan), ("nan", "0 <= dropout_p <= 1")),
    ("scale NaN", same(scale=math.nan), ("nan", "finite")),
    ("scale infinite", same(scale=math.inf), ("inf", "finite")),
    ("scale beyond any float", same(scale=10**400), ("inf", "finite")),
    ("scale NaN of NumPy", same(scale=np.float32("nan")), ("nan", "finite")),
    ("scale as a NumPy truth", same(scale=np.True_), ("True", "a number, a tensor or None")),
    ("scale as an array", same(scale=np.ones(1)), ("array", "a number, a tensor or None")),
    ("scale on another device", same(scale=META[:4, :1, None]), ("scale on meta", "scale.to(query.device)")),
    ("number on another device", same(scale=META[0, 0]), ("scale on meta, query on cpu", "scale.to(query.device)")),
    ("sparse scale", same(scale=torch.ones(4, 1, 1).to_sparse()), ("scale", "sparse_coo", "scale.to_dense()")),
    ("scale of 8 bits", same(scale=torch.ones(()).to(torch.float8_e5m2)), ("scale", "float8_e5m2", "scale.float()")),
    ("scale as text", same(scale="1"), ("1", "a number, a tensor or None")),
    ("scale as a truth", same(scale=True), ("True", "a number, a tensor or None")),
    ("scale as a list", same(scale=[1.0]), ("[1.0]", "a number, a tensor or None")),
    ("scale complex", same(scale=1j), ("1j", "a number, a tensor or None")),
    ("scale of one dimension", same(scale=torch.ones(4)), ("ambiguous", "scale.view(-1, 1, 1)")),
    ("scale of integers", same(scale=torch.ones((), dtype=I64)), ("floating-point", "torch.int64")),
    ("scale of other heads", same(scale=torch.ones(3, 1, 1)), ("(3, 1, 1)", "broadcastable to (2, 4, 5, 1)")),
    ("scale per key", same(scale=torch.ones(5, 5)), ("(5, 5)", "broadcastable to (2, 4, 5, 1)")),
    ("scale of five dimensions", same(scale=torch.ones(1, 1, 1, 1, 1)), ("(1, 1, 1, 1, 1)", "broadcastable")),
    ("slopes of other heads", same(alibi_slopes=torch.ones(3)), ("(3,)", "(4,) or (2, 4)")),
    ("slopes of four dimensions", same(alibi_slopes=torch.ones(1, 4, 1, 1)), ("(1, 4, 1, 1)", "(4,) or (2, 4)")),
    ("slopes of integers", same(alibi_slopes=torch.ones(4, dtype=I64)), ("alibi_slopes", "floating-point")),
    ("slopes on another device", same(alibi_slopes=META[0, :4]), ("alibi_slopes on meta", "alibi_slopes.to(query.")),
    ("sparse slopes", same(alibi_slopes=torch.ones(4).to_sparse()), ("sparse_coo", "alibi_slopes.to_dense()")),
    ("slopes of 8 bits", same(alibi_slopes=torch.ones(4).to(torch.float8_e5m2)), ("float8_e5m2", "slopes.float()")),
    ("slopes as a list", same(alibi_slopes=[1.0] * 4), ("list", "floating-point tensor")),
    (
        "order of other heads",
        same(kernel=epan.Polynomial(order=torch.full((3, 1, 1), 2.0))),
        ("(3, 1, 1)", "(2, 4, 5, 1)"),
    ),
    ("order of one dimension", same(kernel=epan.Polynomial(order=torch.full((4,), 2.0))), ("(4,)", "broadcastable")),
    ("order on another device", same(kernel=META_ORDER), ("order on meta, query on cpu", "order.to(query.device)")),
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
    ("packed as an array", packed_pair(P, P.numpy(), P, CU, CU), ("key", "ndarray", "must be a tensor")),
    ("packed key of another dtype", packed_pair(P, P.double(), P, CU, CU), ("torch.float64", "cast them")),
    ("packed heads that do not divide", packed_pair(P, P[:, :3], P[:, :3], CU, CU), ("multiple", "key (1, 3, 6, 8)")),
    ("packed head size", packed_pair(P, P[..., :3], P, CU, CU), ("head size", "query")),
    ("fewer values than keys", packed_pair(P, P, P[:5], CU, CU), ("key lengths", "value")),
    ("offsets as a list", packed([0, 2, 6]), ("list", "(sequences + 1,)")),
    ("offsets of floats", packed(CU.float()), ("torch.float32", "integer offsets")),
    ("offsets of two dimensions", packed(CU[None]), ("(1, 3)", "(sequences + 1,)")),
    ("a single offset", packed(offsets(0)), ("(1,)", "(sequences + 1,)")),
    ("no offsets for keys", packed_pair(P, P, P, CU, None), ("cu_seq_k", "NoneType", "(sequences + 1,)")),
    ("offsets of booleans", packed(torch.tensor([False, True])), ("torch.bool", "int32 or int64")),
    ("offsets of complex numbers", packed(CU.cfloat()), ("torch.complex64", "int32 or int64")),
    ("offsets of 8 bits", packed(CU.to(torch.uint8)), ("torch.uint8", "int32 or int64")),
    ("sparse offsets", packed(CU.to_sparse()), ("cu_seq_q", "sparse_coo", "cu_seq_q.to_dense()")),
    (
        "offsets on another device",
        packed(CU.to("meta")),
        ("cu_seq_q on meta, query on cpu", "cu_seq_q.to(query.device)"),
    ),
    ("key offsets on another device", packed_pair(P, P, P, CU, CU.to("meta")), ("cu_seq_k on meta", "cu_seq_k.to(")),
    ("offsets that decrease", packed(offsets(0, 4, 2)), ("never decrease", "[0, 4, 2]")),
    ("offsets from one", packed(offsets(1, 2, 6)), ("start at 0", "[1, 2, 6]")),
    ("negative offsets", packed(offsets(-1, 2, 6)), ("start at 0", "[-1, 2, 6]")),
    ("offsets beyond the tokens", packed(offsets(0, 2, 7)), ("number of tokens", "7 for 6 tokens")),
    ("offsets beyond the keys", packed_pair(P, P[:5], P[:5], CU, CU), ("cu_seq_k", "6 for 5 tokens")),
    ("other number of sequences", packed_pair(P, P, P, CU, offsets(0, 6), max_k=6), ("numbers of sequences", "3, 2")),
    ("longest query too short", packed(CU, 3), ("max_q", "3 < 4", "max_q=4")),
    ("longest query as nothing", packed(CU, None), ("max_q", "None", "integer")),
    ("longest query as text", packed(CU, "4"), ("max_q", "'4'", "integer")),
    ("longest query as a float", packed(CU, 4.0), ("max_q", "4.0", "integer")),
    ("longest query between integers", packed(CU, 4.5), ("max_q", "4.5", "integer")),
    ("longest query as a truth", packed(offsets(0, 1, 2), True), ("max_q", "True", "integer")),
    ("longest query as a tensor", packed(CU, torch.tensor(4)), ("max_q", "tensor(4)", "integer")),
    ("longest key as text", packed_pair(P, P, P, CU, CU, max_k="4"), ("max_k", "'4'", "integer")),
    ("longest key too short", packed_pair(P, P, P, CU, CU, max_k=3), ("max_k", "3 < 4")),
    (
        "causal with two offsets",
        packed_pair(P, P, P, CU, CU.clone(), is_causal=True),
        ("same object", "window=(None, 0)"),
    ),
    ("packed scale of one dimension", packed(scale=torch.ones(4)), ("(4,)", "(4, 1) or (6, 4, 1)")),
    ("packed scale as for batches", packed(scale=torch.ones(4, 1, 1)), ("(4, 1, 1)", "(4, 1) or (6, 4, 1)")),
    ("packed order of one dimension", packed(kernel=order(4)), ("(4,)", "(4, 1) or (6, 4, 1)")),
    ("packed order as for batches", packed(kernel=order(4, 1, 1)), ("(4, 1, 1)", "(4, 1) or (6, 4, 1)")),
    ("packed order per head size", packed(kernel=order(6, 4, 8)), ("(6, 4, 8)", "(4, 1) or (6, 4, 1)")),
    ("packed order of four dimensions", packed(kernel=order(1, 4, 6, 1)), ("(1, 4, 6, 1)", "(4, 1) or (6, 4, 1)")),
    ("packed order on another device", packed(kernel=META_ORDER), ("order on meta", "order.to(query.device)")),
    ("packed scale on another device", packed(scale=META[:4, :1]), ("scale on meta", "scale.to(query.device)")),
    ("packed slopes on another device", packed(alibi_slopes=META[0, :4]), ("alibi_slopes on meta",)),
    ("packed values that are sparse", packed_pair(P, P, P.to_sparse(), CU, CU), ("value", "value.to_dense()")),
    ("packed statistics", packed(return_stats="x"), ("return_stats", "'x'", "True or False")),
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
        ("eagre", ("'eagre'", "did you mean 'eager'?", "auto, eager, tiled, triton")),
        ("titled", ("'titled'", "did you mean 'tiled'")),
        ("flash", ("'flash'", 'backend="triton"', 'backend="tiled"')),
        ("cuda", ("'cuda'", "auto, eager, tiled, triton")),
        ("", ("''", "auto, eager, tiled, triton")),
        (None, ("None", "auto, eager, tiled, triton")),
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
        {"window": (np.int64(2), np.uint8(0))},
        {"window": (sys.maxsize, sys.maxsize)},
        {"attn_mask": torch.tensor(True)},
        {"attn_mask": torch.ones(5)},
        {"attn_mask": causal_lower_right(5, 5), "is_causal": True},
        {"attn_mask": torch.ones(5, 5).bool(), "is_causal": True, "window": (1, 1)},
        {"scale": 1},
        {"scale": np.float16(0.5)},
        {"scale": np.int64(1)},
        {"scale": Fraction(1, 3)},
        {"dropout_p": np.float32(0.5)},
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
    for kernel in (order(), order(1), order(4, 1), order(6, 4, 1), order(6, 1, 1)):
        assert packed(kernel=kernel)(name).shape == P.shape
    for scale in (torch.ones(()), torch.ones(4, 1), torch.ones(6, 4, 1)):
        assert packed(scale=scale)(name).shape == P.shape


@pytest.mark.parametrize("name", catalogue.backends())
def test_odd_numbers_mean_what_they_say(name: str) -> None:
    """The same bits as from plain numbers, and a window or length without an end as without one."""

    def attend(**options: Any) -> Tensor:
        out: Tensor = epan.attention(X, X, X, backend=name, **options)
        return out

    tolerance.assert_equal_bits(attend(scale=np.float32(0.5)), attend(scale=0.5))
    tolerance.assert_equal_bits(attend(window=(np.int64(1), np.int8(0))), attend(window=(1, 0)))
    tolerance.assert_equal_bits(attend(window=(sys.maxsize, 0)), attend(window=(None, 0)))
    tolerance.assert_equal_bits(attend(window=(1 - 2**63, 0)), torch.zeros_like(X))
    for longest in (np.int32(4), 100, 2**40):
        tolerance.assert_equal_bits(packed(CU, longest)(name), packed(CU, 4)(name))


@pytest.mark.parametrize("name", catalogue.backends())
def test_numbers_on_the_cpu_follow_the_query(name: str) -> None:
    """As everywhere in torch, a CPU tensor without dimensions may meet tensors of another device."""
    x, p = X.to("meta"), P.to("meta")
    kernel = epan.Polynomial(order=torch.tensor(2.5))
    out = epan.attention(x, x, x, torch.tensor(True), scale=torch.tensor(0.5), kernel=kernel, backend=name)
    assert (out.shape, out.device.type) == (X.shape, "meta")
    cu = CU.to("meta")
    packed = epan.attention_varlen(p, p, p, cu, cu, 4, 4, scale=torch.tensor(0.5), kernel=kernel, backend="eager")
    assert isinstance(packed, Tensor)
    assert (packed.shape, packed.device.type) == (P.shape, "meta")
    with pytest.raises(EpanError, match="attn_mask on cpu, query on meta"):
        epan.attention(x, x, x, torch.ones(5, 5), backend=name)
