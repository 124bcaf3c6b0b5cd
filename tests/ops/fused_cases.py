"""What the fused GPU kernels are tested with, in Triton's interpreter and on a GPU: functions by name.

Each takes the backend and the eager one. Inputs are small: the interpreter needs a second for what a GPU does at once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import epan
from epan import kernels, normalizations
from epan.errors import UnsupportedError
from epan.testing import conformance, tolerance
from epan.testing.conformance import PackedCase
from epan.testing.execution import Attention, device_of, varlen_backend
from epan.testing.inputs import LOADED, PER_QUERY, Case

# Several blocks of queries and tiles of keys, plain products, and weight in some of the tiles only.
TILES: dict[str, Any] = {"q_len": 40, "k_len": 70, "batch": 1, "heads": 1, "spread": 1.5}
KINDS = {
    "epanechnikov": Case(kernel="epanechnikov"),
    "biweight": Case(),
    "triweight": Case(kernel="triweight"),
    "order-5": Case(kernel=epan.Polynomial(5.0)),
    "anchored": Case(kernel="epanechnikov", normalization="anchored"),
    "anchored-cosine": Case(kernel="cosine", normalization="anchored"),
    "fixed": Case(kernel="triweight", normalization="fixed", similarity="euclidean"),
    "fixed-cosine": Case(kernel="cosine", normalization="fixed", similarity="euclidean"),
    "fixed-uniform": Case(kernel="biweight", normalization=epan.Fixed(empty="uniform"), similarity="euclidean"),
    "gaussian": Case(kernel="gaussian"),
    "gaussian-euclidean": Case(kernel="gaussian", similarity="euclidean"),
    "nearest": Case(kernel="uniform", normalization=epan.Nearest(k=3)),
    "nearest-gaussian": Case(kernel="gaussian", normalization=epan.Nearest(k=3)),
}
# One of each schedule.
SCHEDULES = ("biweight", "anchored", "fixed", "gaussian", "nearest-gaussian")


def agrees(kind: str, fused: Attention, eager: Attention) -> None:
    """Outputs and gradients in both precisions that the interpreter has (it is wrong in bfloat16)."""
    conformance.gradients_agree_with_formula(fused, KINDS[kind].but(dtype=torch.float32, **LOADED), eager)
    # The others differ from these by the profile alone.
    if kind in SCHEDULES:
        conformance.gradients_agree_with_formula(fused, KINDS[kind].but(dtype=torch.float16, **LOADED, batch=1), eager)
        conformance.gradients_agree_with_formula(
            fused, KINDS[kind].but(dtype=torch.float32, **PER_QUERY, batch=1), eager
        )


# Of short sequences: biases, shared key heads and strides; numbers per query and values of another size; a tail of keys
# beside a block of them; windows on both sides; a tail that the last block of queries alone sees.
SHORT: dict[str, dict[str, Any]] = {
    "loaded": {**LOADED, "mask": "none"},
    "per-query": {**PER_QUERY, "mask": "none"},
    "tail": {"q_len": 36, "k_len": 36, "batch": 1, "heads": 2, "alibi": "batch", "scale": "query"},
    "window": {"window": (4, -2)},
    "causal tail": {"q_len": 140, "k_len": 140, "is_causal": True, "batch": 1, "heads": 1},
}


def _keeps_from_gradients(fused: Attention, case: Case) -> None:
    """A query that is not finite has no part in any gradient, as if nothing came back through its row."""
    given = case.build()
    found = []
    for broken in (True, False):
        query, key, value = (t.detach().clone().requires_grad_() for t in (given.query, given.key, given.value))
        grad = given.grad.clone()
        if broken:
            query.data[..., 2, :] = torch.nan
            # A loss makes NaN of what is NaN.
            grad[..., 2, :] = torch.nan
        else:
            grad[..., 2, :] = 0
        out = fused(query, key, value, **given.options())
        found.append(torch.autograd.grad(out, (query, key, value), grad))
    for got, right in zip(*found, strict=True):
        tolerance.assert_equal_bits(got, right)


def short(kind: str, fused: Attention, eager: Attention) -> None:
    """Outputs and gradients of the kernels for short sequences; and that it is these which are called."""
    schedules = importlib.import_module("epan.ops.triton.schedules")
    calls: dict[str, int] = {}

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(schedules, name)

        def call(*args: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args)

        return call

    names = ("short_forward_pass", "short_backward_pass")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(schedules, name, counted(name))
        for label, change in SHORT.items():
            if label in ("loaded", "tail") or kind in (*SCHEDULES, "nearest"):
                case = KINDS[kind].but(dtype=torch.float16, **change)
                conformance.agrees_with_formula(fused, case, eager)
                conformance.gradients_agree_with_formula(fused, case, eager)
        if kind in SCHEDULES:
            case = KINDS[kind].but(dtype=torch.float16, batch=1, heads=1)
            conformance.contains_nonfinite(fused, case.but(is_causal=True, scale="head", q_len=5, k_len=5))
            conformance.hidden_keys_leave_no_trace(fused, case.but(is_causal=True, q_len=9))
            _keeps_from_gradients(fused, case)
        assert all(calls.get(name, 0) > 0 for name in names)
        given, before = KINDS[kind].but(dtype=torch.float16).build(), dict(calls)
        with epan.ops.triton.short("never"):
            fused(given.query, given.key, given.value, **given.options())
        assert calls == before


def leaves_out_tiles(kind: str, fused: Attention, eager: Attention) -> None:
    case = KINDS[kind].but(dtype=torch.float32, **TILES)
    conformance.gradients_agree_with_formula(fused, case, eager)
    # Statistics are judged with as many values as keys.
    conformance.reports_statistics(fused, case.but(k_len=60), eager)


def moves_nothing_alone(kind: str, fused: Attention, eager: Attention) -> None:
    """One key that has all the weight of its query: only its value has a gradient, and all others are exactly zero."""
    for changes in (
        {"window": (1, -1)},
        {"window": (1, -1), "alibi": "head", "scale": "query", "mask": "float"},
        # Of many keys in sight all are far below the best one.
        {"spread": 200.0, "scale": "query"},
    ):
        case = KINDS[kind].but(dtype=torch.float32, batch=1, heads=1, **changes)
        conformance.gradients_agree_with_formula(fused, case, eager)


def tells(kind: str, fused: Attention, eager: Attention) -> None:
    case = KINDS[kind].but(dtype=torch.float32, heads=1)
    conformance.reports_statistics(fused, case.but(mask="some_rows", scale="head"), eager)
    conformance.takes_three_dimensions(fused, case)
    conformance.repeats_itself(fused, case.but(is_causal=True, q_len=9))


def contains(kind: str, fused: Attention, eager: Attention) -> None:
    """What a query may not see leaves no trace."""
    case = KINDS[kind].but(dtype=torch.float32, batch=1, heads=1)
    conformance.contains_nonfinite(fused, case.but(mask="padding", scale="head", q_len=3, k_len=4))
    conformance.hidden_keys_leave_no_trace(fused, case.but(is_causal=True, q_len=9))


def sees(kind: str, fused: Attention, eager: Attention) -> None:
    """Masks, nothing at all, and packed sequences."""
    case = KINDS[kind].but(dtype=torch.float32, batch=1, heads=2)
    conformance.fully_masked_rows_are_zero(fused, case.but(mask="some_rows", scale="query", alibi="head"))
    conformance.handles_nothing(fused, case.but(scale="head"))
    conformance.sees_exactly_the_allowed_keys(
        fused, case.but(window=(2, 1), mask="float_inf", alibi="batch", q_len=5, k_len=6)
    )
    base = KINDS[kind].but(dtype=torch.float32, heads=2, key_heads=1, value_size=5)
    for case in (
        PackedCase(q_lens=(5, 0, 2), tail=3, scale="token", base=base.but(is_causal=True, alibi="head")),
        PackedCase(q_lens=(3, 6, 1), k_lens=(8, 0, 2), scale="head", base=base.but(window=(1, 2))),
    ):
        conformance.packs_sequences(varlen_backend("triton"), case, varlen_backend("eager"))


def drops(kind: str, fused: Attention, eager: Attention) -> None:
    case = KINDS[kind].but(dtype=torch.float32, scale="head", q_len=12, k_len=20, batch=2, heads=2, key_heads=1)
    conformance.drops_weights(fused, case)


def short_ties(fused: Attention, eager: Attention) -> None:
    """Keys that tie with the k-th best share its places: which noise may decide, so that no comparison above shows it."""
    device = device_of("triton")
    q = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=device)
    # In the block of keys and in its tail.
    scores = torch.tensor([1.0, 2.0, 3.0] + [0.0] * 29 + [2.0, -1.0, 2.0], dtype=torch.float16, device=device)
    weights = fused(
        q, scores[None, None, :, None], torch.eye(len(scores), dtype=torch.float16, device=device)[None, None],
        kernel="uniform", normalization=epan.Nearest(k=2), scale=1.0,
    )  # fmt: skip
    expected = torch.where(scores == 3, 1 / 2, torch.where(scores == 2, 1 / 6, 0.0))
    torch.testing.assert_close(weights[0, 0, 0].float(), expected, rtol=1e-3, atol=0)


def short_compiles(fused: Attention, eager: Attention) -> None:
    """The same bits in one graph, also where the mode changes afterwards; the Gaussian does not look at it in the graph."""
    for kernel in ("gaussian", "biweight"):

        def call(q: Tensor, k: Tensor, v: Tensor, kernel: str = kernel) -> Tensor:
            return epan.attention(q, k, v, is_causal=True, kernel=kernel, backend="triton")

        tensors = [_draw(1, 2, 20, 16).detach().half().requires_grad_() for _ in range(3)]
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        right = call(*tensors)
        grads = torch.autograd.grad(right, tensors, torch.ones_like(right))
        for mode in ("auto", "never"):
            with epan.ops.triton.short(mode):
                out = compiled(*tensors)
                found = torch.autograd.grad(out, tensors, torch.ones_like(out))
            for got, expected in zip((out, *found), (right, *grads), strict=True):
                tolerance.assert_equal_bits(got, expected)


def short_breaks(fused: Attention, eager: Attention) -> None:
    """What is not finite is told where a score overflows or the scale is no number, and spoils no other row."""
    q, k, v = (_draw(1, 1, 5, 4, grad=False).half() for _ in range(3))
    device = device_of("triton")
    for options in (
        {"kernel": "gaussian"},
        {"kernel": "biweight"},
        {"kernel": "biweight", "normalization": "anchored"},
        {"kernel": "biweight", "normalization": "fixed", "similarity": "euclidean"},
        {"kernel": "gaussian", "normalization": epan.Nearest(k=2)},
    ):
        scale = torch.full((1, 1, 5, 1), 0.5, device=device)
        scale[..., 1, :] = torch.nan
        scale[..., 3, :] = torch.inf
        tensors = [t.clone().requires_grad_() for t in (q, k, v)]
        out = fused(*tensors, scale=scale, **options)
        assert out.isnan().any(-1)[0, 0].tolist() == [False, True, False, True, False]
        for grad in torch.autograd.grad(out, tensors, torch.ones_like(out)):
            assert bool(grad.isfinite().all())


def short_drops(fused: Attention, eager: Attention) -> None:
    case = Case(dtype=torch.float16, scale="head", q_len=12, k_len=40, batch=2, heads=2, key_heads=1)
    conformance.drops_weights(fused, case)


def hands_over(fused: Attention, eager: Attention) -> None:
    """The Gaussian in half precision is torch's own fused attention where that says the same."""
    base = Case(kernel="gaussian", dtype=torch.float16, q_len=9, k_len=9, scale=0.4)
    for changes in ({}, {"is_causal": True}, {"window": (None, -1)}, {"key_heads": 1}, {"k_len": 5}):
        case = base.but(**changes)
        with epan.ops.triton.short("never"):
            conformance.keeps_dtype_and_shape(fused, case)
            conformance.gradients_agree_with_formula(fused, case, eager)


