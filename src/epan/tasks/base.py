"""What a task is: sequences as a function of (seed, step, split), and an oracle that solves them."""

from __future__ import annotations

import dataclasses
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import EpanError, unknown_name
from .random import Stream

__all__ = ["BOS", "EOS", "PAD", "SEP", "SPLITS", "TASK_TOKENS", "Batch", "Pieces", "Sequences", "Task", "Truth"]

PAD, BOS, SEP, EOS = range(4)
TASK_TOKENS = 4  # the first token that belongs to the task itself
SPLITS = ("train", "validation", "test")
_SPECIAL = ("<pad>", "<bos>", "<sep>", "<eos>")


class Batch(NamedTuple):
    """Sequences ``<bos> source <sep> target <eos>``, padded on the right.

    Attributes
    ----------
    tokens: (B, T) int64; T has room for any sequence up to the longest length asked for (of a fixed set, for any of
        the set), so it never varies by chance.
    loss_mask: (B, T) bool; the token is predicted with loss, from the tokens before it.
    score_mask: (B, T) bool, inside ``loss_mask``; the token counts for exact match and token accuracy. Target tokens
        outside it are given while decoding.
    prompt_length: (B,) int64; index of the first target token. Everything before it is the prompt.
    lengths: (B,) int64; nominal length of each sequence.
    """

    tokens: Tensor
    loss_mask: Tensor
    score_mask: Tensor
    prompt_length: Tensor
    lengths: Tensor


class Pieces(NamedTuple):
    """Sources and targets before they are laid out.

    Attributes
    ----------
    source, target: (B, S) and (B, T) int64 task tokens, counted from 0; what stands behind a row's end is ignored.
    source_length, target_length: (B,) int64; ends of the rows.
    loss, score: bool, broadcastable to ``target``, or None for every token.
    loss_on_end, score_on_end: whether <eos> counts too.
    """

    source: Tensor
    source_length: Tensor
    target: Tensor
    target_length: Tensor
    loss: Tensor | None = None
    score: Tensor | None = None
    loss_on_end: bool = True
    score_on_end: bool = True


class Truth(NamedTuple):
    """The distribution from which each token was drawn, given all before it.

    Attributes
    ----------
    probabilities: (B, T, V) float32; of the token at t, which the model predicts at t − 1. Zero where not scored.
    scored: (B, T) bool; where predictions are compared with it.
    among: (V,) bool; the tokens that it is a distribution of. Of a prediction the others are left out, too.
    """

    probabilities: Tensor
    scored: Tensor
    among: Tensor


class Sequences(ABC):
    """What a model learns from: sequences of tokens as a function of (seed, step, split), whatever they stand for.

    A subclass is a frozen dataclass whose fields are its options. One whose sequences have a prompt and a target is a
    :class:`Task`.

    Attributes
    ----------
    name: the name under which it is found and reported.
    unit: what the nominal length counts.
    train_lengths: nominal lengths (shortest, longest) for training, drawn uniformly.
    test_lengths: nominal lengths at which length generalisation is measured.
    shortest: the least nominal length that makes a sequence.
    measures: what a test tells besides losses and support, the one that counts first.
    tested_split: the split on which a run is tested while it trains.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "source tokens"
    train_lengths: ClassVar[tuple[int, int]] = (32, 64)
    test_lengths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)
    measures: ClassVar[tuple[str, ...]] = ("exact_match", "token_accuracy")
    tested_split: ClassVar[str] = "test"

    @property
    def shortest(self) -> int:
        return 1

    @property
    def longest(self) -> int | None:
        """The greatest nominal length that makes a sequence, or None."""
        return None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def document_token(self) -> int | None:
        """The token that begins a document, where a model must read nothing across it; else None."""
        return None

    @property
    def data_hash(self) -> str | None:
        """SHA-256 of data that the options alone do not decide, such as files; None where they do."""
        return None

    @abstractmethod
    def sample(
        self,
        seed: int,
        step: int,
        batch: int,
        lengths: int | tuple[int, int],
        device: torch.device | str = "cpu",
        split: str = "train",
        *,
        first: int = 0,
        steps: int = 1,
    ) -> Batch:
        """Sequences ``first`` … ``first + batch - 1`` of a step, or of several, as :meth:`Task.sample` has them."""

    def for_training(self, lengths: tuple[int, int] | None, batch: int) -> Self:
        """The same, where it matters which lengths (None: its own) a run trains on and how many sequences a step has."""
        return self

    def truth(
        self,
        seed: int,
        step: int,
        batch: int,
        lengths: int | tuple[int, int],
        device: torch.device | str = "cpu",
        split: str = "train",
        *,
        first: int = 0,
    ) -> Truth | None:
        """How the tokens of :meth:`sample` with the same arguments were drawn; None where a target is right or wrong."""
        return None

    @abstractmethod
    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """One sequence for people, without the padding at its end."""

    def config(self) -> dict[str, Any]:
        """Name and options as plain JSON: ``get(**task.config()) == task``."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}  # type: ignore[arg-type]
        return {"name": self.name, **options}

    def check_lengths(self, lengths: int | tuple[int, int]) -> tuple[int, int]:
        """(shortest, longest) of ``lengths``; EpanError for what is no such pair, or a length the task cannot have."""
        pair = lengths if isinstance(lengths, tuple | list) else (lengths, lengths)
        if len(pair) != 2:
            raise EpanError("lengths is one length or (shortest, longest)", found=lengths, fix="e.g. lengths=(32, 64)")
        low, high = (_integer("length", length, None) for length in pair)
        bounds = f"at least {self.shortest}" if self.longest is None else f"{self.shortest} to {self.longest}"
        if low < self.shortest:
            raise EpanError(
                f"A sequence of the task {self.name!r} cannot have the length {low} (in {self.unit})",
                allowed=bounds,
                fix=f"ask for a length of at least {self.shortest}",
            )
        if self.longest is not None and high > self.longest:
            raise EpanError(
                f"A sequence of the task {self.name!r} cannot have the length {high} (in {self.unit})",
                allowed=bounds,
                fix=f"ask for a length of at most {self.longest}, or for a larger alphabet",
            )
        if low > high:
            raise EpanError("The shortest length exceeds the longest", found=lengths, fix=f"lengths=({high}, {low})")
        return low, high

    def _at_least(self, option: str, low: int, high: int | None = None) -> None:
        """Check that an option is an integer in its range."""
        value = getattr(self, option)
        wrong = isinstance(value, bool) or not isinstance(value, int)
        if wrong or value < low or (high is not None and value > high):
            allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
            raise EpanError(
                f"Option {option!r} of the task {self.name!r} is out of range", found=value, allowed=allowed
            )


