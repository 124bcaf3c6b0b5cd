"""How many test sequences also occur in training: for short ones it cannot be avoided, so it is measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from .base import Batch, Task

__all__ = ["Overlap", "overlap"]


class Overlap(NamedTuple):
    """What training and test have in common.

    Attributes
    ----------
    length: nominal length of the test sequences.
    train, test: how many sequences were compared.
    share: share of the test sequences whose prompt also occurs in training.
    repeated: share of the test sequences whose prompt already occurred earlier in the test.
    expected: expectation of ``share``, or None where the task has no simple one.
    """

    length: int
    train: int
    test: int
    share: float
    repeated: float
    expected: float | None


def overlap(
    task: Task,
    length: int,
    *,
    seed: int = 0,
    steps: int = 100,
    batch: int = 256,
    lengths: int | tuple[int, int] | None = None,
    test: int = 1000,
    test_seed: int | None = None,
    device: torch.device | str = "cpu",
) -> Overlap:
    r"""Draw a training stream and a test set, and count the prompts that are in both.

    With S equally likely sources and training lengths uniform over R values, ``length`` among them, the expectation
    is :math:`1 - (1 - 1/(RS))^{\text{steps} \cdot \text{batch}}`; it is 0 if no training sequence has this length.

    Parameters
    ----------
    task: the task.
    length: nominal length of the test sequences.
    seed, steps, batch, lengths: the training stream; lengths None for those of the task.
    test, test_seed: number and seed (None: ``seed``) of the test sequences, drawn as step 0 of the split "test".
    device: where the sequences are made and compared.

    Returns
    -------
    Overlap: the measured shares and the expectation.

    Raises
    ------
    EpanError: as ``task.sample``.
    """
    import torch

    span = task.train_lengths if lengths is None else lengths
    low, high = span if isinstance(span, tuple | list) else (span, span)
    tested = _fingerprints(
        task.sample(test_seed if test_seed is not None else seed, 0, test, length, device=device, split="test")
    )
    seen = torch.zeros_like(tested, dtype=torch.bool)
    for step in range(steps):
        seen |= torch.isin(tested, _fingerprints(task.sample(seed, step, batch, (low, high), device=device)))
    sources = task.sources(length)
    expected = None
    if sources is not None:
        # Division of integers: S may be far beyond the floats.
        hit = 1 / (sources * (high - low + 1)) if low <= length <= high else 0.0
        expected = -math.expm1(steps * batch * math.log1p(-hit))
    repeated = (test - len(tested.unique())) / test
    return Overlap(length, steps * batch, test, float(seen.double().mean()), repeated, expected)


def _fingerprints(batch: Batch) -> torch.Tensor:
    """64 bits per prompt, (B,) int64: two different prompts share them once in 2⁶⁴."""
    import torch

    from .random import mix

    column = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    marked = mix(batch.tokens + mix(column + 1))
    return torch.where(column < batch.prompt_length[:, None], marked, 0).sum(1)
