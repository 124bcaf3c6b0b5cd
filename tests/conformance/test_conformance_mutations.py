"""The checks are checked: each accepts the definition and rejects broken twins of it, for the reason that is meant.

A twin is ``epan.attention``, ``attention_varlen`` or ``attention_weights`` on the eager backend with one realistic
mistake around it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, pad

import epan
from epan import Fixed, Nearest, Polynomial
from epan.testing import conformance
from epan.testing.conformance import PackedCase, WeightsCase
from epan.testing.execution import backend, varlen_backend
from epan.testing.inputs import Case

#: The arguments of a call by name.
Call = dict[str, Any]
Function = Callable[..., Any]
#: Makes a broken twin of the right function.
Mutation = Callable[[Function], Function]

ATTENTION, VARLEN, WEIGHTS = backend("eager"), varlen_backend("eager"), epan.attention_weights
CHECKS: dict[str, tuple[Function, Function]] = {
    name: (check, right)
    for right, catalogue in (
        (ATTENTION, conformance.ATTENTION_CHECKS),
        (VARLEN, conformance.VARLEN_CHECKS),
        (WEIGHTS, conformance.WEIGHTS_CHECKS),
    )
    for name, check in catalogue.items()
}


# Ways to break a function: its arguments, output, statistics, gradient, or the weights on their way to the values.


def arguments(right: Function, args: tuple[Any, ...], options: Call) -> Call:
    return dict(inspect.signature(right).bind(*args, **options).arguments)


def given(change: Callable[[Call], Call]) -> Mutation:
    """The right function of other arguments."""

    def mutation(right: Function) -> Function:
        def twin(*args: Any, **options: Any) -> Any:
            call = arguments(right, args, options)
            return right(**{**call, **change(call)})

        return functools.update_wrapper(twin, right)

    return mutation


def returns(change: Callable[[Tensor, Call], Tensor]) -> Mutation:
    """The right function with another output."""

    def mutation(right: Function) -> Function:
        def twin(*args: Any, **options: Any) -> Any:
            call, result = arguments(right, args, options), right(*args, **options)
            return (change(result[0], call), result[1]) if call.get("return_stats") else change(result, call)

        return functools.update_wrapper(twin, right)

    return mutation


def states(field: str, change: Callable[[Tensor, Call], Tensor]) -> Mutation:
    """The right function with another statistic."""

    def mutation(right: Function) -> Function:
        def twin(*args: Any, **options: Any) -> Any:
            call, result = arguments(right, args, options), right(*args, **options)
            if not call.get("return_stats"):
                return result
            return result[0], result[1]._replace(**{field: change(getattr(result[1], field), call)})

        return functools.update_wrapper(twin, right)

    return mutation


def learns(other: Mutation) -> Mutation:
    """The right output with the gradient of another twin."""

    def mutation(right: Function) -> Function:
        def twin(*args: Any, **options: Any) -> Any:
            wrong = other(right)(*args, **options)
            return right(*args, **options).detach() + (wrong - wrong.detach())

        return twin

    return mutation


def flows(name: str, change: Callable[[Tensor, Tensor], Tensor]) -> Mutation:
    """The right function, but ``change`` of gradient and input flows back into one input."""

    def hooked(call: Call) -> Call:
        tensor = call[name]
        if not tensor.requires_grad:
            return {}
        copy = tensor.clone()
        copy.register_hook(lambda grad: change(grad, tensor.detach()))
        return {name: copy}

    return given(hooked)


def both(first: Mutation, second: Mutation) -> Mutation:
    return lambda right: second(first(right))


def instead(function: Function) -> Mutation:
    return lambda right: function


def where(mode: str, mutation: Mutation) -> Mutation:
    """A mistake of one path only: "recorded" with gradients, "plain" without, "flat" of three dimensions."""

    def both_paths(right: Function) -> Function:
        def twin(*args: Any, **options: Any) -> Any:
            first = args[0]
            is_here = {"recorded": first.requires_grad, "plain": not first.requires_grad, "flat": first.dim() == 3}[
                mode
            ]
            return (mutation(right) if is_here else right)(*args, **options)

        return functools.update_wrapper(twin, right)

    return both_paths


def remembers(change: Callable[[list[Call]], Call]) -> Mutation:
    """A mistake that depends on all calls so far, the present one last."""

    def mutation(right: Function) -> Function:
        calls: list[Call] = []

        def note(call: Call) -> Call:
            calls.append(call)
            return change(calls)

        return given(note)(right)

    return mutation


def weighs(change: Callable[[Tensor, Call], Tensor]) -> Mutation:
    """Output from the right weights, changed before they meet the values."""

    def twin(*args: Any, **options: Any) -> Any:
        call = arguments(ATTENTION, args, options)
        key, value = call["key"], call["value"]
        eye = torch.eye(key.shape[2], dtype=key.dtype).expand(*key.shape[:2], -1, -1)
        weights = ATTENTION(**{**call, "value": eye, "dropout_p": 0.0})
        return change(weights, call) @ value.repeat_interleave(weights.shape[1] // value.shape[1], 1)

    return instead(twin)


def drops(keep: Callable[[Tensor, float], Tensor | float]) -> Mutation:
    """Dropout by another rule for what to keep, rescaled rightly."""

    def change(weights: Tensor, call: Call) -> Tensor:
        p = call.get("dropout_p", 0.0)
        return weights * keep(weights, p) / (1.0 - p if p < 1.0 else 1.0) if p else weights

    return weighs(change)


def written(weigh: Callable[[Tensor, Tensor], Tensor]) -> Mutation:
    """Attention of dot products written out: ``weigh`` makes weights of scores and of who may see whom."""

    def twin(*args: Any, **options: Any) -> Any:
        call = arguments(ATTENTION, args, options)
        query, key, mask = call["query"], call["key"], call.get("attn_mask")
        beta = query.shape[-1] ** -0.5 if call.get("scale") is None else call["scale"]
        z = (query @ key.transpose(-2, -1)).to(torch.promote_types(query.dtype, torch.float32)) * beta
        allowed = torch.ones_like(z, dtype=torch.bool)
        if call.get("is_causal"):
            allowed = allowed.tril()
        if mask is not None and mask.dtype == torch.bool:
            allowed = allowed & mask
        elif mask is not None:
            z = z + mask
        return weigh(z, allowed).to(query.dtype) @ call["value"]

    return instead(twin)


# Mistakes that take more than an expression.


def entmax(z: Tensor, steps: int) -> Tensor:
    """1.5-entmax by bisection; the threshold is a constant to autograd."""
    x = z.detach() / 2
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(steps):
        middle = (low + high) / 2
        heavy = (x - middle).relu().square().sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return (z / 2 - (low + high) / 2).relu().square()


def share(value: Tensor) -> Tensor:
    return value / value.sum(-1, keepdim=True)


def relumax(z: Tensor) -> Tensor:
    """The maximum is a constant to autograd."""
    return share((1 + z - z.detach().amax(-1, keepdim=True)).relu())


def first_k(z: Tensor, k: int) -> Tensor:
    """Top-k that leaves it to torch.topk which of the tied keys get a place."""
    return torch.zeros_like(z).scatter(-1, z.topk(k, dim=-1).indices, 1.0 / k)


def sentinel(call: Call) -> Call:
    """−10⁴ in place of a mask."""
    name, like = ("attn_mask", "query") if "attn_mask" in call else ("mask", "scores")
    return {name: torch.where(call[name], 0.0, -1e4).to(call[like].dtype)}


def repeated(call: Call) -> Call:
    """Key heads for the query heads in the order 0 1 0 1, not 0 0 1 1."""
    times = call["query"].shape[1] // call["key"].shape[1]
    return {name: torch.cat([call[name]] * times, 1) for name in ("key", "value")}


def one_head_learns(call: Call) -> Call:
    """Of the query heads that share a key head only the first teaches it."""
    key = torch.stack([call["key"], call["key"].detach()], 2).flatten(1, 2)
    return {"key": key, "value": call["value"].repeat_interleave(2, 1)}


def lower_right(call: Call) -> Call:
    left, right = call["window"]
    return {"window": (left, right + call["key"].shape[-2] - call["query"].shape[-2])}


def union(call: Call) -> Call:
    inside = torch.ones(call["query"].shape[-2], call["key"].shape[-2], dtype=torch.bool).tril(call["window"][1])
    return {"attn_mask": call["attn_mask"] | inside, "window": None}


def memory_order(call: Call) -> Call:
    """Strides ignored: numbers in the order in which they lie in memory."""
    return {"query": call["query"].transpose(1, 2).reshape(call["query"].shape)}


def sequence_first(call: Call) -> Call:
    return {name: call[name].transpose(0, 1) for name in ("query", "key", "value")}


def dead(call: Call) -> Tensor:
    return ~call["attn_mask" if "attn_mask" in call else "mask"].any(-1, keepdim=True)


def scaled_in_place(call: Call) -> Call:
    with torch.no_grad():
        call["query"].mul_(0.5)
    return {"query": 2 * call["query"]}


def joined_in_place(call: Call) -> Call:
    call["attn_mask"].logical_and_(torch.ones_like(call["attn_mask"]).tril())
    return {"is_causal": False}


def quantised(*calls: Call) -> Call:
    """Keys on a grid for whose width the largest number of all decides."""
    step = max(float(call["key"].detach().abs().max()) for call in calls) / 2**20
    key = calls[-1]["key"]
    return {"key": key + ((key / step).round() * step - key).detach()}


def finite(call: Call) -> Call:
    return {name: call[name].nan_to_num(0.0, 0.0, 0.0) for name in ("query", "key", "value")}


def saturated(call: Call) -> Call:
    return {name: call[name].nan_to_num(math.nan, 1e4, -1e4) for name in ("query", "key", "value")}


def judged_by_the_first_number(call: Call) -> Call:
    good = {name: torch.isfinite(call[name][..., :1]) for name in ("query", "key", "value")}
    return {name: torch.where(good[name], finite(call)[name], math.nan) for name in good}


def bad_in_every_head(call: Call) -> Call:
    good = torch.isfinite(call["key"]).all(-1, keepdim=True).all(1, keepdim=True)
    return {"key": torch.where(good, call["key"], math.nan)}


def bad_column(out: Tensor, call: Call) -> Tensor:
    """A value that is not finite shows in its own column only."""
    bad = (~torch.isfinite(call["value"])).to(out.dtype)
    seen = call["attn_mask"].expand(*out.shape[:3], bad.shape[2]).to(out.dtype) @ bad > 0
    return torch.where(seen, math.nan, out)


def reseeded(seed: int) -> Call:
    torch.manual_seed(seed)
    return {}


def one_pack(*args: Any, **options: Any) -> Any:
    """Positions that run on from one packed sequence to the next."""
    call = arguments(VARLEN, args, options)
    cu_q, cu_k, _, _ = (call.pop(name) for name in ("cu_seq_q", "cu_seq_k", "max_q", "max_k"))
    dense = {name: call.pop(name).transpose(0, 1).unsqueeze(0) for name in ("query", "key", "value")}
    rows, columns = (torch.repeat_interleave(torch.arange(len(cu) - 1), cu.diff()) for cu in (cu_q, cu_k))
    out, stats = ATTENTION(**dense, **call, attn_mask=rows[:, None] == columns, enable_gqa=True)
    return out[0].transpose(0, 1), epan.Stats(*(field[0].transpose(0, 1) for field in stats[:3]))


def to_the_end(offsets: Callable[[Call], Tensor]) -> Mutation:
    """Packed sequences of other offsets, the last one up to the last token."""

    def change(call: Call) -> Call:
        total = len(call["query"])
        cu = torch.cat([offsets(call), torch.tensor([total])])
        return {"cu_seq_q": cu, "cu_seq_k": cu, "max_q": total, "max_k": total}

    return given(change)


def masked_by_product(scores: Tensor, **options: Any) -> Tensor:
    return share(WEIGHTS(scores, **{**options, "mask": None}) * options["mask"])


def power_in_float32(scores: Tensor, *, kernel: Polynomial, **options: Any) -> Tensor:
    x = (scores - scores.amax(-1, keepdim=True)).float()
    return share((1 + x / kernel.order).relu() ** kernel.order).to(scores.dtype)


def detached(name: str) -> Mutation:
    return given(lambda c: {name: c[name].detach()})


# Mistakes that several checks have to see.
SHIFTED = given(lambda c: {"is_causal": False, "window": (None, 1)})
NARROW = given(lambda c: {"window": (c["window"][0] - 1, c["window"][1])})
LOWER_RIGHT, INTERLEAVED, SENTINEL = given(lower_right), given(repeated), given(sentinel)
NO_MASK = given(lambda c: {"attn_mask": None})
NOT_CAUSAL = given(lambda c: {"is_causal": False})
FIRST_MASK = given(lambda c: {"attn_mask": c["attn_mask"][:1]})
FIRST_HEAD_MASK = given(lambda c: {"attn_mask": c["attn_mask"][:, :1]})
SOFTMAX = given(lambda c: {"kernel": "gaussian"})
ANCHORED = given(lambda c: {"normalization": "anchored"})
FLOAT32 = returns(lambda o, c: o.float())
OFF = returns(lambda o, c: o * (1 + 1e-5))
DUST = returns(lambda o, c: o + 1e-14)
NOISE = returns(lambda o, c: o + 1e-15 * torch.randn_like(o))
NAN_IF_DEAD = returns(lambda o, c: torch.where(dead(c), math.nan, o))
NAN_SPREADS = returns(lambda o, c: torch.where(torch.isnan(o).any(), math.nan, o))
LATER_KEYS = given(lambda c: {"scores": c["scores"] + 1e-9 * torch.arange(c["scores"].shape[-1])})

SINGLE, HALF = torch.float32, torch.bfloat16
CAUSAL = Case(is_causal=True, q_len=9)
GROUPED = Case(heads=4, key_heads=2)
SOME_ROWS = Case(mask="some_rows")
POISONED = Case(mask="padding", scale="head", q_len=4, k_len=6, dtype=SINGLE)
TIED = Case(kernel="uniform", normalization=Nearest(k=3), content="ties")
SPHERE = Case(kernel="epanechnikov", normalization="fixed", similarity="euclidean", k_len=30, spread=0.6)
STATED = Case(mask="some_rows", scale="head", spread=1.3)
DROPPING = Case(scale="head", q_len=12, k_len=20, heads=4, key_heads=2, dtype=SINGLE, spread=0.3)
PACK = Case(heads=4, key_heads=2, value_size=5)
PACKED, TAILED = PackedCase(base=PACK), PackedCase((5, 2), tail=3, base=PACK)
ROWS = WeightsCase()
CONFINED = WeightsCase(length=9, dtype=SINGLE)
TIED_ROWS = WeightsCase(kernel="uniform", normalization=Nearest(k=5), scores="ties")

#: Check, case and name of the twin: how it is broken, and words that the complaint must contain.
TWINS: dict[str, dict[Any, dict[str, tuple[Mutation, str]]]] = {
    "agrees_with_formula": {
        Case(): {
            "threshold of eight steps": (written(lambda z, a: entmax(z, 8)), "out: error"),
            "threshold of thirty steps": (written(lambda z, a: entmax(z, 30)), "out: error"),
        },
        Case(scale=0.5): {"scale applied twice": (given(lambda c: {"scale": c["scale"] ** 2}), "out: error")},
        Case(scale="query"): {"other queries' scales": (given(lambda c: {"scale": c["scale"].flip(2)}), "out: error")},
        Case(mask="float"): {
            "bias ignored": (NO_MASK, "out: error"),
            "bias scaled": (given(lambda c: {"attn_mask": c["attn_mask"] * 8**-0.5}), "out: error"),
        },
        Case(alibi="head"): {"ALiBi's sign": (given(lambda c: {"alibi_slopes": -c["alibi_slopes"]}), "out: error")},
        GROUPED: {"heads of a group interleaved": (INTERLEAVED, "out: error")},
        CAUSAL: {"causal mask shifted by one": (SHIFTED, "out: error")},
        Case(window=(3, 2)): {
            "window off by one": (NARROW, "out: error"),
            "window exchanged": (given(lambda c: {"window": c["window"][::-1]}), "out: error"),
        },
        Case(window=(None, 0)): {"window from the lower right": (LOWER_RIGHT, "out: error")},
        SOME_ROWS: {"sentinel in place of a mask": (SENTINEL, "out: error")},
        Case(mask="padding"): {"mask of the first entry for all": (FIRST_MASK, "out: error")},
        Case(similarity="euclidean"): {"dot product": (given(lambda c: {"similarity": "dot"}), "out: error")},
        Case(layout="heads_last"): {"strides ignored": (given(memory_order), "out: error")},
        Case(dtype=SINGLE): {
            "row sums off by 1e-5": (OFF, "out: error"),
            "result in bfloat16": (returns(lambda o, c: o.bfloat16()), "out: error"),
        },
        Case(dtype=HALF, spread=4.0): {"scores in bfloat16": (written(lambda z, a: WEIGHTS(z)), "out: error")},
        TIED.but(scale=0.25): {"ties broken by index": (written(lambda z, a: first_k(z, 3)), "out: error")},
    },
    "gradients_agree_with_formula": {
        Case(): {
            "threshold a constant": (written(lambda z, a: entmax(z, 60)), "gradient of query"),
            "gradient of softmax": (learns(SOFTMAX), "gradient of query"),
            "recorded output differs": (where("recorded", returns(lambda o, c: o + 1e-9)), "out of a recorded call"),
        },
        Case(scale="head"): {"scale detached": (detached("scale"), "gradient of scale")},
        Case(scale=0.7): {"scale left out": (flows("query", lambda g, q: g / 0.7), "gradient of query")},
        Case(mask="float"): {"bias detached": (detached("attn_mask"), "gradient of attn_mask")},
        Case(alibi="head"): {"slopes detached": (detached("alibi_slopes"), "gradient of alibi_slopes")},
        Case(order=(1.5, 24.0)): {
            "order detached": (given(lambda c: {"kernel": Polynomial(c["kernel"].order.detach())}), "gradient of order")
        },
        Case(kernel="epanechnikov", normalization="anchored"): {
            "maximum a constant": (written(lambda z, a: relumax(z)), "gradient of query")
        },
        GROUPED: {"keys learn from one head of the group": (given(one_head_learns), "gradient of key")},
    },
    "keeps_dtype_and_shape": {
        Case(): {
            "heads last": (returns(lambda o, c: o.transpose(1, 2)), "of shape"),
            "query scaled in place": (given(scaled_in_place), "query after the call"),
        },
        Case(dtype=HALF): {
            "float32 for bfloat16": (FLOAT32, "output of torch.float32"),
            "float32 where recorded": (where("recorded", FLOAT32), "output of a recorded call of torch.float32"),
        },
        Case(size=3, value_size=5): {"size of the queries": (returns(lambda o, c: o[..., :3]), "of shape")},
        CAUSAL.but(mask="bool"): {"mask joined in place": (given(joined_in_place), "attn_mask after the call")},
    },
    "sees_exactly_the_allowed_keys": {
        Case(): {
            "last key forgotten": (
                given(lambda c: {name: c[name][:, :, :8] for name in ("key", "value")}),
                "query 0 does not see key 8 in the output",
            )
        },
        CAUSAL: {"causal mask shifted by one": (SHIFTED, "query 0 sees key 1")},
        Case(window=(2, 1)): {"window off by one": (NARROW, "query 2 does not see key 0")},
        Case(window=(None, 0)): {"window from the lower right": (LOWER_RIGHT, "query 0 sees key 1")},
        Case(window=(None, 0), mask="bool"): {"union of the masks": (given(union), "sees key")},
        Case(mask="bool_full"): {
            "mask of the first head for all": (FIRST_HEAD_MASK, "key 2 in the output (batch 0, head 1"),
            "backward pass without mask": (learns(NO_MASK), "in the gradient of the values"),
        },
        SOME_ROWS: {"sentinel in place of a mask": (SENTINEL, "query 1 sees key 0")},
        GROUPED.but(mask="bool_full"): {"heads of a group interleaved": (INTERLEAVED, "in the gradient of the values")},
    },
    "hidden_keys_leave_no_trace": {
        CAUSAL: {
            "causal mask shifted by one": (SHIFTED, "outputs that may not see key"),
            "grid of the largest key": (given(quantised), "outputs that may not see key"),
            "masked after the threshold": (written(lambda z, a: WEIGHTS(z) * a), "outputs that may not see key"),
            "backward pass not causal": (learns(NOT_CAUSAL), "gradients of queries that may not see key"),
            "not causal where not recorded": (where("plain", NOT_CAUSAL), "outputs without record"),
        },
        CAUSAL.but(kernel="gaussian"): {
            "hidden keys 30 lower": (
                given(lambda c: {"attn_mask": -30.0 * torch.ones(9, 9).triu(1), "is_causal": False}),
                "outputs that may not see key",
            ),
            "maximum of hidden keys too": (
                written(lambda z, a: share((z - z.detach().amax(-1, keepdim=True)).exp() * a)),
                "outputs that may not see key",
            ),
        },
    },
    "contains_nonfinite": {
        POISONED: {
            "0 · NaN in the product": (returns(lambda o, c: o + (0 * c["value"]).sum(-2, True)), "queries became NaN"),
            "NaN made zero": (given(finite), "queries became NaN"),
            "infinity saturates": (given(saturated), "one number of key 0 = inf"),
            "NaN makes everything NaN": (NAN_SPREADS, "queries became NaN"),
            "first number looked at only": (given(judged_by_the_first_number), "one number of key"),
            "bad in one head, bad in all": (given(bad_in_every_head), "one number of key"),
            "a bad value in its column": (
                both(given(lambda c: {"value": finite(c)["value"]}), returns(bad_column)),
                "is NaN in part only",
            ),
            "other bits once a key is bad": (
                returns(lambda o, c: o + 1e-6 * ~torch.isfinite(c["key"]).all()),
                "outputs of the others",
            ),
            "other gradients once a value is bad": (
                flows("value", lambda g, v: g + 1e-6 * ~torch.isfinite(v).all()),
                "which no query sees",
            ),
            "NaN reaches a gradient": (flows("value", lambda g, v: g + 0 * v), "gradient of value is not finite"),
            "NaN made zero where not recorded": (where("plain", given(finite)), "without record"),
        },
        POISONED.but(mask="bool_full"): {
            "0 · NaN backward": (flows("query", lambda g, q: g + 0 * q.sum(-2, True)), "query gradients of the others"),
        },
    },
    "fully_masked_rows_are_zero": {
        SOME_ROWS: {
            "sentinel in place of a mask": (SENTINEL, "the output of a fully masked row"),
            "sentinel where not recorded": (where("plain", SENTINEL), "the output of a fully masked row"),
            "0 / 0": (NAN_IF_DEAD, "the output of a fully masked row"),
            "sentinel in the backward pass": (learns(SENTINEL), "a fully masked query has a gradient"),
            "mean of the values in the backward pass": (
                learns(returns(lambda o, c: torch.where(dead(c), c["value"].mean(-2, keepdim=True), o))),
                "fully masked rows send a gradient to value",
            ),
            "NaN hidden after the softmax": (
                written(lambda z, a: torch.where(a.any(-1, True), (z + a.log()).softmax(-1), 0.0)),
                "is not finite",
            ),
        }
    },
    "handles_nothing": {
        Case(value_size=5): {
            "mean of no keys": (returns(lambda o, c: o / c["key"].shape[2]), "the output is not zero"),
            "zeros like the queries": (
                returns(lambda o, c: o if c["key"].shape[2] else torch.zeros_like(c["query"])),
                "expected (2, 2, 7, 5)",
            ),
            "queries learn without keys": (
                returns(lambda o, c: o + (c["query"] - c["query"].detach()).sum(-1, keepdim=True)),
                "gradient of query is not zero",
            ),
            "partition 1": (states("partition", lambda s, c: s + 1), "partition of a row without keys"),
            "threshold −∞": (states("threshold", lambda s, c: -s), "threshold of a row without keys"),
            "statistics of one head": (states("support_size", lambda s, c: s[:, :1]), "support_size has shape"),
        }
    },
    "ignores_the_order_of_keys": {
        Case(): {
            "stale cache of keys": (remembers(lambda calls: {"key": calls[0]["key"]}), "keys permuted by"),
            "later keys preferred": (given(lambda c: {"attn_mask": 1e-9 * torch.arange(9.0)}), "keys as drawn"),
        },
        TIED: {"ties broken by index": (written(lambda z, a: first_k(z, 3)), "keys as drawn")},
        TIED.but(content="constant"): {"ties broken by index": (written(lambda z, a: first_k(z, 3)), "keys as drawn")},
        SPHERE.but(content="ties", scale=32.0, spread=1.0): {
            "first of tied nearest keys": (weighs(lambda w, c: first_k(w, 1)), "keys as drawn")
        },
    },
    "answers_a_constant_shift": {
        Case(): {
            "scores clamped at ten": (written(lambda z, a: WEIGHTS(z.clamp(max=10.0))), "shifted by 20"),
            "added to the first key": (given(lambda c: {"attn_mask": pad(c["attn_mask"], (0, 8))}), "shifted by -3"),
        },
        Case(kernel="gaussian"): {
            "partition + 1e-6": (written(lambda z, a: z.exp() / (z.exp().sum(-1, True) + 1e-6)), "shifted by -3")
        },
        SPHERE: {
            "anchored for fixed": (ANCHORED, "shifted by 0.75"),
            "shift ignored": (NO_MASK, "shifted by 0.75"),
        },
    },
    "repeats_itself": {
        Case(): {
            "noise": (NOISE, "out, second time"),
            "noise where not recorded": (where("plain", NOISE), "out without record, second time"),
            "noise in a gradient": (
                flows("key", lambda g, k: g + 1e-15 * torch.randn_like(g)),
                "gradient of key, second",
            ),
            "calls counted": (remembers(lambda calls: {"scale": 0.3 + 1e-9 * len(calls)}), "out, second time"),
            "range of earlier calls": (remembers(lambda calls: quantised(*calls)), "second time"),
            "range of the whole batch": (given(quantised), "alone: error"),
            "gradient of the whole batch": (
                flows("value", lambda g, v: g + 1e-6 * g.mean()),
                "of value, batch entry 0 alone",
            ),
        }
    },
    "takes_three_dimensions": {
        Case(q_len=9): {
            "heads kept": (where("flat", returns(lambda o, c: o.unsqueeze(1))), "output of three dimensions"),
            "heads kept in the statistics": (
                where("flat", states("partition", lambda s, c: s.unsqueeze(1))),
                "partition of three dimensions",
            ),
            "sequence first": (
                where("flat", both(given(sequence_first), returns(lambda o, c: o.transpose(0, 1)))),
                "output of three dimensions",
            ),
        },
        Case(mask="bool_full"): {"mask of the first entry": (where("flat", FIRST_MASK), "output of three dimensions")},
        CAUSAL: {"causal with heads only": (where("flat", NOT_CAUSAL), "output of three dimensions")},
    },
    "reports_statistics": {
        STATED: {
            "threshold τ, not nτ": (states("threshold", lambda s, c: s / 2), "threshold: error"),
            "threshold of masked rows finite": (
                states("threshold", lambda s, c: s.clamp(max=50.0)),
                "an infinite entry",
            ),
            "threshold off where recorded": (
                where("recorded", states("threshold", lambda s, c: s + 1e-9)),
                "recorded threshold: error",
            ),
            "partition at the maximum": (
                states("partition", lambda s, c: ANCHORED(ATTENTION)(**c)[1].partition),
                "partition: error",
            ),
            "partition of masked rows 1e-14": (
                states("partition", lambda s, c: s + 1e-14),
                "partition of a fully masked row is not 0",
            ),
            "partition in the graph": (
                states("partition", lambda s, c: s + 0 * c["query"].sum(-1)),
                "partition is not detached",
            ),
            "keys without weight counted": (
                states("support_size", lambda s, c: c["attn_mask"].sum(-1)),
                "support_size [",
            ),
            "one key too many": (states("support_size", lambda s, c: s + (s > 0)), "support_size ["),
            "support in floats": (states("support_size", lambda s, c: s.float()), "support_size has dtype"),
            "support per head": (states("support_size", lambda s, c: s[..., 0]), "support_size has shape"),
            "another output with statistics": (
                returns(lambda o, c: o + 1e-15 * c.get("return_stats", False)),
                "output without statistics",
            ),
            "partition after dropout": (
                states("partition", lambda s, c: s * (1 - c.get("dropout_p", 0.0))),
                "partition with dropout",
            ),
            "weight below the threshold": (DUST, "a key below the threshold has weight"),
            "small weights cut": (returns(lambda o, c: o * (o > 0.02)), "a key above the threshold has no weight"),
        },
        STATED.but(kernel="uniform", normalization=Nearest(k=3)): {
            "k-th key not counted": (states("support_size", lambda s, c: (s - 1).clamp(min=0)), "more keys have weight")
        },
        STATED.but(dtype=HALF): {
            "threshold in bfloat16": (states("threshold", lambda s, c: s.bfloat16()), "threshold has dtype")
        },
    },
    "drops_weights": {
        DROPPING: {
            "no rescaling": (drops(lambda w, p: (torch.rand_like(w) >= p) * (1 - p)), "weights with dropout: error"),
            "too few dropped": (drops(lambda w, p: torch.rand_like(w) >= p * p), "weights were dropped, p = 0.4"),
            "one mask for the batch": (drops(lambda w, p: torch.rand_like(w[:1]) >= p), "batch entries share"),
            "one mask for all heads": (drops(lambda w, p: torch.rand_like(w[:, :1]) >= p), "heads share"),
            "one mask for a group of heads": (
                drops(lambda w, p: torch.rand_like(w[:, ::2]).repeat_interleave(2, 1) >= p),
                "heads share",
            ),
            "whole keys dropped": (
                drops(lambda w, p: torch.rand_like(w[:, :, :1]) >= p),
                "of what is dropped, by chance",
            ),
            "keys dropped by twos": (
                drops(lambda w, p: torch.rand_like(w[..., ::2]).repeat_interleave(2, -1) >= p),
                "keys share",
            ),
            "dropout of the output": (
                both(given(lambda c: {"dropout_p": 0.0}), returns(lambda o, c: dropout(o, c.get("dropout_p", 0.0)))),
                "gradient of",
            ),
            "another draw in the backward pass": (learns(lambda right: right), "gradient of"),
            "always the same draw": (given(lambda c: reseeded(0)), "another seed drops the same keys"),
            "seed ignored": (remembers(lambda calls: reseeded(len(calls))), "with the same seed"),
            "p = 0 drops a little": (
                given(lambda c: {"dropout_p": max(c["dropout_p"], 0.01)} if "dropout_p" in c else {}),
                "with dropout_p=0",
            ),
            "0 / 0 at p = 1": (
                drops(lambda w, p: math.nan if p == 1 else torch.rand_like(w) >= p),
                "with dropout_p=1 is not zero",
            ),
            "dropped before the normalization": (
                given(lambda c: {"attn_mask": torch.rand(2, 4, 12, 20) >= c.get("dropout_p", 0.0), "dropout_p": 0.0}),
                "dropout gave weight to a key without",
            ),
        },
        DROPPING.but(kernel="gaussian"): {
            "dropped before the softmax": (
                given(lambda c: {"attn_mask": torch.rand(2, 4, 12, 20) >= c.get("dropout_p", 0.0), "dropout_p": 0.0}),
                "weights with dropout: error",
            )
        },
    },
    "packs_sequences": {
        PACKED: {
            "sequences bleed over": (to_the_end(lambda c: torch.tensor([0])), "out: error"),
            "heads of a group interleaved": (INTERLEAVED, "out: error"),
            "statistics of other heads": (states("threshold", lambda s, c: s.flip(1)), "threshold: error"),
            "heads first in the statistics": (states("support_size", lambda s, c: s.T), "support_size has shape"),
        },
        TAILED: {
            "tail in the last sequence": (to_the_end(lambda c: c["cu_seq_q"][:-1]), "out: error"),
            "keys counted for the tail": (states("support_size", lambda s, c: s.clamp(min=1)), "support_size ["),
            "tail not quite zero": (DUST, "a token after the last offset has an output"),
            "tail learns": (flows("value", lambda g, v: g + 1e-14), "a value after the last offset has a gradient"),
        },
        PackedCase((3, 6), (8, 2), base=PACK.but(window=(1, 2))): {
            "windows counted in the whole pack": (instead(one_pack), "out: error")
        },
        PackedCase((3, 6), (8, 2), base=PACK.but(alibi="head")): {
            "distances in the whole pack": (instead(one_pack), "out: error")
        },
        PackedCase((3, 4), (5, 6), base=PACK.but(window=(None, 0))): {
            "windows from the lower right": (given(lambda c: {"window": (None, 2)}), "out: error")
        },
        PackedCase(scale="token", base=PACK): {
            "scales of other tokens": (given(lambda c: {"scale": c["scale"].flip(0)}), "out: error")
        },
        PackedCase(scale="head", base=PACK): {"scale detached": (detached("scale"), "scale: error")},
        PackedCase(base=PACK.but(dtype=HALF)): {"float32 for bfloat16": (FLOAT32, "output of torch.float32")},
    },
    "weights_agree_with_formula": {
        ROWS: {
            "threshold of eight steps": (instead(lambda scores, **o: entmax(scores, 8)), "weights: error"),
            "threshold of thirty steps": (instead(lambda scores, **o: entmax(scores, 30)), "weights: error"),
            "order off by one": (given(lambda c: {"kernel": "triweight"}), "weights: error"),
            "weight below the threshold": (DUST, "weights: a key below the threshold has weight"),
            "recorded weights differ": (where("recorded", OFF), "recorded weights: error"),
            "in place": (given(lambda c: {"scores": c["scores"].detach().sub_(1.0)}), "scores after the call"),
        },
        WeightsCase(dtype=SINGLE): {"row sums off by 1e-5": (OFF, "weights: error")},
        WeightsCase(dtype=HALF): {"float32 for bfloat16": (FLOAT32, "weights of torch.float32")},
        WeightsCase(mask="row"): {"sentinel in place of a mask": (SENTINEL, "weights: error")},
        WeightsCase(mask="float"): {
            "mask not added": (given(lambda c: {"mask": c["mask"] > -math.inf}), "weights: error")
        },
        WeightsCase(kernel=Polynomial(5.0), normalization="anchored", length=500): {
            "small weights cut": (returns(lambda w, c: w * (w > 1e-12)), "a key above the threshold has no weight")
        },
        TIED_ROWS: {"ties broken by index": (instead(lambda scores, **o: first_k(scores, 5)), "weights: error")},
    },
    "weights_gradient_agrees_with_formula": {
        ROWS: {
            "threshold a constant": (instead(lambda scores, **o: entmax(scores, 60)), "gradient of the scores: error"),
            "gradient of softmax": (learns(SOFTMAX), "gradient of the scores: error"),
            "detached": (returns(lambda w, c: w.detach()), "gradient of the scores: error"),
            "rows drift": (flows("scores", lambda g, z: g + 5e-13), "row sums of the gradient: error"),
        },
        WeightsCase(kernel="epanechnikov", normalization="anchored"): {
            "maximum a constant": (instead(lambda scores, **o: relumax(scores)), "gradient of the scores: error")
        },
    },
    "weights_are_a_distribution": {
        ROWS: {
            "threshold of eight steps": (instead(lambda scores, **o: entmax(scores, 8)), "a row sums to 1 ±"),
            "rounded below zero": (returns(lambda w, c: w - 1e-15), "a weight is negative or NaN"),
        },
        WeightsCase(dtype=SINGLE): {"row sums off by 1e-5": (OFF, "a row sums to 1 ±")},
        WeightsCase(mask="row"): {
            "0 / 0": (NAN_IF_DEAD, "a weight is negative or NaN"),
            "sentinel in place of a mask": (SENTINEL, "a masked key has weight"),
        },
        WeightsCase("epanechnikov", Fixed(empty="zero"), "wide"): {
            "empty rows filled": (given(lambda c: {"normalization": "fixed"}), "a row without keys has weight")
        },
    },
    "weights_contain_nonfinite": {
        CONFINED: {
            "mask as a factor": (instead(masked_by_product), "weights with NaN at masked keys"),
            "mask as a factor where recorded": (
                where("recorded", instead(masked_by_product)),
                "recorded weights with NaN at masked keys",
            ),
            "NaN makes everything NaN": (NAN_SPREADS, "rows beside a NaN"),
            "NaN made zero": (
                given(lambda c: {"scores": c["scores"].nan_to_num(0.0)}),
                "does not show in every weight",
            ),
            "NaN at its own key only": (
                both(
                    given(lambda c: {"scores": c["scores"].nan_to_num(-math.inf)}),
                    returns(lambda w, c: torch.where(c["scores"].isnan() & c["mask"], math.nan, w)),
                ),
                "does not show in every weight",
            ),
            "masked keys of a NaN row NaN": (
                returns(lambda w, c: torch.where(w.isnan().any(-1, True), math.nan, w)),
                "a masked key of a NaN row has weight",
            ),
            "0 · NaN in the backward pass": (flows("scores", lambda g, z: g + 0 * z), "reaches the gradient"),
            "masked keys learn": (flows("scores", lambda g, z: g + 1e-6), "a masked key has a gradient"),
        }
    },
    "weights_follow_the_scores": {
        ROWS: {
            "absolute scores": (given(lambda c: {"scores": c["scores"].abs()}), "a larger score has a smaller weight"),
            "sign": (given(lambda c: {"scores": -c["scores"]}), "a larger score has a smaller weight"),
        },
        WeightsCase(scores="ties"): {"later keys preferred": (LATER_KEYS, "equal scores have different weights")},
        TIED_ROWS: {
            "ties broken by index": (
                instead(lambda scores, **o: first_k(scores, 5)),
                "equal scores have different weights",
            )
        },
    },
    "weights_ignore_the_order": {
        ROWS: {
            "later keys preferred": (LATER_KEYS, "weights of permuted scores: error"),
            "always the last dimension": (given(lambda c: {"dim": -1}), "weights along dimension 0: error"),
        },
        WeightsCase(scores="sorted"): {
            "rows taken as sorted": (
                given(lambda c: {"scores": c["scores"].cummin(-1).values}),
                "weights of permuted scores: error",
            )
        },
        WeightsCase(mask="bool", rows=17): {
            "mask not moved with the scores": (
                given(lambda c: {"mask": c["mask"].T if c.get("dim") == 0 else c["mask"]}),
                "weights along dimension 0: error",
            )
        },
        TIED_ROWS: {
            "ties broken by index": (
                instead(lambda scores, dim=-1, **o: first_k(scores.movedim(dim, -1), 5).movedim(-1, dim)),
                "weights of permuted scores: error",
            )
        },
    },
    "stays_within_reach": {
        ROWS: {
            "softmax": (SOFTMAX, "a key outside the anchored support has weight"),
            "every key a little": (returns(lambda w, c: 0.99 * w + 0.01 / 17), "a key outside the anchored support"),
        },
        WeightsCase(scores="constant"): {
            "halved": (returns(lambda w, c: w / 2), "the largest weight is below the mean")
        },
        WeightsCase(scores="one_huge"): {
            "not normalised": (returns(lambda w, c: 2 * w), "a weight is above 1"),
            "partition + 1e-6": (returns(lambda w, c: w / (1 + 1e-6)), "a key that is n ahead does not take all"),
        },
    },
    "approaches_softmax": {
        ROWS: {
            "order ignored": (given(lambda c: {"kernel": "biweight"}), "order 1e+06 differs from softmax by"),
            "power in float32": (instead(power_in_float32), "order 1e+06 differs from softmax by"),
            "scores times the order": (
                given(lambda c: {"scores": c["scores"] * c["kernel"].order}),
                "differs from softmax",
            ),
        },
        WeightsCase(mask="bool"): {"mask ignored": (given(lambda c: {"mask": None}), "differs from softmax")},
        WeightsCase(mask="row"): {"0 / 0": (NAN_IF_DEAD, "differs from softmax by nan")},
    },
}
REJECTED = {
    f"{check}-{name}-{case}": (check, case, mutation, says)
    for check, cases in TWINS.items()
    for case, twins in cases.items()
    for name, (mutation, says) in twins.items()
}
ACCEPTED = {f"{check}-{case}": (check, case) for check, cases in TWINS.items() for case in cases}


@pytest.mark.parametrize(("name", "case", "mutation", "says"), REJECTED.values(), ids=REJECTED)
def test_a_broken_twin_is_rejected(name: str, case: Any, mutation: Mutation, says: str) -> None:
    check, right = CHECKS[name]
    with pytest.raises(AssertionError) as caught:
        check(mutation(right), case)
    complaint = str(caught.value)
    assert says in complaint
    # A sentence about the result, not the bare expression that was false.
    assert len(complaint.split()) >= 4
    assert not complaint.startswith("assert ")


@pytest.mark.parametrize(("name", "case"), ACCEPTED.values(), ids=ACCEPTED)
def test_the_definition_is_accepted_in_the_same_case(name: str, case: Any) -> None:
    check, right = CHECKS[name]
    check(right, case)


def test_every_check_has_broken_twins() -> None:
    assert set(TWINS) == set(CHECKS)
    assert all(sum(len(twins) for twins in cases.values()) >= 2 for cases in TWINS.values())
