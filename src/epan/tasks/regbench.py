"""RegBench: languages of random automata, learnt in context."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, final

import torch
from torch import Tensor

from ..errors import EpanError, unknown_name
from .automata import LETTERS, Automata, Walks, distinct, draw, minimal, walk
from .base import PAD, SPLITS, Batch, Sequences, Truth, checked_counts
from .random import Stream, without_waiting

__all__ = ["BAR", "FIRST", "HELD_OUT", "RegBench"]

# Tokens: <pad>, the separator, then the letters.
BAR, FIRST = 1, 2
_LETTERS = tuple("abcdefghijklmnopqr")
# Automata of the validation split and of the test split; they come before those of training.
HELD_OUT = 500
# Automata, and their sequences, that are made at a time.
_CHUNK = 4096
# Widths of training sequences are multiples of it, and one more.
_VECTOR = 8


@final
@dataclass(frozen=True)
class RegBench(Sequences):
    """Continue words of a language that the words before them show; each sequence has a language of its own.

    A language is that of a random automaton (:func:`epan.tasks.automata.draw`): minimised, and none is there twice, neither
    in a split nor in two of them. All of its words begin in its start state, and the next letter is uniform among those of
    the state. A sequence is 10 to 19 such words of 1 to 49 letters, with a separator between them: about 376 tokens, at most
    949. Loss on every token but the first; score on letters.

        >>> from epan import tasks
        >>> task = tasks.get("regbench", automata=2)
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=2, split="test").tokens[0]))
        i p o k f p o k p k p k | o k f a k p k f d p k f p o k p k

    Training data are fixed: one sequence for each of the first ``automata`` of training, so that a smaller set is the
    beginning of a larger one, and the order of an epoch is a permutation that the seed of the run decides. They are padded to
    the longest of the set (713 tokens of 40,000 sequences), the others to the longest that may be. Of the 500
    validation and the 500 test automata, sequence i belongs to number i mod 500, and its words depend on the seed.

    The nominal length L is the largest number of words: there are ⌊L/2⌋ + 1 to L, uniformly.

    Parameters
    ----------
    automata: training automata, and sequences of an epoch; at least 1.
    data_seed: of automata and training sequences.

    Raises
    ------
    EpanError: if an option is out of range.

    Source: Akyürek et al. 2401.12973, whose generator lets automata pass that are the same language.
    """

    automata: int = 1000
    data_seed: int = 0
    # Sequences of a step of training, of which a call may ask for a part.
    _batch: int | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    name: ClassVar[str] = "regbench"
    unit: ClassVar[str] = "words at most"
    train_lengths: ClassVar[tuple[int, int]] = (19, 19)
    test_lengths: ClassVar[tuple[int, ...]] = (19,)
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "tvd", "kl", "token_accuracy")

    def __post_init__(self) -> None:
        self._at_least("automata", 1)
        if isinstance(self.data_seed, bool) or not isinstance(self.data_seed, int):
            raise EpanError("Option 'data_seed' of the task 'regbench' is no integer", found=self.data_seed)

    @property
    def vocab_size(self) -> int:
        return FIRST + LETTERS

    def for_training(self, lengths: tuple[int, int] | None, batch: int) -> Self:
        made = dataclasses.replace(self)
        object.__setattr__(made, "_batch", batch)
        return made

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
        """Sequences ``first`` … ``first + batch - 1`` of a step, or of ``steps`` of them.

        Training: with n automata and B sequences of a step (:meth:`for_training`; else ``first + batch``), sequence i of step s
        is number sB + i of a stream in which every n sequences are each automaton once. The data set stays on the device after
        the first call, and nothing waits for it. Other splits: see the class.

        Raises
        ------
        EpanError: as :meth:`epan.tasks.Task.sample`.
        """
        asked = self._asked(seed, step, batch, lengths, split, first, steps)
        place = torch.device(device)
        if split == "train":
            data = _training_set(self.automata, self.data_seed, *asked.lengths, str(place))
            which = without_waiting(asked.training(self.automata, self._batch), place)
            tokens, nominal = data.tokens[which].long(), data.lengths[which]
        else:
            walks, nominal = self._held_out(asked)
            tokens, nominal = _tokens(walks.letters).to(place), nominal.to(place)
        predicted = tokens != PAD
        predicted[:, 0] = False
        return Batch(tokens, predicted, predicted & (tokens != BAR), torch.ones_like(nominal), nominal)

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
    ) -> Truth:
        """Uniform over the letters of the state in which each letter was drawn; separators are left out."""
        automata, states = self.states(seed, step, batch, lengths, split, first=first)
        legal = torch.zeros(*automata.letters.shape[:2], FIRST + LETTERS)
        # What is no edge goes to the padding, which is no letter.
        legal.scatter_(2, (automata.letters + FIRST) * (automata.letters >= 0), 1.0)
        legal[:, :, PAD] = 0
        exact = legal / legal.sum(2, keepdim=True).clamp(min=1)
        scored = states >= 0
        scored[:, 0] = False
        rows = torch.arange(len(states))[:, None]
        probabilities = exact[rows, states.clamp(min=0)] * scored[..., None]
        among = torch.arange(FIRST + LETTERS) >= FIRST
        return Truth(probabilities.to(device), scored.to(device), among.to(device))

    def states(
        self, seed: int, step: int, batch: int, lengths: int | tuple[int, int], split: str = "train", *, first: int = 0
    ) -> tuple[Automata, Tensor]:
        """The automata of the sequences that :meth:`sample` gives, and the state of each token, (B, T), −1 where none is."""
        asked = self._asked(seed, step, batch, lengths, split, first, 1)
        if split != "train":
            return self._automata_of(asked), self._held_out(asked)[0].states
        which = asked.training(self.automata, self._batch)
        data = _training_set(self.automata, self.data_seed, *asked.lengths, "cpu")
        return _population(self.data_seed, self.automata).rows(which + 2 * HELD_OUT), data.states[which].long()

    def automaton(self, number: int, split: str = "train") -> Automata:
        """One automaton of a split (A = 1).

        Raises
        ------
        EpanError: an unknown split, or a number that it does not have.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        count = self.automata if split == "train" else HELD_OUT
        if not 0 <= number < count:
            raise EpanError(f"The {split} split has no such automaton", found=number, allowed=f"0 to {count - 1}")
        place = _OFFSETS[split] + number
        return _population(self.data_seed, self.automata if split == "train" else 0).rows(slice(place, place + 1))

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """One sequence for people, such as ``a c a | a c``."""
        ids = [int(token) for token in tokens]
        while ids and ids[-1] == PAD:
            ids.pop()
        written = ("<pad>", "|", *_LETTERS)
        strange = [token for token in ids if not 0 <= token < len(written)]
        if strange:
            raise EpanError("No token of the task 'regbench'", found=strange[0], allowed=f"0 to {len(written) - 1}")
        return " ".join(written[token] for token in ids)

    # ------------------------------------------------------------------ which sequences

    def _asked(
        self, seed: int, step: int, batch: int, lengths: int | tuple[int, int], split: str, first: int, steps: int
    ) -> _Asked:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        span = self.check_lengths(lengths)
        seed, step, batch, first, steps = checked_counts(seed, step, batch, first, steps)
        return _Asked(seed, step, batch, first, steps, span, split)

    def _automata_of(self, asked: _Asked) -> Automata:
        which = torch.arange(asked.first, asked.first + asked.batch) % HELD_OUT
        return _population(self.data_seed, 0).rows(which.repeat(asked.steps) + _OFFSETS[asked.split])

    def _held_out(self, asked: _Asked) -> tuple[Walks, Tensor]:
        """Words and nominal lengths of validation or test sequences."""
        low, high = asked.lengths
        name = f"regbench {self.data_seed}"
        stream = Stream(name, asked.seed, asked.step, asked.split, asked.first, asked.batch, "cpu", asked.steps)
        nominal = stream.integers("length", 1, high - low + 1).squeeze(1).add_(low)
        return walk(self._automata_of(asked), nominal, high, stream), nominal


