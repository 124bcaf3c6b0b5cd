"""Text as training data: windows of a corpus, each once an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from ..errors import EpanError, unknown_name
from ..tasks.base import SPLITS, Batch, Sequences
from ..tasks.random import without_waiting
from .building import Request, Tell
from .corpus import Corpus, open_corpus
from .order import permuted, shift
from .tokenizing import Tokenizer

__all__ = ["Text"]

DOCUMENTS = ("joined", "separate")


@final
@dataclass(frozen=True)
class Text(Sequences):
    """Windows of ``context + 1`` tokens, of which all but the first are predicted.

    The training text is a ring of n tokens, cut into ⌊n / context⌋ windows at another place in each epoch; each comes once an
    epoch, in an order of its own (:func:`epan.data.order.permuted`), as a function of (seed, step, number in the step). The
    other splits are cut from their start, in order.

    Parameters
    ----------
    path, tokenizer, split, validation, test, field, errors, limit: as :class:`epan.data.building.Request`; ``validation`` and
        ``test`` may be one name or several.
    context: tokens of a window; a run's ``lengths``, where given, stand above it.
    documents: what a window that reaches over the end of a document shows: "joined", all of it, or "separate", which also asks
        the model to read nothing across: attention stays in a document, and leaky averages begin anew.

    Raises
    ------
    EpanError: for options that do not exist; text is looked at when it is first needed, and what is wrong told then.
    """

    name: ClassVar[str] = "text"
    unit: ClassVar[str] = "tokens"
    tested_split: ClassVar[str] = "validation"
    measures: ClassVar[tuple[str, ...]] = ("token_accuracy",)

    path: str = ""
    tokenizer: str | None = None
    context: int = 256
    documents: str = "joined"
    split: str = "auto"
    validation: str | Sequence[str] = ()
    test: str | Sequence[str] = ()
    field: str = "text"
    errors: str = "strict"
    limit: int | None = None
    # Sequences of a step of training, of which a call may ask for a part.
    _batch: int | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise EpanError(
                "The text is missing", allowed="a file, a folder, a glob, or hf:NAME for a data set of the Hugging Face hub",
                fix="epan train --text PATH",
            )  # fmt: skip
        if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context < 1:
            raise EpanError(
                "Option 'context' of the text is out of range", found=self.context, allowed="an integer of at least 1"
            )
        if self.documents not in DOCUMENTS:
            raise unknown_name("way to take documents", self.documents, DOCUMENTS)
        for name in ("validation", "test"):
            value = getattr(self, name)
            object.__setattr__(self, name, [value] if isinstance(value, str) else list(value))
        self.request()

    def request(self) -> Request:
        """Which text, apart from how it is cut."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(Request)}
        return Request(**{**values, "validation": tuple(self.validation), "test": tuple(self.test)})

    @cached_property
    def corpus(self) -> Corpus:
        """The tokens; they are built here if they are not there yet."""
        return open_corpus(self.request())

    def build(self, tell: Tell | None = None) -> Corpus:
        """The tokens, and ``tell`` is given how their building goes on, as by :func:`epan.data.build`."""
        if "corpus" not in self.__dict__:
            self.__dict__["corpus"] = open_corpus(self.request(), tell=tell)
        return self.corpus

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        return self.corpus.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.corpus.tokenizer.vocab_size

    @property
    def document_token(self) -> int | None:
        return self.corpus.tokenizer.document if self.documents == "separate" else None

    @property
    def data_hash(self) -> str:
        return self.corpus.hash

    @property
    def longest(self) -> int:
        """The longest window that any split has."""
        return max(self.corpus.count(split) for split in SPLITS) - 1

    @property
    def train_lengths(self) -> tuple[int, int]:  # type: ignore[override]
        return self.context, self.context

    @property
    def test_lengths(self) -> tuple[int, ...]:  # type: ignore[override]
        """One, two, four and eight times the context, as far as the validation text has such windows."""
        wanted = [self.context * factor for factor in (1, 2, 4, 8)]
        return tuple(length for length in wanted if self.windows("validation", length)) or (self.context,)

    def for_training(self, lengths: tuple[int, int] | None, batch: int) -> Self:
        span = self.train_lengths if lengths is None else lengths
        if span[0] != span[1]:
            raise EpanError(
                "All windows of a text are of one length",
                found=f"lengths {list(span)}",
                fix=f"lengths=[{span[1]}, {span[1]}]",
            )
        made = dataclasses.replace(self, context=span[1])
        object.__setattr__(made, "_batch", batch)
        if "corpus" in self.__dict__:
            made.__dict__["corpus"] = self.corpus
        return made

    def windows(self, split: str, length: int) -> int:
        """How many windows of ``length`` tokens, and one more, a split has."""
        count = self.corpus.count(split)
        return count // length if split == "train" and count > length else max(0, count - 1) // length

    def test_windows(self, split: str, length: int, sequences: int) -> Tensor:
        """Where the windows begin on which a model is tested, (number,) int64.

        They cover the same text whatever their length: blocks of eight contexts, evenly spaced in the split, are cut into
        windows; where a length does not divide a block, windows are evenly spaced themselves.

        Parameters
        ----------
        sequences: windows of one context at most, rounded up to whole blocks; longer windows are fewer.
        """
        block = 8 * self.context
        if block % length or not self.windows(split, block):
            block = length
        there = (self.corpus.count(split) - 1) // block
        if not there:
            raise self.too_short(split, length)
        wanted = min(there, -(-sequences * self.context // block))
        starts = torch.arange(wanted) * there // wanted * block
        return (starts[:, None] + torch.arange(0, block, length)).flatten()

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
        """Windows ``first`` … ``first + batch - 1`` of a step, or of ``steps`` of them; see :meth:`epan.tasks.Task.sample`.

        Raises
        ------
        EpanError: an unknown split, a length that varies, or one that the split has no window of.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        low, length = (
            self.check_lengths(lengths)
            if split == "train"
            else (lengths, lengths)
            if isinstance(lengths, int)
            else lengths
        )
        if low != length:
            raise EpanError("All windows of a text are of one length", found=lengths)
        if not self.windows(split, length):
            raise self.too_short(split, length)
        whole = self._batch or first + batch
        numbers = (torch.arange(step, step + steps)[:, None] * whole + torch.arange(first, first + batch)).flatten()
        return self.batch_at(self._starts(numbers, seed, split, length), length, split, device)

    def too_short(self, split: str, length: int) -> EpanError:
        """The error for a split without a window of that length."""
        count = self.corpus.count(split)
        return EpanError(
            f"The {split} text is too short for a window of {length:,} tokens and one more",
            found=f"{count:,} tokens",
            fix="take shorter windows" if count > 1 else "hold out more: split, or validation and test",
        )

    def _starts(self, numbers: Tensor, seed: int, split: str, length: int) -> Tensor:
        """Where the windows with these numbers begin."""
        windows = self.windows(split, length)
        if split != "train":
            return numbers % windows * length
        epoch, window = permuted(numbers, windows, seed)
        count = self.corpus.count(split)
        return (shift(epoch, count, seed) + window * length) % count

    def batch_at(self, starts: Tensor, length: int, split: str, device: torch.device | str = "cpu") -> Batch:
        """The windows that begin at ``starts``, (B,) int64 on the CPU."""
        place, rows = torch.device(device), len(starts)
        starts = without_waiting(starts, place)
        places = starts[:, None] + torch.arange(length + 1, device=place)
        tokens = self.corpus.read(split, places % self.corpus.count(split))
        predicted = torch.ones_like(tokens, dtype=torch.bool)
        predicted[:, 0] = False
        ends = torch.full((rows,), length, device=place)
        return Batch(tokens, predicted, predicted, torch.ones_like(ends), ends)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of one sequence."""
        return self.text_tokenizer.decode([int(token) for token in tokens])
