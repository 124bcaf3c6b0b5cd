"""Tests the generator of the dropped weights in Triton's interpreter; a process of its own, as that is chosen at import.

python tests/ops/interpreted_dropout.py
"""

from __future__ import annotations

import math

import interpreter  # noqa: F401  isort: skip (before Triton)

import torch
import triton
import triton.language as tl
from torch import Tensor

from epan.ops.triton.scores import kept

SIDE = 1024


@triton.jit
def draw(SEED, OUT, head, start, drop, N: tl.constexpr, T: tl.constexpr):
    """kept of N rows and N keys from ``start``, rows first."""
    place = tl.arange(0, N)
    found = kept(SEED, head, place, start, drop, N, T)
    if T:
        found = tl.trans(found)
    tl.store(OUT + place[:, None] * N + place[None, :], found)


def drawn(seed: int, head: int, drop: float, start: int = 0, turned: bool = False, side: int = SIDE) -> Tensor:
    out = torch.empty(side, side)
    draw[(1,)](torch.tensor(seed), out, head, start, drop, side, turned)
    return out


def standard(kept: Tensor, drop: float) -> Tensor:
    """Mean 0 and variance 1, if weights are dropped as often as they should be."""
    return ((kept > 0).double() - (1 - drop)) / math.sqrt(drop * (1 - drop))


def independent(x: Tensor, y: Tensor, most: float = 5.0) -> None:
    """Two standard matrices have no correlation beyond chance."""
    found = float((x * y).sum()) / math.sqrt(x.numel())
    assert abs(found) < most, found


def check(drop: float) -> None:
    first = drawn(5, 3, drop)
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / (1 - drop)).item()}
    x = standard(first, drop)
    independent(x, torch.ones_like(x))
    # Every query and every key on its own: 2,048 numbers that are normal.
    for sums in (x.sum(0), x.sum(1)):
        z = sums / math.sqrt(SIDE)
        assert z.abs().max() < 5
        assert 0.9 < z.std() < 1.1
    for lag in (1, 2, 3, 4, 8, 16, 32, 128, 256, 512):
        independent(x[lag:], x[:-lag])
        independent(x[:, lag:], x[:, :-lag])
        independent(x[lag:, lag:], x[:-lag, :-lag])
    # No query or key repeats another, and no pattern runs through all: the largest singular value is that of noise.
    # Where few are dropped, chance reaches 7 among half a million pairs; a query that repeats another would have 32.
    for pairs in (x @ x.T, x.T @ x):
        assert (pairs - pairs.diag().diag()).abs().max() / SIDE < 10 / math.sqrt(SIDE)
    assert torch.linalg.matrix_norm(x, 2) < 1.03 * 2 * math.sqrt(SIDE)
    for other in (drawn(6, 3, drop), drawn(5, 4, drop), drawn(5 + (1 << 40), 3, drop)):
        independent(x, standard(other, drop))


def agree() -> None:
    """The same draw whatever the tile and its orientation; all or nothing at the ends."""
    whole = drawn(5, 3, 0.3)
    assert torch.equal(drawn(5, 3, 0.3, turned=True), whole)
    assert torch.equal(drawn(5, 3, 0.3, start=256, side=64), whole[:64, 256:320])
    assert bool((drawn(5, 3, 0.0, side=64) == 1).all())
    assert bool((drawn(5, 3, 1.0, side=64) == 0).all())


if __name__ == "__main__":
    agree()
    for share in (0.05, 0.5):
        check(share)
    print("passed")