_OFFSETS = {"validation": 0, "test": HELD_OUT, "train": 2 * HELD_OUT}


class _Asked(NamedTuple):
    seed: int
    step: int
    batch: int
    first: int
    steps: int
    lengths: tuple[int, int]
    split: str

    def training(self, count: int, whole: int | None) -> Tensor:
        """The numbers of the training automata that are asked for, on the CPU."""
        whole = whole or self.first + self.batch
        steps = torch.arange(self.step, self.step + self.steps)[:, None]
        numbers = (steps * whole + torch.arange(self.first, self.first + self.batch)).flatten()
        epochs, places = numbers // count, numbers % count
        orders = {epoch: _order(self.seed, epoch, count) for epoch in epochs.unique().tolist()}
        return torch.cat([order[places[epochs == epoch]] for epoch, order in orders.items()])


class _Data(NamedTuple):
    """Training sequences: tokens and states (−1 where none is) of (n, T), nominal lengths (n,)."""

    tokens: Tensor
    states: Tensor
    lengths: Tensor


def _tokens(letters: Tensor) -> Tensor:
    """From letters, −1 between words and −2 behind the last one, to tokens."""
    return letters + FIRST


# ---------------------------------------------------------------------- made once, and kept

_Function = TypeVar("_Function", bound=Callable[..., Any])
_making = threading.RLock()


