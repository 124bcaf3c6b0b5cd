"""What every task of the catalogue must hold: sequences that the oracle solves, exact masks, reproducible streams."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from epan import tasks
from epan.errors import EpanError
from epan.tasks import Batch, Pieces, Stream, Task
from epan.tasks.base import BOS, EOS, PAD, SEP


@dataclass(frozen=True)
class Swap(Task):
    """A task from outside the package: the two symbols of the source, exchanged."""

    name = "swap"

    @property
    def alphabet(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    def generate(self, lengths: torch.Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, 3)
        two = torch.full_like(lengths, 2)
        return Pieces(source, lengths, source[:, :2].flip(1), two)

    def solve(self, prompt: Any) -> list[int]:
        return [prompt[2], prompt[1], EOS]

    @property
    def shortest(self) -> int:
        return 2


# RegBench has no prompts; its own tests say what it holds.
NAMES = [name for name in tasks.names() if isinstance(tasks.get(name), Task)]

# Every task with its defaults, and with options that reach its corners.
CASES: list[Task] = [
    *(tasks.get(name) for name in NAMES),
    tasks.get("reverse", symbols=2),
    tasks.get("mqmtar", letters=3, words=9, queries=1),
    tasks.get("mqmtar", letters=16, words=40, queries=7, vocabulary_seed=5),
    tasks.get("mqar", words=20),
    tasks.get("parity", running=True),
    tasks.get("flip-flop", write=0.45, read=0.45),
    tasks.get("flip-flop", write=0.1, read=0.0),
    tasks.get("local-count", symbols=2, repeats=2),
    tasks.get("n-back", symbols=3, n=5),
    Swap(),
]


def ranges(task: Task) -> list[int | tuple[int, int]]:
    """The shortest sequence, the training lengths, a wide range and a longer test length."""
    most = task.longest or 100
    return [task.shortest, task.train_lengths, (task.shortest, min(most, 40)), min(most, 96)]


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def head(batch: Batch, rows: int) -> Batch:
    return Batch(*(part[:rows] for part in batch))


def check(task: Task, batch: Batch) -> None:
    """Every statement about one batch that does not need to know the task."""
    tokens, loss, score, prompt_length, lengths = batch
    assert tokens.dtype == prompt_length.dtype == lengths.dtype == torch.int64
    assert loss.dtype == score.dtype == torch.bool
    assert tokens.shape == loss.shape == score.shape
    assert tokens.is_contiguous()
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < task.vocab_size
    assert not (score & ~loss).any(), "score outside loss"
    assert not (loss & (tokens == PAD)).any(), "loss on padding"
    assert score.any(dim=1).all(), "nothing to score"
    for row, first in enumerate(prompt_length.tolist()):
        ids = tokens[row].tolist()
        answer = task.solve(ids[:first])
        end = first + len(answer)
        assert score[row, first:end].tolist() == task.scored(answer)
        assert task.encode(task.decode(ids[1 : first - 1])) == task.encode(task.decode(ids[:first])) == ids[:first]
        assert ids[0] == BOS
        assert ids[first - 1] == SEP
        assert ids[first:end] == answer, task.decode(ids)
        assert answer[-1] == EOS
        assert all(token == PAD for token in ids[end:])
        assert not any(token <= EOS for token in ids[1 : first - 1] + answer[:-1]), "a special token inside"
        assert not loss[row, :first].any(), "loss on the prompt"
        assert not loss[row, end:].any(), "loss behind the end"


@pytest.mark.parametrize("task", CASES, ids=lambda task: json.dumps(task.config()))
def test_the_oracle_solves_every_sequence_and_the_masks_are_exact(task: Task) -> None:
    for lengths in ranges(task):
        for split in ("train", "validation", "test"):
            batch = task.sample(3, 7, 64, lengths, split=split)
            check(task, batch)
            low, high = lengths if isinstance(lengths, tuple) else (lengths, lengths)
            assert int(batch.lengths.min()) >= low
            assert int(batch.lengths.max()) <= high


@pytest.mark.parametrize("field", ["tokens", "loss_mask", "score_mask"])
def test_the_check_rejects_a_broken_batch(field: str) -> None:
    task = tasks.get("sort")
    batch = task.sample(0, 0, 8, (4, 9))
    check(task, batch)
    broken = getattr(batch, field).clone()
    if field == "tokens":
        place = int(batch.prompt_length[5])
        broken[5, place] = 4 + (broken[5, place] - 3) % task.symbols  # type: ignore[attr-defined]
    else:
        broken[5, 1] = True
    with pytest.raises(AssertionError):
        check(task, batch._replace(**{field: broken}))


# Which tokens of the target have loss and score, <eos> last.
PATTERNS = {
    "mqmtar": ([1] * 12 + [1], [0, 1, 1] * 4 + [0]),
    "mqar": ([0, 1] * 5 + [0], [0, 1] * 5 + [0]),
    "parity": ([1, 1], [1, 1]),
    "flip-flop": ([1, 1], [1, 1]),
}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_score_cover_what_the_definition_says(name: str) -> None:
    task = tasks.get(name)
    length = 5 if name == "mqar" else 40
    batch = task.sample(1, 0, 16, length)
    loss, score = PATTERNS.get(name, ([1] * (length + 1),) * 2)
    for row, first in enumerate(batch.prompt_length.tolist()):
        assert batch.loss_mask[row, first : first + len(loss)].tolist() == [bool(flag) for flag in loss]
        assert batch.score_mask[row, first : first + len(score)].tolist() == [bool(flag) for flag in score]
        assert int(batch.loss_mask[row].sum()) == sum(loss)
        assert int(batch.score_mask[row].sum()) == sum(score)


@pytest.mark.parametrize("task", CASES, ids=lambda task: json.dumps(task.config()))
def test_same_bits_whatever_was_sampled_before(task: Task) -> None:
    lengths = (task.shortest, min(task.longest or 40, 40))
    before = task.sample(11, 5, 32, lengths)
    torch.manual_seed(99)
    task.sample(12, 5, 3, lengths)
    task.sample(11, 6, 3, lengths, split="test")
    torch.rand(10)
    state = torch.get_rng_state()
    assert equal(before, replace(task).sample(11, 5, 32, lengths))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was touched"


@pytest.mark.parametrize("task", CASES, ids=lambda task: json.dumps(task.config()))
def test_a_sequence_depends_on_its_index_not_on_the_batch(task: Task) -> None:
    lengths = (task.shortest, min(task.longest or 40, 40))
    whole = task.sample(2, 4, 48, lengths)
    assert equal(head(whole, 16), task.sample(2, 4, 16, lengths))
    assert equal(Batch(*(part[20:48] for part in whole)), task.sample(2, 4, 28, lengths, first=20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("task", CASES, ids=lambda task: json.dumps(task.config()))
def test_same_bits_on_a_gpu(task: Task) -> None:
    for lengths in ranges(task):
        there = task.sample(3, 4, 16, lengths, device="cuda")
        assert there.tokens.is_cuda
        assert equal(task.sample(3, 4, 16, lengths), Batch(*(part.cpu() for part in there)))


@pytest.mark.parametrize("name", NAMES)
def test_seed_step_and_split_all_make_different_data(name: str) -> None:
    task = tasks.get(name)
    length = 32 if name == "mqar" else 64
    ways = [
        (seed, step, split)
        for seed in (0, 1, -1, 2**70)
        for step in (0, 1, 2)
        for split in ("train", "validation", "test")
    ]
    seen: Counter[tuple[int, ...]] = Counter()
    for seed, step, split in ways:
        seen.update({tuple(row) for row in task.sample(seed, step, 16, length, split=split).tokens.tolist()})
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_uniform(name: str) -> None:
    task = tasks.get(name)
    low, high = task.train_lengths
    drawn = torch.cat([task.sample(0, step, 512, (low, high)).lengths for step in range(12)])
    counts = torch.bincount(drawn - low, minlength=high - low + 1).double()
    expected = len(drawn) / (high - low + 1)
    # Chi square with up to 32 degrees of freedom exceeds 70 once in ten thousand.
    assert float(((counts - expected) ** 2 / expected).sum()) < 70


@pytest.mark.parametrize("task", CASES[:-1], ids=lambda task: json.dumps(task.config()))
def test_config_is_json_and_rebuilds_the_task(task: Task) -> None:
    assert tasks.get(**json.loads(json.dumps(task.config()))) == task
    assert tasks.get(json.loads(json.dumps(task.config()))) == task


@pytest.mark.parametrize("task", CASES, ids=lambda task: json.dumps(task.config()))
def test_a_pickled_task_makes_the_same_data(task: Task) -> None:
    assert task.vocab_size > 0  # fills the cache that must not get in the way
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert equal(again.sample(0, 0, 4, task.shortest), task.sample(0, 0, 4, task.shortest))


@pytest.mark.parametrize("name", NAMES)
def test_published_lengths_can_be_sampled(name: str) -> None:
    task = tasks.get(name)
    assert task.train_lengths == ((2, 8) if name == "mqar" else (32, 64))
    assert task.test_lengths[0] == task.train_lengths[1]
    assert list(task.test_lengths) == sorted(set(task.test_lengths))
    batch = task.sample(0, 0, 1, max(task.test_lengths), split="test")
    assert task.solve(batch.tokens[0, : int(batch.prompt_length)].tolist())[-1] == EOS


def test_test_lengths_of_the_published_tables() -> None:
    assert tasks.get("reverse").test_lengths == (64, 96, 128, 256, 512)
    assert tasks.get("sort").test_lengths == (64, 128, 256, 512)
    assert tasks.get("copy").test_lengths[-1] == 4096
    assert tasks.get("mqmtar").test_lengths[-1] == 65_536


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_shows_real_data(name: str) -> None:
    module = importlib.import_module(type(tasks.get(name)).__module__)
    result = doctest.testmod(module)
    assert result.attempted == 3
    assert result.failed == 0
    assert "<bos>" in str(inspect.getdoc(type(tasks.get(name))))


def test_decode() -> None:
    task = tasks.get("reverse", symbols=4)
    assert task.decode([1, 4, 7, 2, 7, 4, 3, 0, 0]) == "<bos> 0 3 <sep> 3 0 <eos>"
    assert task.decode(torch.tensor([0, 0])) == ""
    assert task.decode([0, 4]) == "<pad> 0"
    with pytest.raises(ValueError, match=r"No token of the task 'reverse'.*0 to 7"):
        task.decode([8])


def test_a_solver_does_not_accept_what_is_no_prompt() -> None:
    for task in CASES[:-1]:
        batch = task.sample(0, 0, 1, task.train_lengths)
        prompt = batch.tokens[0, : int(batch.prompt_length)].tolist()
        for wrong in ([], prompt[:-1], prompt[1:], [BOS, SEP], [BOS, task.vocab_size, SEP], [*prompt, *prompt]):
            with pytest.raises(ValueError, match="no prompt of the task"):
                task.solve(wrong)


def test_a_word_that_is_none_is_told() -> None:
    with pytest.raises(EpanError, match=r"No word of the task 'copy'\. Found: '7'\. Allowed: 0, 1, 2"):
        tasks.get("copy", symbols=3).encode("1 7")
    with pytest.raises(EpanError, match="k0, k1, k2, …, v511"):
        tasks.get("mqar").encode("<pad>")