def refuses(fused: Attention, eager: Attention) -> None:
    """What has no schedule says so, and nothing falls back; a second derivative too."""
    x = _draw(1, 1, 4, 8)
    for options in (
        {"kernel": epan.Polynomial(order=torch.tensor(2.0, device=x.device))},
        {"kernel": epan.Uniform(radius=1.0), "normalization": "fixed", "similarity": "euclidean"},
    ):
        epan.attention(x, x, x, backend="auto", **options)
        with pytest.raises(UnsupportedError, match="backend='triton' with"):
            epan.attention(x, x, x, backend="triton", **options)
    for y in (x.double(), _draw(1, 1, 4, 264)):
        with pytest.raises(UnsupportedError, match="backend='triton' with"):
            epan.attention(y, y, y, backend="triton")
    with pytest.raises(UnsupportedError, match="vmap"):
        torch.func.vmap(lambda y: epan.attention(y, y, y, backend="triton"))(x[None].detach())
    (first,) = torch.autograd.grad(epan.attention(x, x, x, backend="triton").sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivative"):
        torch.autograd.grad(first.sum(), x)


def _draw(*shape: int, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device_of("triton")).requires_grad_(grad)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rule: str | epan.normalizations.Normalization = "adaptive",
    kernel: str = "biweight",
    euclidean: bool = False,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    offsets: Tensor | None = None,
    scale: Tensor | None = None,
    dropout_p: float = 0.0,
    right: int | None = None,
    with_stats: bool = True,
    short: bool = False,
) -> tuple[Any, ...]:
    """The arguments of ``epan::triton``."""
    plain = scale is None
    if scale is None:
        scale = torch.full((), 0.5, device=q.device).expand(q.shape[:3])
    numbers = [kernels.get(kernel).handle, normalizations.get(rule).handle, int(euclidean), int(plain), 0, int(short)]
    seed = torch.tensor(3, device=q.device) if dropout_p else None
    return (
        q, k, v, scale, mask, slopes, offsets, offsets, seed, numbers, None, right, dropout_p, with_stats,
    )  # fmt: skip


