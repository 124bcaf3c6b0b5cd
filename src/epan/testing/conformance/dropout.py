"""Dropout on the weights: inverted scaling, repeatable, and the same keys dropped in both passes."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from .. import tolerance
from ..execution import Attention, run
from ..inputs import Case
from .agreement import answers, judge_gradients, judge_output

__all__ = ["drops_weights"]


def drops_weights(attention: Attention, case: Case, p: float = 0.4) -> None:
    """Each weight on its own is 0 with probability p, else divided by 1 − p; the same seed gives the same bits.

    p = 0 changes no bit, p = 1 gives zero, forward and backward. Every gradient is the formula's for the very weights
    that the forward pass dropped.
    """
    plain = case.build()
    # With the identity as values the output is the matrix of weights.
    identity = torch.eye(case.k_len, dtype=case.dtype).expand(*plain.key.shape[:2], case.k_len, case.k_len)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn((*plain.query.shape[:3], case.k_len), generator=generator, dtype=torch.float64).to(case.dtype)
    inputs = dataclasses.replace(plain, value=identity, grad=grad)
    kept = run(attention, inputs)
    # Said aloud: a case without dropout leaves the argument out.
    for name, tensor in run(functools.partial(attention, dropout_p=0.0), inputs).tensors().items():
        tolerance.assert_equal_bits(tensor, kept.tensors()[name], f"{name} with dropout_p=0")
    for name, tensor in run(attention, dataclasses.replace(inputs, dropout_p=1.0)).tensors().items():
        assert bool((tensor == 0).all()), f"{name} with dropout_p=1 is not zero"

    dropping = dataclasses.replace(inputs, dropout_p=p)
    torch.manual_seed(3)
    first = run(attention, dropping)
    torch.manual_seed(3)
    for name, tensor in run(attention, dropping).tensors().items():
        tolerance.assert_equal_bits(tensor, first.tensors()[name], f"{name} with the same seed")
    torch.manual_seed(4)
    assert not torch.equal(run(attention, dropping).out, first.out), "another seed drops the same keys"

    support, alive = kept.out > 0, first.out != 0
    assert bool((alive <= support).all()), "dropout gave weight to a key without"
    count = int(support.sum())
    share = int((support & ~alive).sum()) / max(1, count)
    slack = tolerance.SIGMAS * math.sqrt(p * (1 - p) / max(1, count))
    assert abs(share - p) <= slack, f"{share:.3f} of {count} weights were dropped, p = {p}"
    _assert_independent(support, alive, p)

    seen = dataclasses.replace(inputs, factor=alive.double() / (1 - p))
    answer, moved = answers(seen)
    judge_output(first.out, seen, answer, moved, label="weights with dropout")
    judge_gradients(first, seen, answer, moved, None)


def _assert_independent(support: Tensor, alive: Tensor, p: float) -> None:
    """Fails if weights of two batch entries, heads, queries or keys share their fate more often than by chance."""
    chance = p * p + (1 - p) * (1 - p)
    for dim, place in enumerate(("batch entries", "heads", "queries", "keys")):
        half = support.shape[dim] // 2
        first = torch.arange(half)
        # Neighbours, and the first half beside the second: query heads share key heads in either order.
        for a, b in ((2 * first, 2 * first + 1), (first, first + half)):
            pairs = support.index_select(dim, a) & support.index_select(dim, b)
            same = alive.index_select(dim, a) == alive.index_select(dim, b)
            count = int(pairs.sum())
            share = int((same & pairs).sum()) / count if count else chance
            slack = tolerance.SIGMAS * math.sqrt(chance * (1 - chance) / max(1, count))
            assert abs(share - chance) <= slack, f"{place} share {share:.3f} of what is dropped, by chance {chance:.3f}"
