"""The next-token loss: alignment, mask, accumulator."""

from __future__ import annotations

import entmax
import pytest
import torch

import epan
from epan.metrics import next_token_loss, target_probabilities


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 7, (3, 5), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    return logits, tokens, mask


def test_loss_is_the_sum_over_masked_targets_of_the_logits_before_them() -> None:
    logits, tokens, mask = example()
    expected = 0.0
    for row, column in [(0, 2), (0, 3), (1, 1), (1, 4)]:
        expected -= float(logits[row, column - 1].log_softmax(0)[tokens[row, column]])
    total, count = next_token_loss(logits, tokens, mask)
    # The first token of row 1 is in the mask, but nothing predicts it.
    assert int(count) == 4
    assert float(total) == pytest.approx(expected, rel=1e-12)


def test_logits_of_the_last_token_are_not_read() -> None:
    logits, tokens, mask = example()
    longer = torch.cat([logits, torch.full((3, 1, 7), torch.nan)], dim=1)
    assert torch.equal(next_token_loss(longer, tokens, mask)[0], next_token_loss(logits, tokens, mask)[0])


def test_16_bit_logits_are_summed_in_float32() -> None:
    logits, tokens, mask = example()
    total, _ = next_token_loss(logits.bfloat16(), tokens, mask)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(next_token_loss(logits.bfloat16().double(), tokens, mask)[0]), rel=1e-5)


def test_no_loss_token_gives_zero() -> None:
    logits, tokens, mask = example()
    total, count = next_token_loss(logits.requires_grad_(), tokens, torch.zeros_like(mask))
    assert (float(total.detach()), int(count)) == (0.0, 0)
    total.backward()
    assert not logits.grad.any()


def test_a_kernel_gives_its_fenchel_young_loss() -> None:
    logits, tokens, mask = example()
    expected = 0.0
    for row, column in [(0, 2), (0, 3), (1, 1), (1, 4)]:
        target = tokens[row, column : column + 1]
        expected += float(entmax.entmax15_loss(logits[row, column - 1 : column], target))
    total, count = next_token_loss(logits, tokens, mask, epan.Biweight())
    assert int(count) == 4
    assert float(total) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(
        next_token_loss(logits, tokens, mask, epan.Gaussian())[0], next_token_loss(logits, tokens, mask)[0]
    )
    empty, none = next_token_loss(logits, tokens, torch.zeros_like(mask), epan.Biweight())
    assert (float(empty), int(none)) == (0.0, 0)


def test_target_probabilities_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epan.metrics.loss._PIECE", 14)
    logits, tokens, mask = example()
    chances = target_probabilities(logits, tokens, mask, epan.Epanechnikov())
    pairs = [(0, 2), (0, 3), (1, 1), (1, 4)]
    expected = [entmax.sparsemax(logits[row, column - 1], dim=-1)[tokens[row, column]] for row, column in pairs]
    assert chances.tolist() == pytest.approx([float(value) for value in expected], abs=1e-12)
    assert (chances == 0).any()
