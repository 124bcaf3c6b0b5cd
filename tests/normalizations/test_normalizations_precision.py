"""The threshold solver on long rows: accuracy in float32, bits that do not depend on other rows, few steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import epan
from epan.kernels import Kernel, Polynomial
from epan.normalizations import Adaptive, _threshold
from epan.testing import inputs, oracles, tolerance

ORDERS = (1.0, 1.5, 2.0, 3.0, 5.0, 16.0, 16.5, 40.0, 1e3, 1e6)
LENGTHS = (1, 2, 31, 128, 1000, 4096, 65536)
# Long and short supports, tiny and huge heights; the others of SCORES differ from these by masks or signs.
CONTENTS = ("normal", "near", "constant", "sorted", "offset_up")
every_order = pytest.mark.parametrize("order", ORDERS)


def mixed(length: int, dtype: torch.dtype) -> Tensor:
    """Twenty rows, sparse and dense ones in turn, some with masked keys, one fully masked."""
    kinds = ("normal", "near", "wide", "constant", "one_huge", "ties", "minus_infinity", "sorted", "offset_up", "near")
    parts = [inputs.make_scores(kind, 2, length, dtype, seed=number) for number, kind in enumerate(kinds)]
    return torch.stack(parts, 1).flatten(0, 1)


def scores_for(rule: str, z: Tensor) -> Tensor:
    """Fixed scores are never above zero, and some rows are to have keys within reach."""
    return torch.where(torch.isfinite(z), -0.3 * z.abs(), z) if rule == "fixed" else z


@every_order
def test_float32_is_as_near_as_its_rounding(order: float) -> None:
    """Weights and thresholds in float32 of the very same scores in float64, for up to 65 536 keys."""
    kernel, rule = Polynomial(order), Adaptive()
    for length in LENGTHS:
        for content in CONTENTS[:3] if length > 5000 else CONTENTS:
            z = inputs.make_scores(content, 1 if length > 5000 else 3, length, torch.float32)
            allowed = torch.ones_like(z, dtype=torch.bool)
            answer = oracles.weights(z, allowed, kernel, rule)
            eps = tolerance.NOISE * torch.finfo(torch.float32).eps
            noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
            size = 1.0 + (z.double() - z.double().amax(-1, keepdim=True)).abs()
            moved = oracles.weights(z.double() + eps * size * noise, allowed, kernel, rule)
            width = tolerance.band(answer.weights, [moved.weights], torch.float32)
            # The last division leaves each weight with the rounding of its row's sum.
            width += tolerance.ROW_SUM[torch.float32] * tolerance.largest(answer.weights)
            # The threshold is the difference of the row's maximum and a number of the size of n.
            parts = torch.maximum(z.double().amax(-1).abs(), torch.tensor(order, dtype=torch.float64))
            slack = float(tolerance.boundary(parts, torch.float32).max())
            for leaf in (z, z.clone().requires_grad_()):
                weights, stats = rule.weights(leaf, None, kernel)
                label = f"{length} {content} scores"
                tolerance.assert_within(weights, answer.weights, band=width, label=f"weights of {label}")
                tolerance.assert_within(stats.threshold, answer.threshold, band=slack, label=f"threshold of {label}")


@pytest.mark.parametrize("length", [128, 1000, 4096, 65536])
@every_order
def test_long_rows_take_few_steps(order: float, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    newton = _threshold._newton

    def one_solve(x: Tensor, n: float | Tensor, start: Tensor | None = None, steps: int = 60) -> Tensor:
        taken.append(0)
        return newton(x, n, start, steps)

    for name in ("_height_step", "_log_step"):
        step = getattr(_threshold, name)

        def counted(*arguments: object, step: object = step) -> object:
            taken[-1] += 1
            return step(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(_threshold, name, counted)
    monkeypatch.setattr(_threshold, "_newton", one_solve)
    for content in inputs.SCORES:
        z = inputs.make_scores(content, 2, length, torch.float64)
        x = torch.where(z == -math.inf, z, z - z.amax(-1, keepdim=True))
        for form in (order, torch.tensor(order, dtype=torch.float64)):
            _threshold.solve_level(x, form)
    assert taken
    assert max(taken) <= 20
    # Without any the level would be where it started.
    assert max(taken) >= 2


@every_order
def test_one_step_is_exact_on_constant_rows(order: float) -> None:
    """c = L^{−1/n}, and s = n(1 − c), for any length: what Newton's method on f itself does not do."""
    for length in (1, 2, 31, 1000, 65536):
        for form in (order, torch.tensor(order, dtype=torch.float64)):
            level = _threshold._newton(torch.zeros(1, length, dtype=torch.float64), form, steps=1)
            lowest = torch.full_like(level, length ** (-1.0 / order))
            expected = -order * torch.expm1(-math.log(length) / torch.full_like(level, order))
            expected = expected if _threshold.level_is_log(form) else lowest
            width = tolerance.EXACT * max(1.0, tolerance.largest(expected))
            tolerance.assert_within(level, expected, band=width, label=f"{length} keys")


