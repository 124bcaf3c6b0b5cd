"""A model on test sequences of given lengths: exact match, token accuracy, loss, support."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from epan import tasks
from epan.data.text import Text
from epan.errors import EpanError
from epan.metrics import (
    DivergenceMeter,
    LikelihoodMeter,
    SupportMeter,
    allowed_keys,
    count_right,
    exact_match,
    next_token_loss,
    wilson_interval,
)
from epan.metrics.support import RowStats
from epan.models import LanguageModel, MemoryMosaicConfig, TransformerConfig
from epan.nn import Documents
from epan.tasks import Batch, Sequences, Task, Truth
from epan.training.config import RunConfig
from epan.training.decoding import greedy_exact_match
from epan.training.environment import device_name
from epan.training.progress import EvaluationInfo, Progress
from epan.training.stream import trim
from epan.training.text_evaluation import TextMeter

__all__ = ["GREEDY_LIMIT", "add_support", "evaluate", "lengths_to_test"]

# Sequences of more tokens than this are not decoded one by one unless that is asked for.
GREEDY_LIMIT = 160

# Training data of more tokens than this are not drawn again only to count which test sequences were among them.
COUNT_LIMIT = 1 << 22

_PRECISIONS = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def lengths_to_test(task: Sequences, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """The test lengths ``given``, or else those of the task that its options allow.

    Raises
    ------
    EpanError: one of ``given`` is a length that the task cannot have, or none of the task's own is left.
    """
    if given:
        for length in given:
            task.check_lengths(length)
            if isinstance(task, Text) and not task.windows(task.tested_split, length):
                raise task.too_short(task.tested_split, length)
        return tuple(given)
    longest = math.inf if task.longest is None else task.longest
    fitting = tuple(length for length in task.test_lengths if task.shortest <= length <= longest)
    if not fitting:
        raise EpanError(
            f"The options of the task {task.name!r} leave none of its test lengths",
            found=f"test lengths {', '.join(map(str, task.test_lengths))}",
            fix=f"give test lengths, e.g. evaluation.lengths=[{task.longest or task.shortest}]",
        )
    return fitting


def evaluate(
    model: LanguageModel,
    task: Sequences,
    lengths: Sequence[int],
    *,
    sequences: int = 1000,
    seed: int = 0,
    decoding: Literal["auto", "greedy", "teacher-forced"] = "auto",
    batch_tokens: int = 16384,
    split: str = "test",
    stats: bool = True,
    run: RunConfig | None = None,
    step: int = 0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """One record of kind ``eval`` per length.

    exact_match: share of sequences whose scored tokens are all right, with its 95 % Wilson interval (``_low``,
        ``_high``).
    token_accuracy: share of scored tokens that are right given the true tokens before them, whatever the decoding.
    loss: mean loss of the tokens with loss: the cross-entropy in nats, or the Fenchel–Young loss of the model's
        ``output_kernel``. With the latter also
    zero_probability: the share of those tokens that the model gives the probability 0.
    cross_entropy: mean −log p in nats; None where it is infinite, because zero_probability is not 0.
    cross_entropy_positive: the same over the tokens of positive probability alone; None without any.
    decoding: how exact match was found: ``greedy`` token by token, or ``teacher-forced`` in one pass (the same by
        ``greedy_exact_match``); ``auto`` is greedy for sequences of at most 160 tokens.
    accuracy, tvd, kl: of tasks whose tokens are drawn from distributions that are known (``task.truth``), against these: share
        of scored positions whose most probable token may come, mean total variation distance and Kullback–Leibler
        divergence (nats); ``by_position`` has the same in ranges of positions. Exact match is then None.
    support_size, density, empty_rows: as ``SupportMeter``, over the memories that grow with the sequence;
        ``per_layer`` has every memory. None and {} with ``stats=False``.
    overlap: the share of the test sequences, 0 to 1, whose prompts the ``step`` steps of the training ``run`` have
        shown. It is an expectation (``epan.tasks.expected_overlap``), or counted where a task has none and the training
        data are few; None where neither is known.
    seed, split, precision, device: what was tested, and in which arithmetic.

    Of text there are ``loss_per_byte``, ``bits_per_byte``, ``perplexity``, ``tokens``, ``bytes`` and ``loss_by_position``, a
    list of [first position, last position, loss], in place of exact match and overlap; ``sequences`` are
    windows of the training context, and longer ones are fewer, so that all lengths see the same text
    (:meth:`epan.data.Text.test_windows`); ``asked`` is how many were asked for.

    The test sequences are a function of (task, seed, length) alone: ``sequences=100`` tests the first 100 of
    ``sequences=1000``, and ``batch_tokens`` (most tokens of one forward pass) changes nothing but memory. Numbers
    follow the device and the autocast of the caller. The model is left in the mode it came in. ``should_stop`` is
    asked between batches; when it says yes, the lengths that are complete are returned.

    Raises
    ------
    EpanError: no length, a length below 1, less than one sequence, an unknown decoding, or one that the task does not have.
    """
    if not lengths:
        raise EpanError("There is no test length", fix="give at least one, e.g. lengths=[64, 128]")
    for name, value in (("length", min(lengths)), ("sequences", sequences), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise EpanError(f"The test needs a {name} of at least 1", found=value)
    if decoding not in ("auto", "greedy", "teacher-forced"):
        raise EpanError("Unknown decoding", found=decoding, allowed=["auto", "greedy", "teacher-forced"])
    decodes = "exact_match" in task.measures
    if decoding == "greedy" and not decodes:
        raise EpanError(
            f"A sequence of the task {task.name!r} has no target to decode",
            found=f"decoding={decoding}",
            fix="take decoding=teacher-forced, or auto",
        )
    progress = progress or Progress()
    training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    facts = {"seed": seed, "split": split, "precision": _precision(model), "device": device_name(_device(model))}
    try:
        for length in lengths:
            meter: _LengthMeter | TextMeter
            if isinstance(task, Text):
                meter = TextMeter(model, task, split, length, stats)
                starts = task.test_windows(split, length, sequences)
                count, batches = len(starts), _windows(task, starts, length, batch_tokens, split, _device(model))
            else:
                meter, count = _LengthMeter(model, stats, decoding, decodes), sequences
                batches = _test_batches(task, seed, length, sequences, batch_tokens, split, _device(model))
            for batch, truth in batches:
                if should_stop is not None and should_stop():
                    return results
                meter.add(batch, truth)
                progress.on_evaluation(EvaluationInfo(step, length, meter.sequences, count))
            results.append({"kind": "eval", "step": step, "length": length, **meter.result(), **facts})
            if isinstance(task, Text):
                results[-1]["asked"] = sequences
            else:
                results[-1]["overlap"] = _overlap(run, step, task, length, seed, sequences, split)
            progress.on_evaluation(EvaluationInfo(step, length, count, count, results[-1]))
    finally:
        model.train(training)
    return results


def add_support(
    model: LanguageModel, stats: Mapping[str, RowStats], batch: Batch, meter: SupportMeter | None = None
) -> SupportMeter:
    """Take the statistics of ``model(batch.tokens[:, :-1], return_stats=True)`` into ``meter`` (a new one if None)."""
    meter = meter or SupportMeter()
    length = batch.tokens.shape[1]
    # A sequence ends with its last token with loss; that token is predicted and asks nothing itself.
    ends = length - 1 - batch.loss_mask.flip(1).int().argmax(dim=1)
    valid = torch.arange(length - 1, device=ends.device) < ends[:, None]
    position = _position(model, batch.tokens[:, :-1])
    for name, row_stats in stats.items():
        allowed = _allowed(model, name, length - 1, ends.device)
        meter.add(name, row_stats, valid, allowed if position is None else allowed[position])
    return meter


def _position(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor | None:
    """Place of each token in its document; None for a model that knows no documents."""
    token = getattr(model.config, "document_token", None)
    documents = Documents.of(tokens, token)
    return None if documents is None else documents.position


def _allowed(model: LanguageModel, name: str, length: int, device: torch.device) -> torch.Tensor:
    config, kind = model.config, name.rsplit(".", 1)[-1]
    if not isinstance(config, MemoryMosaicConfig):
        local = isinstance(config, TransformerConfig) and int(name.split(".")[1]) < config.local_layers
        return _allowed_on(kind, length, None, config.local_window if local else None, 1, device)
    return _allowed_on(kind, length, config.size, config.short_window, config.skip, device)


@functools.cache
def _allowed_on(
    kind: str, length: int, size: int | None, window: int | None, skip: int, device: torch.device
) -> torch.Tensor:
    # Kept for good: a copy to a GPU would wait for it, and recorded steps read it where it is.
    return allowed_keys(kind, length, size=size, window=window, skip=skip).to(device)


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _precision(model: LanguageModel) -> str:
    kind = _device(model).type
    found = next(model.parameters()).dtype
    if torch.is_autocast_enabled(kind):
        found = torch.get_autocast_dtype(kind)
    return _PRECISIONS.get(found, str(found))


def _overlap(
    run: RunConfig | None, step: int, task: Sequences, length: int, seed: int, sequences: int, split: str
) -> float | None:
    # Of the training data themselves some were seen by choice, not by chance; and only prompts can be met again.
    if run is None or split == "train" or not isinstance(task, Task):
        return None
    span = run.lengths or task.train_lengths
    expected = tasks.expected_overlap(task, length, train=step * run.batch, lengths=span)
    if expected is not None:
        return expected
    width = task.sample(seed, 0, 1, max(length, span[1]), split=split).tokens.shape[1]
    if (step * run.batch + sequences) * width > COUNT_LIMIT:
        return None
    counted = tasks.overlap(
        task,
        length,
        seed=run.seed,
        steps=step,
        batch=run.batch,
        lengths=span,
        test=sequences,
        test_seed=seed,
        split=split,
    )
    return counted.share


def _test_batches(
    task: Sequences, seed: int, length: int, sequences: int, batch_tokens: int, split: str, device: torch.device
) -> Iterator[tuple[Batch, Truth | None]]:
    # A sequence depends on its number alone, so the batches may be as large as the memory allows.
    width = task.sample(seed, 0, 1, length, split=split).tokens.shape[1]
    rows = max(1, batch_tokens // width)
    for first in range(0, sequences, rows):
        count = min(rows, sequences - first)
        batch = trim(task.sample(seed, 0, count, length, device=device, split=split, first=first))
        truth, end = task.truth(seed, 0, count, length, device, split, first=first), batch.tokens.shape[1]
        if truth is not None:
            truth = Truth(truth.probabilities[:, :end], truth.scored[:, :end], truth.among)
        yield batch, truth


def _windows(
    task: Text, starts: torch.Tensor, length: int, batch_tokens: int, split: str, device: torch.device
) -> Iterator[tuple[Batch, Truth | None]]:
    for some in starts.split(max(1, batch_tokens // length)):
        yield task.batch_at(some, length, split, device), None


class _LengthMeter:
    """Sums over the batches of one length."""

    def __init__(self, model: LanguageModel, stats: bool, decoding: str, decodes: bool) -> None:
        self.model, self.stats, self.decoding, self.decodes = model, stats, decoding, decodes
        self.support = SupportMeter()
        self.divergence: DivergenceMeter | None = None
        self.sequences = self.exact = self.right = self.scored = self.loss_tokens = 0
        self.loss = 0.0
        self.likelihood = LikelihoodMeter(model.output_kernel)
        self.greedy = False

    @torch.no_grad()
    def add(self, batch: Batch, truth: Truth | None) -> None:
        tokens, inputs = batch.tokens, batch.tokens[:, :-1]
        short = self.decodes and tokens.shape[1] <= GREEDY_LIMIT
        greedy = self.decoding == "greedy" or (self.decoding == "auto" and short)
        if self.stats:
            logits, stats = self.model(inputs, return_stats=True)
            add_support(self.model, stats, batch, self.support)
        else:
            logits = self.model(inputs)
        predicted = torch.cat([tokens[:, :1], logits.argmax(dim=-1)], dim=1)
        right, scored = count_right(predicted, tokens, batch.score_mask)
        loss, loss_tokens = next_token_loss(logits, tokens, batch.loss_mask, self.model.output_kernel)
        self.likelihood.add(logits, tokens, batch.loss_mask)
        if truth is not None:
            self.divergence = self.divergence or DivergenceMeter()
            # The first token has no prediction, and is not scored.
            shifted = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
            self.divergence.add(shifted, truth.probabilities, truth.scored, truth.among)
        exact = greedy_exact_match(self.model, batch) if greedy else exact_match(predicted, tokens, batch.score_mask)
        self.greedy = greedy
        self.sequences += len(tokens)
        counts = torch.stack([exact.sum(), right, scored, loss_tokens]).tolist()
        self.exact, self.right = self.exact + counts[0], self.right + counts[1]
        self.scored, self.loss_tokens = self.scored + counts[2], self.loss_tokens + counts[3]
        self.loss += float(loss)

    def result(self) -> dict[str, Any]:
        low, high = wilson_interval(self.exact, self.sequences)
        exact = {
            "exact_match": self.exact / self.sequences,
            "exact_match_low": low,
            "exact_match_high": high,
        }
        known = self.divergence
        return {
            **(exact if self.decodes else dict.fromkeys(exact)),
            **(known.result() if known is not None else {}),
            "token_accuracy": self.right / max(1, self.scored),
            "loss": self.loss / max(1, self.loss_tokens),
            **self.likelihood.result(),
            "sequences": self.sequences,
            "decoding": "greedy" if self.greedy else "teacher-forced",
            **self.support.overall(),
            "per_layer": self.support.per_layer(),
            **({"by_position": known.by_position()} if known is not None else {}),
        }
