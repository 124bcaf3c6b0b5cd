"""``return_stats``: threshold, support size and partition by their definitions, alike on every backend."""

from __future__ import annotations

import dataclasses

import torch

from .. import tolerance
from ..execution import Attention, run
from ..inputs import Case
from .agreement import answers

__all__ = ["reports_statistics"]


def reports_statistics(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """The statistics obey their definitions.

    threshold and partition are near the formula; w > 0 ⇔ z > threshold away from the boundary; support_size counts
    those keys; fully masked rows say +inf, 0, 0; shapes (B, H, Lq), at least float32, detached; the same bits with
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
    stats, recorded = result.stats, run(attention, inputs, stats=True).stats
    assert stats is not None
    assert recorded is not None
    working = tolerance.working_dtype(case.dtype)
    for name in ("threshold", "partition"):
        tensor, reference = getattr(stats, name), getattr(answer.rows, name)
        assert tensor.dtype == working, f"{name} has dtype {tensor.dtype}, expected {working}"
        assert not getattr(recorded, name).requires_grad, f"{name} is not detached"
        # An infinite entry moves by inf − inf.
        others = [torch.where(torch.isinf(reference), reference, getattr(other.rows, name)) for other in moved]
        finite = torch.where(torch.isinf(reference), 0.0, reference)
        width = tolerance.band(finite, [torch.where(torch.isinf(o), 0.0, o) for o in others], working)
        if name == "partition" and inputs.normalization.name == "adaptive":
            # It is 1 by definition, so moving the scores moves nothing; what is left is the rounding of a row sum.
            width = max(width, tolerance.ROW_SUM[working])
        tolerance.assert_within(
            tensor, reference, None if base is None else getattr(base, name), kind="output", band=width, label=name
        )
    support = stats.support_size
    assert not support.is_floating_point(), f"support_size has dtype {support.dtype}"
    assert tuple(support.shape) == tuple(answer.rows.support.shape), f"support_size has shape {tuple(support.shape)}"
    margin = tolerance.boundary(answer.scores, case.dtype)
    distance = torch.where(answer.allowed, answer.scores - answer.rows.threshold.unsqueeze(-1), -torch.inf)
    sure, possible = (distance > margin).sum(-1), (distance > -margin).sum(-1)
    assert bool(((support >= sure) & (support <= possible)).all()), (
        f"support_size {support.flatten().tolist()}, formula {answer.rows.support.flatten().tolist()}"
    )
    weight = result.out
    assert bool((weight[distance < -margin] == 0).all()), "a key below the threshold has weight"
    visible = answer.rows.weights > torch.finfo(case.dtype).tiny
    assert bool((weight[(distance > margin) & visible] > 0).all()), "a key above the threshold has no weight"
    assert bool(((weight > 0).sum(-1) <= support).all()), "more keys have weight than support_size says"
    dead = ~answer.allowed.any(-1)
    assert bool((stats.threshold[dead] == torch.inf).all()), "threshold of a fully masked row is not +inf"
    assert bool((support[dead] == 0).all() & (stats.partition[dead] == 0).all()), "a fully masked row has statistics"
    with_dropout = run(attention, dataclasses.replace(inputs, dropout_p=0.5), stats=True, gradients=False).stats
    assert with_dropout is not None
    for name, tensor in zip(stats._fields, stats, strict=True):
        tolerance.assert_equal_bits(getattr(with_dropout, name), tensor, f"{name} with dropout")
