"""Two ways to a target: token by token with the cache, or all at once with the truth as input."""

from __future__ import annotations

import torch

from epan.metrics import exact_match
from epan.models import LanguageModel
from epan.tasks import Batch

__all__ = ["greedy_exact_match"]


@torch.no_grad()
def greedy_exact_match(model: LanguageModel, batch: Batch) -> torch.Tensor:
    """Whether greedy decoding with the model's cache gives every scored token of a sequence.

    From the end of its prompt on, each scored token is the arg-max of the logits and is fed back; tokens without
    score (such as the query marks of associative recall) are given. Prompts of different lengths decode side by side.
    Decoding ends early when every sequence has a mistake.

    Greedy decoding is right everywhere exactly when, at every scored position, the arg-max given the *true* tokens
    before it is right: up to the first mistake both see the same tokens. So this equals exact match of the
    teacher-forced pass, except where rounding breaks a near tie of two logits differently in cached and uncached
    arithmetic.

    Parameters
    ----------
    model: its ``init_cache`` and ``step`` are used.
    batch: B sequences.

    Returns
    -------
    (B,) bool.
    """
    tokens, score_mask = batch.tokens, batch.score_mask
    total, length = tokens.shape
    columns = score_mask.any(dim=0).nonzero()
    start, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (length, length)
    start = max(1, start)
    predicted = tokens.clone()
    cache = model.init_cache(total)
    logits, cache = model.step(tokens[:, :start], cache)
    wrong = torch.zeros(total, dtype=torch.bool, device=tokens.device)
    for position in range(start, end):
        decoded = score_mask[:, position]
        choice = torch.where(decoded, logits[:, -1].argmax(dim=-1), tokens[:, position])
        predicted[:, position] = choice
        wrong |= choice != tokens[:, position]
        if position + 1 == end or bool(wrong.all()):
            break
        logits, cache = model.step(choice[:, None], cache)
    return exact_match(predicted, tokens, score_mask) & ~wrong