@dataclass(frozen=True)
class Task(Sequences):
    """A task: :meth:`sample` draws sequences, :meth:`solve` is an independent oracle in plain Python.

    A subclass is one file: a frozen dataclass whose fields are the options, with ``name``, :attr:`alphabet`,
    :meth:`generate` and :meth:`solve`. Token ids are 0 <pad>, 1 <bos>, 2 <sep>, 3 <eos>, then the alphabet.

    See :class:`Sequences` for the rest.
    """

    @property
    @abstractmethod
    def alphabet(self) -> tuple[str, ...]:
        """How the task's own tokens are written; token ``4 + i`` is ``alphabet[i]``."""

    @abstractmethod
    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        """Sources and targets of nominal ``lengths`` (B,), none above ``longest``; without a loop over sequences."""

    @abstractmethod
    def solve(self, prompt: Sequence[int]) -> list[int]:
        """The target tokens that follow ``prompt`` (``<bos> source <sep>``), up to and including <eos>.

        Shares no code with :meth:`generate`; raises EpanError if ``prompt`` is no prompt of this task.
        """

    def scored(self, target: Sequence[int]) -> list[bool]:
        """Which tokens of a target, <eos> included, count for exact match; the others are given while decoding."""
        return [True] * len(target)

    def sources(self, length: int) -> int | None:
        """How many sources of this nominal length there are, if all are equally likely; else None."""
        return None

    @cached_property
    def vocab_size(self) -> int:
        return TASK_TOKENS + len(self.alphabet)

    def sample(
        self,
        seed: int,
        step: int,
        batch: int,
        lengths: int | tuple[int, int],
        device: torch.device | str = "cpu",
        split: str = "train",
        *,
        first: int = 0,
        steps: int = 1,
    ) -> Batch:
        """Sequences ``first`` … ``first + batch - 1`` of a step, or of several.

        Sequence i is a function of (options, seed, step, split, lengths, i) alone: the same bits on every device, in
        a batch of any size, whatever was sampled before. Different splits have different keys, so their numbers are
        unrelated; how many short sequences coincide all the same is measured by :func:`epan.tasks.overlap`.

        Parameters
        ----------
        seed: any integer.
        step: at least 0.
        batch: number of sequences, at least 1.
        lengths: nominal length, or (shortest, longest), both inclusive, drawn uniformly for each sequence.
        device: where the batch is made.
        split: "train", "validation" or "test".
        first: index of the first sequence; lets several processes share a step.
        steps: of so many steps, from ``step`` on, one after the other: ``steps · batch`` sequences, those that a call for
            each would give. On a GPU that costs little more than one step.

        Raises
        ------
        EpanError: for a length that the task cannot have, an unknown split, or a batch below 1.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        low, high = self.check_lengths(lengths)
        seed, step, batch, first, steps = checked_counts(seed, step, batch, first, steps)
        stream = Stream(self.name, seed, step, split, first, batch, device, steps)
        drawn = stream.integers("length", 1, high - low + 1).squeeze(1).add_(low)
        return _lay_out(self.generate(drawn, high, stream), drawn)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """One sequence for people, without the padding at its end, e.g. ``<bos> 3 1 <sep> 1 3 <eos>``."""
        ids = [int(token) for token in tokens]
        while ids and ids[-1] == PAD:
            ids.pop()
        written = _SPECIAL + self.alphabet
        strange = [token for token in ids if not 0 <= token < len(written)]
        if strange:
            raise EpanError(f"No token of the task {self.name!r}", found=strange[0], allowed=f"0 to {len(written) - 1}")
        return " ".join(written[token] for token in ids)

    def encode(self, text: str) -> list[int]:
        """The prompt ``<bos> source <sep>`` of a source as :meth:`decode` writes it; the outer two may be left out.

        Raises
        ------
        EpanError: a word that is none of the alphabet.
        """
        words = text.split()
        if words[:1] == [_SPECIAL[BOS]]:
            words = words[1:]
        if words[-1:] == [_SPECIAL[SEP]]:
            words = words[:-1]
        places = {word: TASK_TOKENS + place for place, word in enumerate(self.alphabet)}
        for word in words:
            if word not in places:
                shown = self.alphabet if len(self.alphabet) <= 40 else (*self.alphabet[:3], "…", self.alphabet[-1])
                raise EpanError(f"No word of the task {self.name!r}", found=repr(word), allowed=shown)
        return [BOS, *(places[word] for word in words), SEP]

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens after which nothing follows."""
        return (EOS,)

    def _source(self, prompt: Sequence[int]) -> list[int]:
        """The source of ``prompt``, counted from the task's first token."""
        ids = [int(token) for token in prompt]
        inner = [token - TASK_TOKENS for token in ids[1:-1]]
        size = self.vocab_size - TASK_TOKENS
        whole = len(ids) > 2 and ids[0] == BOS and ids[-1] == SEP
        if not whole or any(not 0 <= token < size for token in inner):
            raise EpanError(
                f"This is no prompt of the task {self.name!r}",
                found=ids if len(ids) < 40 else f"{len(ids)} tokens",
                allowed="<bos>, tokens of the task, <sep>",
                fix="pass batch.tokens[i, :batch.prompt_length[i]].tolist()",
            )
        return inner


