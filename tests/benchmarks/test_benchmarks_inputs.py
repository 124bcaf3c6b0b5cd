"""The inputs of the benchmarks are what their descriptions say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import epan
from accuracy import TILE
from epan.testing.tolerance import SIGMAS, assert_equal_bits
from problem import Problem
from workloads import GROUPS, WORKLOADS, Inputs, Shape, fixed_scale, make

CPU = torch.device("cpu")
SHAPE = Shape(1, 2, 1536, 64)


def weights(inputs: Inputs) -> Tensor:
    """Which keys carry weight: adaptive biweight, causal, 1/√d; (B, H, N, N) boolean."""
    length = inputs.q.shape[-2]
    scores = inputs.q @ inputs.k.transpose(-2, -1) / math.sqrt(inputs.q.shape[-1])
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    return epan.attention_weights(scores, kernel="biweight", normalization="adaptive", mask=mask) > 0


def tiles(used: Tensor) -> Tensor:
    return used.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE)).any(-1).any(-2)


def test_segments_are_the_distribution_of_their_formula() -> None:
    found = make("segments", 3, Shape(2, 2, 512, 16), torch.float32, CPU, seed=5)
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(2, 2, 3, 16, generator=generator)
    which = torch.randint(0, 3, (2, 2, 2), generator=generator)
    for rows in found[:2]:
        noise = torch.randn(2, 2, 512, 16, generator=generator)
        for b in range(2):
            for h in range(2):
                for i in range(512):
                    centre = centres[b, h, which[b, h, i // 256]]
                    expected = 4 * (0.85 * (centre / centre.norm()) + math.sqrt(1 - 0.85**2) * (noise[b, h, i] / 4))
                    assert_equal_bits(rows[b, h, i], expected)
    assert_equal_bits(found.v, torch.randn(2, 2, 512, 16, generator=generator))


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_workload_is_a_function_of_its_arguments(name: str, dtype: torch.dtype) -> None:
    shape = Shape(2, 3, 1024, 32)
    first, again, other = (make(name, 4, shape, dtype, CPU, seed=seed) for seed in (1, 1, 2))
    for one, two, three in zip(first, again, other, strict=True):
        assert one.shape == shape
        assert one.dtype == dtype
        assert bool(torch.isfinite(one).all())
        assert_equal_bits(one, two)
        assert not torch.equal(one, three)


def test_about_one_in_m_tiles_of_segments_carries_weight() -> None:
    densities = []
    for M in (1, 2, 6):
        found = tiles(weights(make("segments", M, SHAPE, torch.float32, CPU)))
        count = found.shape[-1]
        densities.append(float(found.sum()) / (SHAPE.H * count * (count + 1) / 2))
    assert densities[0] == 1.0
    assert 1 / 6 < densities[2] < densities[1] < 1.0


def test_the_fixed_radius_follows_the_spread_of_a_cluster() -> None:
    inputs = make("segments", 1, Shape(1, 1, 4096, 32), torch.float64, CPU)
    squared = (inputs.q - inputs.k).square().sum(-1).flatten()
    for kernel in ("epanechnikov", "biweight"):
        problem = Problem(Shape(1, 1, 4096, 32), torch.float64, CPU, kernel, "fixed")
        radius = 2 * problem.order / fixed_scale(problem.order, 32)
        assert problem.beta == fixed_scale(problem.order, 32)
        deviation = float(squared.std()) / math.sqrt(squared.numel())
        assert abs(radius / 1.5 - float(squared.mean())) < SIGMAS * deviation


def test_every_query_uses_the_sink_and_its_control_has_as_many_tiles() -> None:
    used = {name: weights(make(name, 4, SHAPE, torch.float32, CPU)) for name in ("sink", "spread")}
    assert bool(tiles(used["sink"])[..., 0].all())
    assert not bool(tiles(used["spread"])[..., 0].all())
    for row in range(GROUPS, SHAPE.N // TILE):
        place = row % GROUPS * TILE
        seen = used["spread"][..., row * TILE : (row + 1) * TILE, place].any(-1)
        assert bool(seen.all()), f"block {row} does not use key {place}"


def test_the_first_token_of_the_trained_workload_is_the_most_used() -> None:
    used = weights(make("trained", 8, SHAPE, torch.float32, CPU)).float().mean((0, 1))
    queries = torch.arange(SHAPE.N, 0, -1)
    # Over the queries that may see the key, without the last ones, of which there are few.
    share = (used.sum(0) / queries)[: SHAPE.N - 256]
    assert int(share.argmax()) == 0
