"""Stats: every field as its docstring defines it, for every rule, from scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import epan
from epan.kernels import Kernel
from epan.normalizations import Normalization, Stats
from epan.testing import catalogue, inputs, tolerance
from epan.testing.catalogue import Entry

# Scores have no similarity; the euclidean half of the catalogue holds every pair that scores can have.
PAIRS = [entry for entry in catalogue.legal() if entry.similarity == "euclidean" and entry.order is None]
WAYS = ("plain", "recorded", "streaming")


def rows(rule: Normalization, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scores, allowed): several contents, a fully masked row, −inf, and (for fixed) rows out of reach."""
    parts = [inputs.make_scores(kind, 3, 40, dtype, seed=3) for kind in ("normal", "ties", "near", "minus_infinity")]
    z = torch.cat(parts)
    if rule.name == "fixed":
        z = torch.where(torch.isfinite(z), -z.abs(), z)
        z[1] -= 30.0
        z[4] -= 2000.0
    allowed = torch.rand(z.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    allowed[2] = False
    return z, allowed


def statistics(way: str, rule: Normalization, kernel: Kernel, z: Tensor, allowed: Tensor) -> tuple[Tensor, Stats]:
    if way == "streaming":
        found, _, stats = rule.solve(z.clone(), allowed, kernel)
        assert stats is not None
        return found, stats
    found, stats = rule.weights(z.clone().requires_grad_(way == "recorded"), allowed, kernel)
    return found.detach(), stats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_threshold_and_support_count_the_weights(entry: Entry, way: str, dtype: torch.dtype) -> None:
    """w > 0 ⇔ z > t, and the support is that many keys; a fully masked row has +inf, 0, 0."""
    kernel, rule = entry.kernel, entry.normalization
    z, allowed = rows(rule, dtype)
    weights, stats = statistics(way, rule, kernel, z, allowed)
    allowed = allowed & (z != -math.inf)
    threshold, support, partition = stats[:3]
    for field in stats[:3]:
        assert field.shape == z.shape[:-1]
        assert not field.requires_grad
    assert threshold.dtype == partition.dtype == dtype
    assert not support.is_floating_point()
    above = allowed & (z > threshold.unsqueeze(-1))
    margin = tolerance.boundary(z.double(), dtype)
    clear = (z.double() - threshold.double().unsqueeze(-1)).abs() > margin
    # Most rows have no key so near to the boundary that rounding decides.
    assert float(clear.double().mean()) > 0.75
    assert bool(((weights > 0) & clear <= above).all())
    if kernel.name != "gaussian":
        # A Gaussian weight may be less than the smallest number.
        assert torch.equal((weights > 0) & clear, above & clear)
    least = (above & clear).sum(-1)
    assert bool(((least <= support) & (support <= least + (allowed & ~clear).sum(-1))).all())
    dead = ~allowed.any(-1)
    assert int(dead.sum()) == 2
    assert bool((threshold[dead] == math.inf).all() & (support[dead] == 0).all() & (partition[dead] == 0).all())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_threshold_and_partition_by_their_definitions(entry: Entry, way: str) -> None:
    kernel, rule = entry.kernel, entry.normalization
    z, allowed = rows(rule, torch.float64)
    _, stats = statistics(way, rule, kernel, z, allowed)
    allowed = allowed & (z != -math.inf)
    live = allowed.any(-1)
    z, allowed = z[live], allowed[live]
    threshold, partition = stats.threshold[live], stats.partition[live]
    masked = torch.where(allowed, z, -math.inf)
    top = masked.amax(-1)
    if rule.name == "nearest":
        kth = masked.topk(min(3, z.shape[-1])).values[:, -1]
        assert torch.equal(threshold, torch.nextafter(kth, torch.full_like(kth, -math.inf)))
        chosen = (masked > kth.unsqueeze(-1)).double()
        tied = (masked == kth.unsqueeze(-1)) & allowed
        places = (3.0 - chosen.sum(-1, keepdim=True)).clamp(min=0) / tied.sum(-1, keepdim=True)
        value = chosen + tied * places.clamp(max=1.0)
        if kernel.name == "gaussian":
            expected = (value * torch.exp(masked)).sum(-1).log()
        else:
            expected = value.sum(-1)
    elif kernel.name == "gaussian":
        assert bool((threshold == -math.inf).all())
        expected = masked.logsumexp(-1)
    elif rule.name == "adaptive":
        # At t + n the profile is the weight itself.
        reference = (threshold + kernel.support).unsqueeze(-1)
        found = torch.where(allowed, kernel.profile(z - reference), 0.0).sum(-1)
        expected = torch.ones_like(partition)
        # The threshold is rounded as a number of the size of n.
        tolerance.assert_within(found, expected, band=tolerance.EXACT * float(kernel.support))  # type: ignore[arg-type]
    elif rule.name == "anchored":
        tolerance.assert_within(threshold, top - kernel.support, band=tolerance.EXACT)
        expected = torch.where(allowed, kernel.profile(z - top.unsqueeze(-1)), 0.0).sum(-1)
    else:
        expected = torch.where(allowed, kernel.profile(z), 0.0).sum(-1)
        reached = expected > 0
        assert bool(reached.any())
        assert bool((~reached).any())
        assert torch.equal(partition == 0, ~reached)
        edge = -float(kernel.support)  # type: ignore[arg-type]
        if kernel.is_closed:
            edge = math.nextafter(edge, -math.inf)
        assert bool((threshold[reached] == edge).all())
        policy = rule.empty  # type: ignore[attr-defined]
        below = torch.nextafter(top, torch.full_like(top, -math.inf))
        other = {"zero": torch.full_like(top, math.inf), "uniform": torch.full_like(top, -math.inf), "nearest": below}
        assert torch.equal(threshold[~reached], other[policy][~reached])
    width = tolerance.EXACT * max(1.0, tolerance.largest(expected))
    tolerance.assert_within(partition, expected, band=width, label="partition")


def test_attention_reports_the_statistics_of_its_scores() -> None:
    """(B, H, Lq) on every backend, equal to those of the score rows themselves."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, length, 4), generator=generator, dtype=torch.float64) for length in (5, 9, 9))
    scores = (q @ k.transpose(-2, -1)) * 0.8
    _, expected = epan.Adaptive().weights(scores, None, epan.Triweight())
    for name in catalogue.backends():
        _, stats = epan.attention(q, k, v, scale=0.8, kernel="triweight", return_stats=True, backend=name)
        assert stats.threshold.shape == (2, 3, 5)
        width = tolerance.EXACT * max(1.0, tolerance.largest(expected.threshold))
        tolerance.assert_within(stats.threshold, expected.threshold, band=width)
        assert torch.equal(stats.support_size, expected.support_size)