KERNELS: dict[str, Kernel] = {f"polynomial-{n:g}": Polynomial(n) for n in ORDERS}
KERNELS |= {"cosine": epan.Cosine(), "gaussian": epan.Gaussian()}
RULES = ("adaptive", "anchored", "fixed")
PAIRS = [(name, rule) for name in KERNELS for rule in RULES if (name, rule) != ("cosine", "adaptive")]


def results(z: Tensor, kernel: Kernel, rule: str, recorded: bool) -> Tensor:
    """Weights, or weights and gradients, of some rows."""
    if not recorded:
        return epan.attention_weights(z, kernel=kernel, normalization=rule).unsqueeze(0)
    leaf = z.clone().requires_grad_()
    weights = epan.attention_weights(leaf, kernel=kernel, normalization=rule)
    pull = torch.sin(torch.arange(z.shape[-1], dtype=z.dtype)).expand_as(z)
    return torch.stack((weights.detach(), torch.autograd.grad(weights, leaf, pull)[0]))


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_a_row_has_the_same_bits_alone_and_among_others(name: str, rule: str, recorded: bool) -> None:
    """Also where candidates are searched (128 keys and more), among rows that are and are not compacted."""
    kernel = KERNELS[name]
    for dtype in (torch.float32, torch.float64):
        for length in (1, 7, 32, 33, 100, 128, 129, 160, 1024):
            z = scores_for(rule, mixed(length, dtype))
            together = results(z, kernel, rule, recorded)
            order = torch.randperm(len(z), generator=torch.Generator().manual_seed(length))
            shuffled = results(z[order], kernel, rule, recorded)[:, order.argsort()]
            tolerance.assert_equal_bits(shuffled, together, f"{length} keys in another order of rows")
            for row in range(0, len(z), 3):
                alone = results(z[row : row + 1], kernel, rule, recorded)
                tolerance.assert_equal_bits(alone, together[:, row : row + 1], f"row {row} of {length} keys alone")


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_what_other_rows_hold_does_not_matter(name: str, rule: str, recorded: bool) -> None:
    """At any length and order: a later query must not change an earlier one, not even by rounding."""
    kernel = KERNELS[name]
    for length in (1, 7, 33, 100, 128, 129, 288, 1000):
        for dtype in (torch.float32, torch.float64):
            z = mixed(length, dtype)
            other = torch.where((torch.arange(len(z)) % 2 == 0).unsqueeze(-1), z, z.flip(0) * 0.01)
            first, second = (results(scores_for(rule, t), kernel, rule, recorded) for t in (z, other))
            tolerance.assert_equal_bits(second[:, ::2], first[:, ::2], f"{length} keys of {dtype}")


def test_the_rows_of_these_tests_are_sparse_and_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the two tests above would prove little."""
    found = []
    find = _threshold._Candidates.find

    def spied(z: Tensor, order: float) -> tuple[object, tuple[Tensor, ...]]:
        candidates, dense = find(z, order)
        found.append((0 if candidates is None else candidates.rows.numel(), sum(len(rows) for rows in dense)))
        return candidates, dense

    monkeypatch.setattr(_threshold._Candidates, "find", staticmethod(spied))
    for length in (128, 160, 1024):
        epan.attention_weights(mixed(length, torch.float32), kernel="biweight")
    assert len(found) == 3
    assert all(sparse >= 4 and dense >= 4 and sparse + dense == 20 for sparse, dense in found)
