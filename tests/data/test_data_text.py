"""Windows of text: each once an epoch whatever the step and the process, and the text that they should show."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from epan.data import Text
from epan.data.order import permuted
from epan.errors import EpanError
from epan.training.stream import micro_batches


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 4099])
def test_an_order_is_a_permutation(count: int) -> None:
    epoch, window = permuted(torch.arange(3 * count), count, seed=5)
    assert epoch.tolist() == [number // count for number in range(3 * count)]
    for part in window.split(count):
        assert part.sort().values.tolist() == list(range(count))


def test_orders_differ_and_look_like_chance() -> None:
    count = 2000
    _, window = permuted(torch.arange(2 * count), count, seed=0)
    first, second = window.split(count)
    other = permuted(torch.arange(count), count, seed=1)[1]
    for one, two in ((first, second), (first, other), (first, torch.arange(count))):
        # Of two unrelated orders about one place agrees, and ranks have no correlation (standard deviation 0.022).
        assert int((one == two).sum()) < 8
        assert abs(float(torch.corrcoef(torch.stack([one, two]).double())[0, 1])) < 0.1
    steps = (first[1:] - first[:-1]).double().abs().mean() / count
    assert 0.3 < float(steps) < 0.37


@pytest.fixture
def text(books: Callable[..., Path]) -> Text:
    return Text(str(books(12, 300)), context=50, split="every:6")


def stream(text: Text, split: str = "train") -> list[int]:
    return text.corpus.read(split, torch.arange(text.corpus.count(split))).tolist()


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (2, 2)])
def test_every_window_comes_once_an_epoch(text: Text, world: int, parts: int) -> None:
    """Each token of the ring is predicted once an epoch, up to the few that no window has room for."""
    run = text.for_training(None, batch=4)
    ring, windows = stream(text), text.windows("train", 50)
    assert windows == len(ring) // 50
    rows: list[tuple[int, ...]] = []
    for step in range(-(-2 * windows // 4)):
        for rank in range(world):
            for part in micro_batches(run, 3, step, 4, (50, 50), parts=parts, rank=rank, world=world):
                rows += [tuple(row) for row in part.tokens.tolist()]
    assert len(rows[0]) == 51
    first, second = rows[:windows], rows[windows : 2 * windows]
    for epoch in (first, second):
        assert len(set(epoch)) == windows
        seen = Counter(token for row in epoch for token in row[1:])
        assert sum((Counter(ring) - seen).values()) == len(ring) - 50 * windows
        assert not seen - Counter(ring)
    # Another cut, too: hardly a window is the same.
    assert len(set(first) & set(second)) < 3
    doubled = ring + ring[:51]
    text_of_ring = ",".join(map(str, doubled))
    assert all(",".join(map(str, row)) in text_of_ring for row in first[:5])


def test_a_step_depends_on_nothing_else(text: Text) -> None:
    run = text.for_training((50, 50), batch=6)
    whole = run.sample(1, 4, 6, 50).tokens
    assert torch.equal(run.sample(1, 4, 2, 50, first=3).tokens, whole[3:5])
    assert torch.equal(run.sample(1, 3, 6, 50, steps=3).tokens[6:12], whole)
    assert not torch.equal(run.sample(2, 4, 6, 50).tokens, whole)
    assert torch.equal(pickle.loads(pickle.dumps(run)).sample(1, 4, 6, 50).tokens, whole)


def test_what_a_batch_holds(text: Text) -> None:
    batch = text.sample(0, 0, 3, 50)
    assert batch.tokens.shape == (3, 51)
    assert batch.tokens.dtype == torch.int64
    assert not batch.loss_mask[:, 0].any()
    assert batch.loss_mask[:, 1:].all()
    assert text.vocab_size == 257
    assert int(batch.tokens.max()) < 257


def test_test_windows_are_the_same_text_at_every_length(text: Text) -> None:
    ids = stream(text, "validation")
    shown = {}
    for length in (50, 100, 200, 400):
        starts = text.test_windows("validation", length, 1000)
        batch = text.batch_at(starts, length, "validation")
        shown[length] = batch.tokens[:, 1:].flatten().tolist()
        assert batch.tokens[0].tolist() == ids[: length + 1]
    assert all(tokens == shown[50] for tokens in shown.values())
    blocks = (len(ids) - 1) // 400
    assert shown[50] == ids[1 : 400 * blocks + 1]
    # Fewer: whole blocks, from all of the text.
    few = text.test_windows("validation", 50, 9)
    assert len(few) == 16
    assert few[8] == 2 * 400 * blocks // 4 or few[8] == blocks // 2 * 400
    assert text.test_lengths == (50, 100, 200, 400)


def test_many_tokens_need_four_bytes(books: Callable[..., Path], tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="needs the extra [text]")
    inner = library.Tokenizer(library.models.WordLevel({"the": 70_000, "[UNK]": 40_000}, unk_token="[UNK]"))
    inner.pre_tokenizer = library.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "t.json"))
    found = Text(str(books()), tokenizer=str(tmp_path / "t.json"), context=8)
    assert found.corpus.manifest["bytes_per_token"] == 4
    assert {40_000, 70_000} <= set(stream(found)) <= {40_000, 70_000, 70_001}


def test_large_tokens_of_two_bytes(books: Callable[..., Path], tmp_path: Path) -> None:
    """Tokens from 32,768 on, which a signed number of two bytes has no room for."""
    library = pytest.importorskip("tokenizers", reason="needs the extra [text]")
    inner = library.Tokenizer(library.models.WordLevel({"the": 65_000, "[UNK]": 40_000}, unk_token="[UNK]"))
    inner.pre_tokenizer = library.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "t.json"))
    found = Text(str(books()), tokenizer=str(tmp_path / "t.json"), context=8)
    assert found.corpus.manifest["bytes_per_token"] == 2
    assert {40_000, 65_000} <= set(stream(found)) <= {40_000, 65_000, 65_001}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "--text PATH"),
        ({"documents": "apart"}, "Allowed: joined, separate"),
        ({"context": 0}, "context"),
        ({"tokenizer": "gpt2"}, "hf:gpt2"),
        ({"errors": "ignore"}, "strict, replace"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(EpanError, match=message):
        Text(**{"path": "somewhere", **options})  # type: ignore[arg-type]


def test_lengths_that_do_not_fit(text: Text) -> None:
    with pytest.raises(EpanError, match="of one length"):
        text.sample(0, 0, 2, (20, 30))
    with pytest.raises(EpanError, match="of one length"):
        text.for_training((20, 30), 4)
    with pytest.raises(EpanError, match="too short for a window of 100,000"):
        text.sample(0, 0, 2, 100_000, split="test")
    with pytest.raises(EpanError, match="hold out more"):
        Text(text.path, split="none").sample(0, 0, 1, 10, split="test")
