"""The adaptive threshold on arbitrary rows: oracles, distributions, order, shifts, permutations, bounds, few steps."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import epan
from epan.kernels import Kernel, Polynomial
from epan.kernels import get as get_kernel
from epan.normalizations import Adaptive, _threshold
from epan.testing import oracles, tolerance

ORDERS = (1.0, 1.5, 2.0, 3.0, 5.0, 16.0, 16.5, 40.0, 1e3, 1e6)
NAMES = {1.0: "epanechnikov", 2.0: "biweight", 3.0: "triweight"}
KINDS = ("normal", "ties", "constant", "near", "spread", "geometric", "mixed", "extreme", "subnormal")
# Far from everything else: the ends of the numbers, and masked keys.
INTRUDERS = (0.0, -math.inf, 1e-310, -1e-42, 1e6, -1e6, 3.4e34, -3.4e34)
BOTH = (torch.float64, torch.float32)
every_order = pytest.mark.parametrize("order", ORDERS)
few = hypothesis.settings(max_examples=15)


def kernel_of(order: float) -> Kernel:
    return get_kernel(NAMES[order]) if order in NAMES else Polynomial(order)


@st.composite
def rows(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float64,), masked: bool = True, widest: float = 6.0
) -> Tensor:
    """One row of 1 … 300 scores; 128, 160, 256 and 288 keys are searched for candidates."""
    length = draw(st.integers(1, 300) | st.sampled_from((1, 2, 127, 128, 160, 256, 288, 300)))
    kind = draw(st.sampled_from(KINDS if widest >= 6.0 else KINDS[:4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    z = torch.randn(length, generator=generator, dtype=torch.float64)
    chosen = torch.rand(length, generator=generator) < 0.5
    if kind == "normal":
        z = z * draw(st.floats(0.01, 30.0))
    elif kind == "ties":
        z = (z * draw(st.sampled_from((1.0, 3.0)))).round() / 2
    elif kind == "constant":
        z = torch.full_like(z, draw(st.floats(-100.0, 100.0)))
    elif kind == "near":
        z = 1.0 + z * 10.0 ** draw(st.floats(-14.0, -2.0))
    elif kind == "spread":
        z = z * 10.0 ** draw(st.floats(-6.0, widest))
    elif kind == "geometric":
        z = -(10.0 ** (12.0 * torch.rand(length, generator=generator, dtype=torch.float64) - 6.0))
    elif kind == "mixed":
        z = torch.where(chosen, z * 1e-3, z * 1e3)
    elif kind == "extreme":
        z = z.sign() * torch.rand(length, generator=generator, dtype=torch.float64) * 3.4e34
    else:
        z = z * 1e-310
    if masked:
        intruders = draw(st.lists(st.tuples(st.integers(0, length - 1), st.sampled_from(INTRUDERS)), max_size=4))
        for place, value in intruders:
            z[place] = value
    return z.to(draw(st.sampled_from(dtypes)))


def oracle(z: Tensor, order: float) -> oracles.RowAnswer:
    return oracles.weights(z, z != -math.inf, kernel_of(order), Adaptive())


def weights_of(z: Tensor, order: float) -> Tensor:
    return epan.attention_weights(z, kernel=kernel_of(order), normalization="adaptive")


@every_order
@few
@hypothesis.given(z=rows())
def test_every_path_agrees_with_bisection(order: float, z: Tensor) -> None:
    """Plain, recorded, and with the order as a tensor: three ways to the same weights."""
    expected = oracle(z, order).weights
    tensor_order = Polynomial(torch.tensor(order, dtype=torch.float64))
    found = {
        "plain": weights_of(z, order),
        "recorded": weights_of(z.clone().requires_grad_(), order).detach(),
        "tensor order": epan.attention_weights(z, kernel=tensor_order, normalization="adaptive"),
        "streaming": Adaptive().solve(z.clone(), None, kernel_of(order))[0],
    }
    for label, actual in found.items():
        tolerance.assert_within(actual, expected, band=tolerance.EXACT, label=label)


@pytest.mark.parametrize("order", ORDERS[:8])
@few
@hypothesis.given(z=rows(masked=False, widest=2.0))
def test_the_entmax_package_agrees(order: float, z: Tensor) -> None:
    """Where that package keeps its digits: moderate scores near zero, and orders whose α − 1 is no rounding error."""
    z = z - z.max()
    tolerance.assert_within(weights_of(z, order), oracles.entmax_weights(z, order), band=tolerance.EXACT)


@every_order
@few
@hypothesis.given(z=rows(dtypes=BOTH))
def test_rows_are_distributions(order: float, z: Tensor) -> None:
    live = bool((z != -math.inf).any())
    for leaf in (z, z.clone().requires_grad_()):
        w = weights_of(leaf, order).detach()
        assert w.dtype == z.dtype
        assert bool((w >= 0).all())
        assert bool((w[z == -math.inf] == 0).all())
        assert abs(float(w.double().sum()) - live) <= tolerance.ROW_SUM[z.dtype]


@every_order
@few
@hypothesis.given(z=rows(dtypes=BOTH))
def test_larger_scores_never_weigh_less(order: float, z: Tensor) -> None:
    rank = z.argsort()
    w = weights_of(z, order)[rank]
    rise = w[1:] - w[:-1]
    assert bool((rise >= 0).all())
    assert bool((rise[z[rank].diff() == 0] == 0).all())


@every_order
@few
@hypothesis.given(z=rows(), seed=st.integers(0, 100))
def test_permuted_scores_have_permuted_weights(order: float, z: Tensor, seed: int) -> None:
    place = torch.randperm(z.numel(), generator=torch.Generator().manual_seed(seed))
    tolerance.assert_within(weights_of(z[place], order), weights_of(z, order)[place], band=tolerance.EXACT)


@every_order
@few
@hypothesis.given(z=rows(masked=False, widest=2.0), shift=st.integers(-(2**20), 2**20))
def test_a_constant_changes_nothing(order: float, z: Tensor, shift: int) -> None:
    """Scores on a grid, so that adding the constant is exact."""
    z = (z * 1024).round() / 1024
    assert torch.equal((z + shift) - shift, z)
    moved, still = weights_of(z + shift, order), weights_of(z, order)
    if z.numel() < 128:
        # Nothing but the differences from the maximum is looked at.
        tolerance.assert_equal_bits(moved, still)
    tolerance.assert_within(moved, still, band=tolerance.EXACT)


@every_order
@few
@hypothesis.given(z=rows(dtypes=BOTH))
def test_bounds_of_the_threshold(order: float, z: Tensor) -> None:
    """max z − n ≤ t ≤ max z − n|A|^{−1/n}, and w > 0 ⇔ z > t away from the boundary."""
    count = int((z != -math.inf).sum())
    hypothesis.assume(count > 0)
    for leaf in (z, z.clone().requires_grad_()):
        weights, stats = Adaptive().weights(leaf, None, kernel_of(order))
        top, t = float(z.double().max()), float(stats.threshold)
        # The threshold is the difference of the maximum and a number of the size of n.
        slack = float(tolerance.boundary(torch.tensor(max(abs(top), order), dtype=torch.float64), z.dtype))
        assert top - order - slack <= t <= top - order * count ** (-1.0 / order) + slack
        above, below = z.double() > t + slack, z.double() < t - slack
        assert bool((weights[below] == 0).all())
        visible = oracle(z, order).weights > torch.finfo(z.dtype).tiny
        assert bool((weights[above & visible] > 0).all())
        assert int(above.sum()) <= int(stats.support_size) <= int((~below & (z != -math.inf)).sum())
        assert abs(float(stats.partition) - 1.0) <= tolerance.ROW_SUM[z.dtype]


@every_order
@few
@hypothesis.given(z=rows(dtypes=BOTH))
def test_the_level_lies_between_its_bounds(order: float, z: Tensor) -> None:
    allowed = z != -math.inf
    hypothesis.assume(bool(allowed.any()))
    level = float(_threshold.solve_level((z - z.max()).unsqueeze(0), order))
    # Counted from the level's own side, where the bounds keep their digits.
    lowest = float(allowed.sum()) ** (-1.0 / order)
    room = 4 * tolerance.NOISE * torch.finfo(z.dtype).eps
    if _threshold.level_is_log(order):
        highest = -order * math.expm1(-math.log(float(allowed.sum())) / order)
        assert 0.0 <= level <= highest * (1 + room) + room
        assert highest <= math.log(float(allowed.sum())) + room
    else:
        assert lowest * (1 - room) <= level <= 1.0


@every_order
@few
@hypothesis.given(z=rows(dtypes=BOTH))
def test_the_support_lies_inside_the_anchored_one(order: float, z: Tensor) -> None:
    kernel = kernel_of(order)
    adaptive, anchored = (
        epan.attention_weights(z, kernel=kernel, normalization=rule) for rule in ("adaptive", "anchored")
    )
    assert bool(((adaptive > 0) <= (anchored > 0)).all())
    # The same by the statistics, which do not underflow.
    if bool((z != -math.inf).any()):
        low, high = (rule.weights(z, None, kernel)[1] for rule in (epan.Anchored(), Adaptive()))
        assert float(low.threshold) <= float(high.threshold)
        assert int(high.support_size) <= int(low.support_size)


@every_order
@few
@hypothesis.given(z=rows())
def test_newton_takes_few_steps(order: float, z: Tensor) -> None:
    """Without a bound that the loop enforces: it would end at the root in any case."""
    taken = 0
    plain, log = _threshold._height_step, _threshold._log_step

    def counted(step: object) -> object:
        def one(*arguments: object) -> object:
            nonlocal taken
            taken += 1
            return step(*arguments)  # type: ignore[operator]

        return one

    for form in (order, torch.tensor(order, dtype=torch.float64)):
        taken = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_threshold, "_height_step", counted(plain))
            patch.setattr(_threshold, "_log_step", counted(log))
            x = (z - z.max()).nan_to_num(nan=-math.inf, neginf=-math.inf).unsqueeze(0)
            _threshold.solve_level(x, form)
        assert 1 <= taken <= 20


@pytest.mark.parametrize("dtype", BOTH)
@every_order
@few
@hypothesis.given(z=rows())
def test_the_steps_that_a_recording_takes_suffice(dtype: torch.dtype, order: float, z: Tensor) -> None:
    """While a CUDA graph is recorded nobody can look whether the rows have arrived; the number of steps is fixed."""
    z = z.to(dtype)
    hypothesis.assume(bool(torch.isfinite(z).any()) and float(z.max()) < math.inf)
    x = _threshold._unit((z - z.max()).unsqueeze(0), order)
    count = _threshold.sufficient_steps(x.shape[-1], order, dtype)
    assert torch.equal(_threshold._newton(x, order, steps=count), _threshold._newton(x, order, steps=1000))


@every_order
def test_the_steps_that_a_recording_takes_are_not_many_more_than_needed(order: float) -> None:
    assert _threshold.sufficient_steps(1 << 17, order, torch.float32) <= 38
    assert _threshold.sufficient_steps(1 << 17, order, torch.float64) <= 60
