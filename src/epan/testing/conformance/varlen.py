"""Packed sequences: each as if it were alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import oracles, tolerance
from ..inputs import Case, Inputs
from .statistics import count_bounds, judge_statistic

__all__ = ["PackedCase", "packs_sequences"]

Varlen = Callable[..., Any]


@dataclass(frozen=True)
class PackedCase:
    """One call of ``epan.attention_varlen``.

    Attributes
    ----------
    q_lens, k_lens: lengths of the sequences; zero is a length.
    tail: tokens after the last offset, of queries and keys.
    scale: None, a float, "head" for (H, 1) or "token" for (T, H, 1).
    base: everything else; its batch, lengths, mask and scale are not used.
    """

    q_lens: tuple[int, ...] = (3, 0, 5)
    k_lens: tuple[int, ...] | None = None
    tail: int = 0
    scale: float | str | None = None
    base: Case = field(default_factory=Case)

    def __str__(self) -> str:
        keys = "same" if self.k_lens is None else ".".join(map(str, self.k_lens))
        return f"{'.'.join(map(str, self.q_lens))}-{keys}-tail={self.tail}-scale={self.scale}-{self.base}"


def _offsets(lengths: tuple[int, ...]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))


def packs_sequences(varlen: Varlen, case: PackedCase, baseline: Varlen | None = None) -> None:
    """Output, statistics and gradients are those of each sequence alone; tokens after the last offset get zero."""
    k_lens = case.q_lens if case.k_lens is None else case.k_lens
    cu_q, cu_k = _offsets(case.q_lens), _offsets(k_lens)
    total_q, total_k = cu_q[-1] + case.tail, cu_k[-1] + case.tail
    whole = case.base.but(batch=1, q_len=total_q, k_len=total_k, mask="none", scale=None).build()
    heads = case.base.heads
    scale = _scale(case, heads, cu_q[-1] + case.tail)
    leaves = {
        "query": whole.query[0].transpose(0, 1),
        "key": whole.key[0].transpose(0, 1),
        "value": whole.value[0].transpose(0, 1),
    }
    if isinstance(scale, Tensor):
        leaves["scale"] = scale
    if whole.alibi_slopes is not None:
        leaves["alibi_slopes"] = whole.alibi_slopes
    grad = whole.grad[0].transpose(0, 1)
    offsets_q = torch.tensor(cu_q, dtype=torch.int32)
    offsets_k = offsets_q if case.k_lens is None else torch.tensor(cu_k, dtype=torch.int32)
    options: dict[str, Any] = {
        "kernel": whole.kernel,
        "normalization": whole.normalization,
        "similarity": whole.similarity,
        "window": whole.window,
        "is_causal": whole.is_causal,
    }

    def call(function: Varlen) -> tuple[Tensor, Any, dict[str, Tensor]]:
        live = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        out, stats = function(
            live["query"],
            live["key"],
            live["value"],
            offsets_q,
            offsets_k,
            max(case.q_lens),
            max(k_lens),
            scale=live.get("scale", scale),
            alibi_slopes=live.get("alibi_slopes"),
            return_stats=True,
            **options,
        )
        grads = torch.autograd.grad(out, list(live.values()), grad, allow_unused=True)
        named = zip(live.items(), grads, strict=True)
        return out.detach(), stats, {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in named}

    out, stats, grads = call(varlen)
    base = None if baseline is None else call(baseline)
    expected = _alone(case, whole, scale, cu_q, cu_k, None)
    moved = [_alone(case, whole, scale, cu_q, cu_k, seed) for seed in (1, 2)]
    assert out.dtype == case.base.dtype, f"output of {out.dtype} for values of {case.base.dtype}"
    for name in ("out", *leaves):
        is_out = name == "out"
        actual = out if is_out else grads[name]
        width = tolerance.band(expected[name], [other[name] for other in moved], actual.dtype)
        yardstick = None if base is None else (base[0] if is_out else base[2][name])
        kind = "output" if is_out else "gradient"
        tolerance.assert_within(actual, expected[name], yardstick, kind=kind, band=width, label=name)
    for name in ("threshold", "partition"):
        others = [other[name] for other in moved]
        yardstick = None if base is None else getattr(base[1], name)
        judge_statistic(name, getattr(stats, name), expected[name], others, whole.normalization.name, yardstick)
    support, sure, possible = stats.support_size, expected["sure"], expected["possible"]
    assert support.shape == sure.shape, f"support_size has shape {tuple(support.shape)}"
    assert bool(((support >= sure) & (support <= possible)).all()), (
        f"support_size {support.flatten().tolist()}, at least {sure.flatten().tolist()}"
    )
    if case.tail:
        assert bool((out[cu_q[-1] :] == 0).all()), "a token after the last offset has an output"
        for name, end in (("query", cu_q[-1]), ("key", cu_k[-1]), ("value", cu_k[-1])):
            assert bool((grads[name][end:] == 0).all()), f"a {name} after the last offset has a gradient"


def _scale(case: PackedCase, heads: int, tokens: int) -> float | Tensor | None:
    if not isinstance(case.scale, str):
        return case.scale
    shape = {"head": (heads, 1), "token": (tokens, heads, 1)}[case.scale]
    drawn = 0.3 + 0.4 * torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn.to(tolerance.working_dtype(case.base.dtype))


def _alone(
    case: PackedCase, whole: Inputs, scale: float | Tensor | None, cu_q: list[int], cu_k: list[int], seed: int | None
) -> dict[str, Tensor]:
    """Output, statistics and gradients sequence by sequence; moved by rounding if there is a seed."""
    tokens_q, tokens_k = whole.query.shape[2], whole.key.shape[2]
    heads, key_heads = whole.query.shape[1], whole.key.shape[1]
    rows = (tokens_q, heads)
    result = {
        "threshold": torch.full(rows, torch.inf, dtype=torch.float64),
        "partition": torch.zeros(rows, dtype=torch.float64),
        "sure": torch.zeros(rows, dtype=torch.int64),
        "possible": torch.zeros(rows, dtype=torch.int64),
        "out": torch.zeros(tokens_q, heads, whole.value.shape[-1], dtype=torch.float64),
        "query": torch.zeros(tokens_q, heads, whole.query.shape[-1], dtype=torch.float64),
        "key": torch.zeros(tokens_k, key_heads, whole.key.shape[-1], dtype=torch.float64),
        "value": torch.zeros(tokens_k, key_heads, whole.value.shape[-1], dtype=torch.float64),
    }
    if isinstance(scale, Tensor):
        result["scale"] = torch.zeros(scale.shape, dtype=torch.float64)
    if whole.alibi_slopes is not None:
        result["alibi_slopes"] = torch.zeros(heads, dtype=torch.float64)
    for (q0, q1), (k0, k1) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        part = dataclasses.replace(
            whole,
            query=whole.query[:, :, q0:q1],
            key=whole.key[:, :, k0:k1],
            value=whole.value[:, :, k0:k1],
            grad=whole.grad[:, :, q0:q1],
            scale=_part_of_scale(scale, q0, q1),
        )
        answer = oracles.attention(part if seed is None else part.moved(seed), gradients=True)
        sure, possible = count_bounds(answer, case.base.dtype)
        statistics = {"threshold": answer.rows.threshold, "partition": answer.rows.partition}
        for name, tensor in {**statistics, "sure": sure, "possible": possible}.items():
            result[name][q0:q1] = tensor[0].transpose(0, 1)
        result["out"][q0:q1] = answer.out[0].transpose(0, 1)
        result["query"][q0:q1] = answer.grads["query"][0].transpose(0, 1)
        result["key"][k0:k1] = answer.grads["key"][0].transpose(0, 1)
        result["value"][k0:k1] = answer.grads["value"][0].transpose(0, 1)
        if isinstance(scale, Tensor) and scale.dim() == 2:
            result["scale"] += answer.grads["scale"].sum(2).reshape(heads, 1)
        elif isinstance(scale, Tensor):
            result["scale"][q0:q1] = answer.grads["scale"][0].transpose(0, 1)
        if "alibi_slopes" in result:
            result["alibi_slopes"] += answer.grads["alibi_slopes"].reshape(heads)
    return result


def _part_of_scale(scale: float | Tensor | None, start: int, stop: int) -> float | Tensor | None:
    if not isinstance(scale, Tensor):
        return scale
    return scale.view(1, -1, 1, 1) if scale.dim() == 2 else scale[start:stop].transpose(0, 1).unsqueeze(0)
