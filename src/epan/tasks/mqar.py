"""The MQAR task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EpanError
from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["MQAR"]


@dataclass(frozen=True)
class MQAR(Task):
    """Multi-query associative recall: each key once more, each time followed by its value.

    Half of the alphabet are keys, half are values. Source: L pairs ``key value``, keys and values each drawn without
    replacement, in random order. Target: ``key value`` for every key, in ascending order of the keys. The keys of the
    target are queries: given, without loss or score. Loss and score on the values; neither on <eos>, which follows
    the last query.

        >>> from epan import tasks
        >>> task = tasks.get("mqar")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=3).tokens[0]))
        <bos> k422 v309 k379 v20 k85 v339 <sep> k85 v339 k379 v20 k422 v309 <eos>

    The sources are in random order, so the ascending queries come in an order that is random relative to their
    source, as published, and yet the whole target is a function of the prompt.

    Parameters
    ----------
    words: size of the alphabet, keys and values together, even and at least 4; at most words / 2 pairs.

    Raises
    ------
    EpanError: if ``words`` is out of range or odd.

    Source: Arora et al. 2312.04927 (keys and values from two halves of the vocabulary, every key
    queried once, loss on the values). Published queries stand at power-law gaps among other tokens, here one after
    the other.
    """

    words: int = 1024

    name: ClassVar[str] = "mqar"
    unit: ClassVar[str] = "pairs"
    train_lengths: ClassVar[tuple[int, int]] = (2, 8)
    test_lengths: ClassVar[tuple[int, ...]] = (8, 16, 32, 64, 128, 256, 512)

    def __post_init__(self) -> None:
        self._at_least("words", 4)
        if self.words % 2:
            raise EpanError(
                "Option 'words' of the task 'mqar' is odd", found=self.words, fix="half are keys, half values"
            )

    @property
    def longest(self) -> int:
        return self.words // 2

    @property
    def alphabet(self) -> tuple[str, ...]:
        half = range(self.words // 2)
        return (*(f"k{key}" for key in half), *(f"v{value}" for value in half))

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        half = self.words // 2
        keys = stream.distinct("key", longest, half)
        values = half + stream.distinct("value", longest, half)
        inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
        # What stands behind a row's end sorts behind every key.
        order = torch.where(inside, keys, half).argsort(dim=1, stable=True)
        source = torch.stack((keys, values), dim=2).flatten(1)
        target = torch.stack((keys.gather(1, order), values.gather(1, order)), dim=2).flatten(1)
        answers = torch.arange(2 * longest, device=lengths.device)[None] % 2 == 1
        return Pieces(source, 2 * lengths, target, 2 * lengths, answers, answers, loss_on_end=False, score_on_end=False)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        source = self._source(prompt)
        memory = dict(zip(source[::2], source[1::2], strict=False))
        half = self.words // 2
        if len(source) != 2 * len(memory) or max(memory) >= half or min(memory.values()) < half:
            raise EpanError("These are no pairs of different keys and values", fix="key value key value …")
        return [TASK_TOKENS + token for key in sorted(memory) for token in (key, memory[key])] + [EOS]

    def scored(self, target: Sequence[int]) -> list[bool]:
        return [place % 2 == 1 and token != EOS for place, token in enumerate(target)]

    def sources(self, length: int) -> int:
        return math.perm(self.words // 2, length) ** 2
