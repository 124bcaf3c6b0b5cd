"""How many test sequences also occur in training: for short ones it cannot be avoided, so it is measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from .base import Batch, Task

__all__ = ["Overlap", "expected_overlap", "overlap"]

# Of a longer range of training lengths it is not looked up which prompts they make.
_MOST_LENGTHS = 256


class Overlap(NamedTuple):
    """What training and test have in common.

    Attributes
    ----------
    length: nominal length of the test sequences.
    train, test: how many sequences were compared.
    share: share of the test sequences whose prompt also occurs in training.
    repeated: share of the test sequences whose prompt already occurred earlier in the test.
    expected: expectation of ``share``, or None where the task has no simple one (:func:`expected_overlap`).
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
    split: str = "test",
    device: torch.device | str = "cpu",
) -> Overlap:
    """Draw a training stream and a test set, and count the prompts that are in both.

    Parameters
    ----------
    task: the task.
    length: nominal length of the test sequences.
    seed, steps, batch, lengths: the training stream; lengths None for those of the task.
    test, test_seed: number and seed (None: ``seed``) of the test sequences, drawn as step 0 of ``split``.
    split: of the test sequences.
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
        task.sample(test_seed if test_seed is not None else seed, 0, test, length, device=device, split=split)
    )
    seen = torch.zeros_like(tested, dtype=torch.bool)
    for step in range(steps):
        seen |= torch.isin(tested, _fingerprints(task.sample(seed, step, batch, (low, high), device=device)))
    expected = expected_overlap(task, length, train=steps * batch, lengths=(low, high))
    repeated = (test - len(tested.unique())) / test
    return Overlap(length, steps * batch, test, float(seen.double().mean()), repeated, expected)


def expected_overlap(
    task: Task, length: int, *, train: int, lengths: int | tuple[int, int] | None = None
) -> float | None:
    r"""Expected share of test sequences of one length whose prompt is among ``train`` training sequences.

    With S equally likely sources and training lengths uniform over R values, ``length`` among them, it is
    :math:`1 - (1 - 1/(RS))^{\text{train}}`. It is 0 if no training prompt is as long as those of ``length``.

    Parameters
    ----------
    task: the task.
    length: nominal length of the test sequences.
    train: number of training sequences.
    lengths: training length, or (shortest, longest); None for those of the task.

    Returns
    -------
    float | None: None where the sources are not equally likely (``task.sources``).

    Raises
    ------
    EpanError: for a length that the task cannot have.
    """
    span = task.train_lengths if lengths is None else lengths
    low, high = span if isinstance(span, tuple | list) else (span, span)
    task.check_lengths(length)
    sources = task.sources(length)
    if sources is None:
        return None if train and _may_meet(task, length, low, high) else 0.0
    if not train or not low <= length <= high:
        return 0.0
    # Division of integers: S may be far beyond the floats.
    hit = 1 / (sources * (high - low + 1))
    return 1.0 if hit == 1 else -math.expm1(train * math.log1p(-hit))


def _may_meet(task: Task, length: int, low: int, high: int) -> bool:
    """False if prompts of ``length`` are longer or shorter than those of every length from ``low`` to ``high``."""
    if high - low >= _MOST_LENGTHS:
        return True
    ends = [set(task.sample(0, 0, 8, nominal).prompt_length.tolist()) for nominal in (length, *range(low, high + 1))]
    # One nominal length may make prompts of several lengths; then a few of them say nothing about the others.
    return any(len(found) > 1 for found in ends) or ends[0] in ends[1:]


def _fingerprints(batch: Batch) -> torch.Tensor:
    """64 bits per prompt, (B,) int64: two different prompts share them once in 2⁶⁴."""
    import torch

    from .random import mix

    column = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    marked = mix(batch.tokens + mix(column + 1))
    return torch.where(column < batch.prompt_length[:, None], marked, 0).sum(1)
