"""``return_stats``: threshold, support size and partition by their definitions, alike on every backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import oracles, tolerance
from ..execution import Attention, run
from ..inputs import Case
from .agreement import answers

__all__ = ["TILE", "count_bounds", "judge_statistic", "reports_statistics"]

#: Queries and keys of a tile in ``Stats.tile_density``.
TILE = 128


def judge_statistic(
    name: str,
    actual: Tensor,
    reference: Tensor,
    moved: Sequence[Tensor],
    rule: str,
    baseline: Tensor | None = None,
) -> None:
    """Fails unless a threshold or partition obeys the rule; ``name`` may say more before the last word."""
    # An infinite entry moves by inf − inf.
    others = [torch.where(torch.isinf(reference), reference, other) for other in moved]
    finite, *others = (torch.where(torch.isinf(tensor), 0.0, tensor) for tensor in (reference, *others))
    width = tolerance.band(finite, others, actual.dtype)
    if name.endswith("partition") and rule == "adaptive":
        # It is 1 by definition, so moving the scores moves nothing; what is left is the rounding of a row sum.
        width = max(width, tolerance.ROW_SUM[actual.dtype])
    tolerance.assert_within(actual, reference, baseline, kind="output", band=width, label=name)


def count_bounds(answer: oracles.Answer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """How many keys of each query are above the threshold for sure, and at most; between them rounding decides."""
    distance, margin = _distance(answer), tolerance.boundary(answer.scores, dtype)
    return (distance > margin).sum(-1), (distance > -margin).sum(-1)


def _distance(answer: oracles.Answer) -> Tensor:
    return torch.where(answer.allowed, answer.scores - answer.rows.threshold.unsqueeze(-1), -torch.inf)


def reports_statistics(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """The statistics obey their definitions.

    threshold and partition are near the formula; w > 0 ⇔ z > threshold away from the boundary; support_size counts
    those keys; tile_density, where the backend has it, counts every tile with weight; fully masked rows say +inf, 0, 0; shapes (B, H, Lq), at least float32, detached; the same bits with
    dropout as without. The output has the same bits whether or not they are asked for.
    """
    inputs = case.build()
    identity = torch.eye(case.k_len, dtype=case.dtype).expand(*inputs.key.shape[:2], case.k_len, case.k_len)
    blank = torch.zeros((*inputs.query.shape[:3], case.k_len), dtype=case.dtype)
    inputs = dataclasses.replace(inputs, value=identity, grad=blank)
    answer, moved = answers(inputs)
    result = run(attention, inputs, stats=True, gradients=False)
    base = None if baseline is None else run(baseline, inputs, stats=True, gradients=False).stats
    tolerance.assert_equal_bits(run(attention, inputs, gradients=False).out, result.out, "output without statistics")
    recorded = run(attention, inputs, stats=True).stats
    working = tolerance.working_dtype(case.dtype)
    sure, possible = count_bounds(answer, case.dtype)
    dead = ~answer.allowed.any(-1)
    for stats, kind in ((result.stats, ""), (recorded, "recorded ")):
        assert stats is not None
        for name in ("threshold", "partition"):
            tensor = getattr(stats, name)
            assert tensor.dtype == working, f"{kind}{name} has dtype {tensor.dtype}, expected {working}"
            assert not tensor.requires_grad, f"{kind}{name} is not detached"
            others = [getattr(other.rows, name) for other in moved]
            yardstick = None if base is None else getattr(base, name)
            reference = getattr(answer.rows, name)
            judge_statistic(f"{kind}{name}", tensor, reference, others, inputs.normalization.name, yardstick)
        support = stats.support_size
        assert not support.is_floating_point(), f"{kind}support_size has dtype {support.dtype}"
        assert support.shape == sure.shape, f"{kind}support_size has shape {tuple(support.shape)}"
        assert bool(((support >= sure) & (support <= possible)).all()), (
            f"{kind}support_size {support.flatten().tolist()}, formula {answer.rows.support.flatten().tolist()}"
        )
        assert bool((stats.partition[dead] == 0).all()), f"{kind}partition of a fully masked row is not 0"
        if stats.tile_density is not None:
            _judge_density(stats.tile_density, answer, case)
    assert result.stats is not None
    weight, support = result.out, result.stats.support_size
    distance, margin = _distance(answer), tolerance.boundary(answer.scores, case.dtype)
    assert bool((weight[distance < -margin] == 0).all()), "a key below the threshold has weight"
    visible = answer.rows.weights > torch.finfo(case.dtype).tiny
    assert bool((weight[(distance > margin) & visible] > 0).all()), "a key above the threshold has no weight"
    assert bool(((weight > 0).sum(-1) <= support).all()), "more keys have weight than support_size says"
    with_dropout = run(attention, dataclasses.replace(inputs, dropout_p=0.5), stats=True, gradients=False).stats
    assert with_dropout is not None
    for name, tensor in zip(result.stats._fields, result.stats, strict=True):
        if tensor is not None:
            tolerance.assert_equal_bits(getattr(with_dropout, name), tensor, f"{name} with dropout")


def _judge_density(density: Tensor, answer: oracles.Answer, case: Case) -> None:
    """Fails unless a density counts every tile that has weight for sure, and no more than the tiles that are visible.

    Which of the other tiles are visited is the backend's affair.
    """
    rows, keys = -(-case.q_len // TILE), -(-case.k_len // TILE)

    def by_tile(what: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(what, (0, keys * TILE - case.k_len, 0, rows * TILE - case.q_len))
        return padded.unflatten(-1, (keys, TILE)).unflatten(-3, (rows, TILE)).any(-1).any(-2)

    distance, margin = _distance(answer), tolerance.boundary(answer.scores, case.dtype)
    sure, visible = by_tile(distance > margin).sum(-1), by_tile(answer.allowed).sum(-1)
    # Masks may hide whole tiles, of which a backend need not know before it looks.
    seen = visible if case.mask == "none" else torch.full_like(visible, keys)
    least = (sure / seen.clamp(min=1)).repeat_interleave(TILE, -1)[..., : case.q_len]
    assert density.dtype == torch.float32, f"tile_density has dtype {density.dtype}"
    assert density.shape == least.shape, f"tile_density has shape {tuple(density.shape)}"
    assert not density.requires_grad, "tile_density is not detached"
    assert bool((density <= 1).all()), "tile_density is above 1"
    assert bool((density >= least - torch.finfo(torch.float32).eps).all()), (
        f"tile_density {density.min():.3f}, though tiles with weight are at least {least.max():.3f} of the visible ones"
    )
