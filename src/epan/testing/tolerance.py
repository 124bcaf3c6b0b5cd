r"""The one rule by which a floating-point result is near enough to another.

An implementation is judged by its error against float64, and the yardstick is measured, not chosen:

.. math:: |x - r| \le f \cdot \max|b - r| + \text{band}

r is the float64 reference, b the eager backend in the dtype of x, and f = 2 for outputs, 3 for gradients. The band is
how far the reference itself moves when inputs and scores are moved by a few units in the last place of the working
precision (which also covers a key that crosses the boundary of the support by rounding), plus one rounding of the
result. The eager backend itself, and every float64 result against a formula, has no b: the band alone (in float64 at
least 1e-12) decides.

A NaN is right only where it is expected: a comparison whose reference is NaN anywhere else fails.

Source of the factors: the policy of flash-attention's tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "EXACT",
    "FACTORS",
    "LARGE_ORDER",
    "NOISE",
    "ROW_SUM",
    "SIGMAS",
    "assert_equal_bits",
    "assert_within",
    "band",
    "boundary",
    "largest",
    "working_dtype",
]

#: Times the error of the eager backend that another backend may have.
FACTORS = {"output": 2.0, "gradient": 3.0}
#: Float64 results against a formula, relative to the largest entry if that is above 1.
EXACT = 1e-12
#: Distance of a row sum from 1, by the dtype of the weights (their own rounding included).
ROW_SUM = {torch.float64: EXACT, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 5e-3}
#: Order 1e6 against softmax in float64: the family's own distance is O(1/n).
LARGE_ORDER = 1e-5
#: Units in the last place by which inputs, scores and incoming gradients are moved to measure the band.
NOISE = 4.0
#: Standard deviations that a count of random events may be off.
SIGMAS = 5.0


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that thresholds, sums and products are computed in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def largest(tensor: Tensor) -> float:
    """max|x|, 0 for an empty tensor."""
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def band(reference: Tensor, moved: Sequence[Tensor], dtype: torch.dtype) -> float:
    """The rounding band of a result of ``dtype``.

    Parameters
    ----------
    reference: the float64 reference.
    moved: the same reference for inputs moved by :data:`NOISE` units in the last place of the working precision.
    dtype: dtype of the result to be judged.
    """
    top = largest(reference)
    shift = max((largest(other - reference) for other in moved), default=0.0)
    # Twice: the noise is one draw, and the next one may reach further.
    width = 2.0 * shift + torch.finfo(dtype).eps * top
    if dtype == torch.float64:
        width = max(width, EXACT * max(1.0, top))
    return width


def boundary(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Half-width of the strip around a threshold in which rounding decides whether a key has weight.

    Parameters
    ----------
    scores: float64; infinite ones count as 0.
    dtype: of the weights; the working precision follows from it.
    """
    size = torch.where(torch.isfinite(scores), scores, 0.0).abs()
    return 2.0 * NOISE * torch.finfo(working_dtype(dtype)).eps * (1.0 + size)


def assert_within(
    actual: Tensor,
    reference: Tensor,
    baseline: Tensor | None = None,
    *,
    kind: str = "output",
    band: float = 0.0,
    expected_nan: Tensor | None = None,
    label: str = "result",
) -> None:
    """Fails unless ``actual`` obeys the rule of this module.

    Parameters
    ----------
    actual: the result to judge, any floating dtype.
    reference: float64, of the same shape.
    baseline: the eager backend's result in the dtype of ``actual``; None if that is the one to be judged.
    kind: "output" or "gradient".
    band: the rounding band of :func:`band`.
    expected_nan: boolean, where NaN is right (None: nowhere).
    label: what the message calls the result.

    Raises
    ------
    AssertionError: naming the error, the limit and the place.
    """
    assert actual.shape == reference.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    x, r = actual.detach().double(), reference.detach().double()
    nan = torch.zeros_like(r, dtype=torch.bool) if expected_nan is None else expected_nan.expand(r.shape)
    assert not bool((torch.isnan(r) & ~nan).any()), f"{label}: the reference itself is NaN where nothing says it may be"
    assert bool((torch.isnan(x) == nan).all()), (
        f"{label}: {int(torch.isnan(x).sum())} NaN, expected {int(nan.sum())}; first difference at "
        f"{(torch.isnan(x) != nan).nonzero()[0].tolist()}"
    )
    infinite = torch.isinf(r) & ~nan
    assert bool((x[infinite] == r[infinite]).all()), f"{label}: an infinite entry differs"
    skip = nan | infinite
    error = torch.where(skip, 0.0, x - r).abs()
    limit = band
    if baseline is not None:
        limit += FACTORS[kind] * largest(torch.where(skip, 0.0, baseline.detach().double() - r))
    worst = largest(error)
    if worst <= limit:
        return
    place = error.flatten().argmax()
    index = torch.unravel_index(place, error.shape) if error.dim() else ()
    raise AssertionError(
        f"{label}: error {worst:.3e} above the limit {limit:.3e} at {[int(i) for i in index]}: "
        f"{float(x.flatten()[place]):.17g}, expected {float(r.flatten()[place]):.17g}"
    )


def assert_equal_bits(actual: Tensor, expected: Tensor, label: str = "result") -> None:
    """Fails unless both tensors are equal to the last bit, NaN equal to NaN.

    Raises
    ------
    AssertionError: naming how many entries differ, by how much, and where the first is.
    """
    assert actual.shape == expected.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{label}: {actual.dtype}, expected {expected.dtype}"
    differs = (actual != expected) & ~(torch.isnan(actual) & torch.isnan(expected))
    if not bool(differs.any()):
        return
    gap = largest((actual.double() - expected.double())[differs].nan_to_num(nan=float("inf")))
    raise AssertionError(
        f"{label}: {int(differs.sum())} of {differs.numel()} entries differ by up to {gap:.3e}, "
        f"first at {differs.nonzero()[0].tolist()}"
    )