def _operator_arguments() -> dict[str, tuple[Any, ...]]:
    shared = (_draw(1, 2, 5, 4), _draw(1, 1, 7, 4), _draw(1, 1, 7, 3))
    device = device_of("triton")
    return {
        "plain": _arguments(*shared),
        "everything": _arguments(
            *shared,
            scale=_draw(1, 2, 5).detach().abs().requires_grad_(),
            mask=_draw(1, 1, 5, 7),
            slopes=_draw(1, 2, 1, 1),
            dropout_p=0.3,
            with_stats=False,
        ),
        "packed": _arguments(
            *(_draw(1, 2, 6, 4) for _ in range(3)),
            offsets=torch.tensor([0, 2, 6], dtype=torch.int32, device=device),
            right=0,
        ),
        "fixed": _arguments(*shared, rule="fixed", euclidean=True, kernel="triweight"),
        "nearest": _arguments(*shared, rule=epan.Nearest(k=2), kernel="gaussian"),
        "short": _arguments(
            *(t.detach().half().requires_grad_() for t in shared),
            scale=_draw(1, 2, 5).detach().abs().requires_grad_(),
            slopes=_draw(1, 2, 1, 1),
            dropout_p=0.3,
            with_stats=False,
            short=True,
        ),
        "nothing": _arguments(_draw(1, 2, 0, 4), _draw(1, 2, 0, 4), _draw(1, 2, 0, 3)),
    }