def _once(function: _Function) -> _Function:
    """As ``lru_cache`` without an end; runs that share a process do not make the same twice at a time."""
    cached = lru_cache(maxsize=None)(function)

    @wraps(function)
    def locked(*arguments: Any) -> Any:
        with _making:
            return cached(*arguments)

    return locked  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    """The permutation of an epoch."""
    stream = Stream("regbench order", seed, epoch, "train", 0, 1, "cpu")
    return stream.bits("order", count).argsort(dim=1, stable=True)[0]


@_once
def _population(data_seed: int, training: int) -> Automata:
    """The automata of all splits, held out ones first; each is the next one of a stream that equals none before it."""
    wanted, found = 2 * HELD_OUT + training, 0
    parts: list[Automata] = []
    while True:
        # About one in seventy has been there.
        missing = wanted - found
        for first in range(len(parts) * _CHUNK, len(parts) * _CHUNK + missing + missing // 50 + 1, _CHUNK):
            stream = Stream("regbench automata", data_seed, 0, "train", first, _CHUNK, "cpu")
            parts.append(minimal(draw(stream)))
        every = Automata(*(torch.cat(part) for part in zip(*parts, strict=True)))
        kept = distinct(every)
        found = len(kept)
        if found >= wanted:
            return every.rows(kept[:wanted])


@_once
def _training_set(count: int, data_seed: int, low: int, high: int, device: str) -> _Data:
    if device != "cpu":
        made = _training_set(count, data_seed, low, high, "cpu")
        there = _Data(made.tokens.to(device), made.states[:0], made.lengths.to(device))
        if there.tokens.is_cuda:
            # It is read on any stream from here on.
            torch.cuda.current_stream(there.tokens.device).synchronize()
        return there
    automata = _population(data_seed, count).rows(slice(2 * HELD_OUT, None))
    parts = []
    for first in range(0, count, _CHUNK):
        rows = automata.rows(slice(first, first + _CHUNK))
        stream = Stream("regbench", data_seed, 0, "train", first, len(rows.letters), "cpu")
        nominal = stream.integers("length", 1, high - low + 1).squeeze(1).add_(low)
        walks = walk(rows, nominal, high, stream)
        # The memory of a GPU holds eight times as many bytes as 64-bit integers.
        parts.append(_Data(_tokens(walks.letters).to(torch.uint8), walks.states.to(torch.int8), nominal))
    made = _Data(*(torch.cat(part) for part in zip(*parts, strict=True)))
    # A step has one width for all batches, and no sequence comes near 19 words of 49 letters.
    longest = int((made.tokens != PAD).sum(1).max())
    # Whole vectors of tokens that are read, which are all but the last.
    end = 1 + -(-(longest - 1) // _VECTOR) * _VECTOR
    return made._replace(tokens=made.tokens[:, :end].contiguous(), states=made.states[:, :end].contiguous())
