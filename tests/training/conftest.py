"""Small runs that take a moment, and a model whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from epan.models import LanguageModel
from epan.tasks.base import EOS
from epan.training import RunConfig


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., RunConfig]:
    """A config of eight short steps; arguments replace its fields, ``options`` extends the model's."""
    return small.tiny


@pytest.fixture
def fingerprint() -> Callable[[Path], str]:
    """SHA-256 of all tensors of a checkpoint, weights and optimizer."""
    return small.fingerprint


class CopyOracle(LanguageModel):
    """Knows the copy task at one length; errs where the sum of the tokens so far is a multiple of ``trips``."""

    def __init__(self, length: int, vocab_size: int, trips: int = 0) -> None:
        super().__init__()
        self.config, self.length, self.vocab_size, self.trips = None, length, vocab_size, trips
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
        position = torch.arange(tokens.shape[1])
        source = (position - self.length).clamp(0, self.length)
        answer = tokens.gather(1, source.clamp(max=tokens.shape[1] - 1).expand_as(tokens))
        answer = torch.where(position >= 2 * self.length + 1, EOS, answer)
        if self.trips:
            wrong = tokens.cumsum(1) % self.trips == 0
            answer = torch.where(wrong, (answer + 1) % self.vocab_size, answer)
        logits = torch.nn.functional.one_hot(answer, self.vocab_size).float()
        return (logits, {}) if return_stats else logits

    def init_cache(self, batch_size: int, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
        return (torch.zeros(batch_size, 0, dtype=torch.long),)

    def step(self, tokens: torch.Tensor, cache: tuple[Any, ...]) -> tuple[torch.Tensor, tuple[Any, ...]]:
        seen = torch.cat([cache[0], tokens], dim=1)
        return self.forward(seen)[:, -tokens.shape[1] :], (seen,)

    def bandwidths(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def copy_oracle() -> type[CopyOracle]:
    return CopyOracle
