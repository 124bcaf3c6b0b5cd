"""Inputs of the attention benchmarks: queries, keys and values (B, H, N, d), a function of the arguments alone.

All methods get the same tensors and scale the scores by 1/√d; a workload that wants another temperature has it in its
queries. Numbers are drawn in float32 and rounded to the dtype at the end.

| name | what | parameter M |
|---|---|---|
| segments | stretches of 256 tokens, each of one of M clusters: about 1/M of the causal tiles carry weight | clusters |
| gaussian | independent standard normal entries: no structure at all | unused |
| unit | independent directions of norm 1 at inverse temperature β = M | β |
| trained | topics that come and go, tokens of a Zipf vocabulary, rotary positions, heads of different sharpness, and a first token that every query likes | topics |
| sink | segments, and one key that every query sees with weight: one column of tiles is full | clusters |
| spread | the control of ``sink``: as many tiles, but the key is one of eight, by the block of the query | clusters |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["WORKLOADS", "Inputs", "Shape", "Workload", "fixed_scale", "make"]

SEGMENT, SPREAD = 256, 0.85
BLOCK, GROUPS = 128, 8
VOCABULARY, TOPIC_LENGTH = 512, 384


class Shape(NamedTuple):
    """Batch, heads, tokens, head size."""

    B: int
    H: int
    N: int
    d: int


class Inputs(NamedTuple):
    """q, k, v and the gradient of the output, each (B, H, N, d)."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor


@dataclass(frozen=True)
class _Draw:
    """One stream of random numbers on one device."""

    generator: torch.Generator
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(high, shape, device=self.device, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.generator)


Pair = tuple[Tensor, Tensor]


def _clustered(shape: Shape, clusters: int, draw: _Draw) -> Pair:
    """Rows √d (s·c + √(1 − s²)·ε/√d): centres c of norm 1, s = 0.85, ε standard normal."""
    B, H, N, d = shape
    centres = draw.normal(B, H, clusters, d)
    centres = centres / centres.norm(dim=-1, keepdim=True)
    which = draw.integers(clusters, (B, H, -(-N // SEGMENT))).repeat_interleave(SEGMENT, -1)[..., :N]
    base = torch.gather(centres, 2, which[..., None].expand(-1, -1, -1, d))
    # One expression for both, so that the memory of one is free before the other is made.
    q, k = (
        math.sqrt(d) * (SPREAD * base + math.sqrt(1 - SPREAD**2) * (draw.normal(B, H, N, d) / math.sqrt(d)))
        for _ in range(2)
    )
    return q, k


def _gaussian(shape: Shape, _: int, draw: _Draw) -> Pair:
    return draw.normal(*shape), draw.normal(*shape)


def _unit(shape: Shape, beta: int, draw: _Draw) -> Pair:
    q, k = (normalize(draw.normal(*shape), dim=-1) for _ in range(2))
    return q * (beta * math.sqrt(shape.d)), k


def _rotary(x: Tensor) -> Tensor:
    """Rotary positions of base 10,000 on pairs (i, i + d/2)."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), one * angles.sin() + two * angles.cos()], -1)


def _trained(shape: Shape, topics: int, draw: _Draw) -> Pair:
    B, H, N, d = shape
    # A topic holds for 384 tokens on average, then another one begins.
    changes = draw.uniform(B, N) < 1 / TOPIC_LENGTH
    begun = changes.long().cumsum(-1)
    topic = draw.integers(topics, (B, N)).gather(1, begun)
    # Zipf's law: the r-th most frequent token has probability ∝ 1/r.
    weights = 1 / torch.arange(1, VOCABULARY + 1, device=draw.device, dtype=torch.float32)
    token = torch.multinomial(weights, B * N, replacement=True, generator=draw.generator).view(B, N)
    topic_table, token_table = draw.normal(H, topics, d), draw.normal(H, VOCABULARY, d)
    sharpness = torch.linspace(0.5, 1.5, H, device=draw.device).view(H, 1, 1)

    def rows() -> Tensor:
        content = 0.8 * topic_table[:, topic] + 0.5 * token_table[:, token]
        return content.transpose(0, 1) + 0.33 * draw.normal(B, H, N, d)

    q, k = _rotary(rows() * sharpness), _rotary(rows())
    # The sink: its key points to where the queries of the head point on average, which trained heads learn as a bias.
    bias = normalize(draw.normal(1, H, 1, d), dim=-1)
    q = q + math.sqrt(d) * 0.5 * bias
    k[..., :1, :] = math.sqrt(d) * 1.2 * bias
    return q, k


def _marked(shape: Shape, clusters: int, draw: _Draw, groups: int) -> Pair:
    """Segments whose last eight entries tell a query block which of ``groups`` marked keys it sees."""
    q, k = _clustered(shape, clusters, draw)
    q[..., -GROUPS:], k[..., -GROUPS:] = 0.0, 0.0
    N, d = shape.N, shape.d
    # A marked key scores a little above a typical key of the query's own cluster, √d s², and below the best of them.
    mark = math.sqrt(math.sqrt(d) * (math.sqrt(d) * SPREAD**2 + 1.5))
    block = torch.arange(N, device=draw.device) // BLOCK
    q[..., -GROUPS:] = mark * torch.nn.functional.one_hot(block % groups, GROUPS).float()
    for group in range(groups):
        place = group * BLOCK % N
        k[..., place, :] = 0.0
        k[..., place, d - GROUPS + group] = mark
    return q, k


def _sink(shape: Shape, clusters: int, draw: _Draw) -> Pair:
    return _marked(shape, clusters, draw, 1)


def _spread(shape: Shape, clusters: int, draw: _Draw) -> Pair:
    return _marked(shape, clusters, draw, GROUPS)


@dataclass(frozen=True)
class Workload:
    """How queries and keys are drawn, and what M means."""

    name: str
    parameter: str
    draw: Callable[[Shape, int, _Draw], Pair]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("segments", "clusters", _clustered),
        Workload("gaussian", "unused", _gaussian),
        Workload("unit", "β", _unit),
        Workload("trained", "topics", _trained),
        Workload("sink", "clusters", _sink),
        Workload("spread", "clusters", _spread),
    )
}


def make(name: str, M: int, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 1) -> Inputs:
    """The inputs of workload ``name`` on ``device``; the same seed gives the same numbers on one kind of device."""
    draw = _Draw(torch.Generator(device=device).manual_seed(seed), device)
    q, k = (rows.to(dtype) for rows in WORKLOADS[name].draw(shape, M, draw))
    v = draw.normal(*shape).to(dtype)
    return Inputs(q, k, v, draw.normal(*shape).to(dtype))


def fixed_scale(order: float, d: int) -> float:
    """β with which h² = 2n/β is 1.5 times the mean squared distance within a cluster of segments, 2d(1 − s²)."""
    return 2 * order / (1.5 * 2 * d * (1 - SPREAD**2))