OPERATORS = ("plain", "everything", "packed", "fixed", "nearest", "short", "nothing")


def registers(name: str, fused: Attention, eager: Attention) -> None:
    """torch's own checks of both operators: schema, autograd, fake tensors, dynamic shapes."""
    importlib.import_module("epan.ops.triton.operators")
    # Lists have entries that nobody writes; filled, they compare equal.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    inputs = _operator_arguments()[name]
    passed = dict.fromkeys(
        ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"), "SUCCESS"
    )
    assert opcheck(torch.ops.epan.triton, inputs) == passed
    out, *rest = torch.ops.epan.triton(*inputs)
    wanted = [int(isinstance(t, Tensor) and t.requires_grad) for t in inputs[:6]]
    detached = [t.detach() if isinstance(t, Tensor) else t for t in inputs[:9]]
    state = [t.detach() for t in rest[4:]]
    grad = torch.ones_like(out.detach())
    backward = (grad, *detached, out.detach(), state, *inputs[9:13], wanted)
    assert opcheck(torch.ops.epan.triton_backward, backward) == passed
    torch.use_deterministic_algorithms(before)


def compiles(fused: Attention, eager: Attention) -> None:
    """One graph for all lengths, with everything that has a gradient; the same bits as uncompiled."""
    made: list[int] = []
    graphs = 0

    def count(module: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        assert any("epan.triton" in str(node.target) for node in module.graph.nodes)
        return aot(module, example)

    from torch._dynamo.backends.debugging import aot_eager as aot

    def call(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, mask: Tensor, slopes: Tensor) -> Any:
        given = {"scale": scale, "alibi_slopes": slopes, "is_causal": True, "enable_gqa": True, "return_stats": True}
        return epan.attention(q, k, v, mask, backend="triton", **given)

    compiled = torch.compile(call, fullgraph=True, backend=count, dynamic=True)
    for length in (7, 12):
        shapes = ((1, 2, length, 4), (1, 1, length, 4), (1, 1, length, 3), (2, 1, 1), (length, length), (2,))
        ours, theirs = ([_draw(*shape) for shape in shapes] for _ in range(2))
        (out, stats), (expected, others) = compiled(*ours), call(*theirs)
        tolerance.assert_equal_bits(out.detach(), expected.detach(), "out")
        for name, field, other in zip(stats._fields, stats, others, strict=True):
            tolerance.assert_equal_bits(field, other, name)
            assert not field.requires_grad, f"{name} is not detached"
        grads = torch.autograd.grad(out.sin().sum(), ours)
        for number, pair in enumerate(zip(grads, torch.autograd.grad(expected.sin().sum(), theirs), strict=True)):
            tolerance.assert_equal_bits(*pair, f"gradient of input {number}")
        made.append(graphs)
    assert len(set(made)) == 1, f"another graph for another length: {made}"


def _items() -> dict[str, Callable[[Attention, Attention], None]]:
    items: dict[str, Callable[[Attention, Attention], None]] = {}
    for kind in KINDS:
        items[f"{kind}-agrees"] = functools.partial(agrees, kind)
    for kind in SCHEDULES:
        for check in (leaves_out_tiles, moves_nothing_alone, tells, sees):
            items[f"{kind}-{check.__name__}"] = functools.partial(check, kind)
    # One of each way to the threshold: the others go the same.
    for kind in ("biweight", "fixed", "nearest-gaussian"):
        items[f"{kind}-contains"] = functools.partial(contains, kind)
    # One of each set of kernels: the others drop by the same function.
    for kind in ("biweight", "nearest-gaussian"):
        items[f"{kind}-drops"] = functools.partial(drops, kind)
    for name in OPERATORS:
        items[f"operators-{name}"] = functools.partial(registers, name)
    for kind in KINDS:
        items[f"{kind}-short"] = functools.partial(short, kind)
    for function in (short_drops, short_ties, short_compiles, short_breaks, hands_over, refuses, compiles):
        items[function.__name__] = function
    return items


ITEMS = _items()


def _groups() -> dict[str, list[str]]:
    """Items that one process runs."""
    groups: dict[str, list[str]] = {}
    for name in ITEMS:
        kind, _, _ = name.rpartition("-")
        if name.endswith("-short"):
            group = "short"
        elif kind in SCHEDULES or kind == "operators":
            group = kind
        else:
            group = "other kernels" if kind else "surroundings"
        groups.setdefault(group, []).append(name)
    return groups


GROUPS = _groups()