def _integer(name: str, value: object, least: int | None) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        allowed = "an integer" if least is None else f"an integer of at least {least}"
        raise EpanError(f"{name} is out of range", found=value, allowed=allowed)
    return number


def checked_counts(seed: object, step: object, batch: object, first: object, steps: object) -> list[int]:
    """What says which sequences are wanted, as integers; EpanError for what is none or too small."""
    found = {"seed": (seed, None), "step": (step, 0), "batch": (batch, 1), "first": (first, 0), "steps": (steps, 1)}
    return [_integer(name, value, least) for name, (value, least) in found.items()]


def _lay_out(pieces: Pieces, lengths: Tensor) -> Batch:
    """``<bos> source <sep> target <eos>`` and the masks, padded to the width that the longest row can have."""
    (batch, source_width), target_width = pieces.source.shape, pieces.target.shape[1]
    width = source_width + target_width + 3
    device = lengths.device
    column = torch.arange(max(source_width, target_width), device=device)
    in_source = column[:source_width] < pieces.source_length[:, None]
    in_target = column[:target_width] < pieces.target_length[:, None]
    prompt_length = pieces.source_length + 2
    end = (prompt_length + pieces.target_length)[:, None]
    # One spare column takes what stands behind a row's end, and is cut off.
    place = torch.where(in_target, prompt_length[:, None] + column[:target_width], width)

    tokens = torch.full((batch, width + 1), PAD, device=device)
    tokens[:, 0] = BOS
    tokens[:, 1 : source_width + 1] = torch.where(in_source, pieces.source + TASK_TOKENS, PAD)
    tokens.scatter_(1, place, pieces.target + TASK_TOKENS)
    tokens.scatter_(1, prompt_length[:, None] - 1, SEP)
    tokens.scatter_(1, end, EOS)

    def mask(chosen: Tensor | None, on_end: bool) -> Tensor:
        flags = in_target if chosen is None else chosen.expand_as(in_target)
        laid = torch.zeros((batch, width + 1), dtype=torch.bool, device=device).scatter_(1, place, flags)
        return laid.scatter_(1, end, on_end)[:, :width].contiguous()

    loss_mask = mask(pieces.loss, pieces.loss_on_end)
    score_mask = mask(pieces.score, pieces.score_on_end)
    return Batch(tokens[:, :width].contiguous(), loss_mask, score_mask, prompt_length, lengths)
