"""Generation: the distribution that tokens are drawn from, the tokens, and their text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import entmax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import epan
from epan.errors import EpanError
from epan.models import LanguageModel, TextStream, build
from epan.models.generation import next_distribution


class Table(LanguageModel):
    """The logits after a token are a row of a table; remembers what it was given, and in which mode."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(rows)
        self.pieces: list[list[int]] = []
        self.modes: set[bool] = set()

    def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
        return self.rows[tokens]

    def init_cache(self, batch_size: int, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
        return (0,)

    def step(self, tokens: torch.Tensor, cache: tuple[Any, ...]) -> tuple[torch.Tensor, tuple[Any, ...]]:
        self.pieces.append(tokens[0].tolist())
        self.modes.add(self.training)
        return self.rows[tokens], (cache[0] + tokens.shape[1],)

    def bandwidths(self) -> dict[str, torch.Tensor]:
        return {}


LOGITS = torch.tensor([0.4, 1.9, -math.inf, 1.2, 0.9], dtype=torch.float64)


def test_the_distribution_is_that_of_the_kernel_at_a_temperature() -> None:
    for kernel, function in (
        ("gaussian", torch.softmax),
        ("epanechnikov", entmax.sparsemax),
        ("biweight", entmax.entmax15),
    ):
        for temperature in (0.5, 1.0, 3.0):
            found = next_distribution(LOGITS.float(), kernel=kernel, temperature=temperature)
            expected = function(LOGITS.float().double().clamp(min=-1e9) / temperature, dim=-1)
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert next_distribution(LOGITS, temperature=0).tolist() == [0, 1, 0, 0, 0]
    assert next_distribution(LOGITS, temperature=1e-300).tolist() == [0, 1, 0, 0, 0]


def test_only_the_likeliest_tokens_are_kept() -> None:
    p = torch.softmax(LOGITS, 0)
    two = torch.tensor([0, p[1], 0, p[3], 0])
    assert torch.allclose(next_distribution(LOGITS, top_k=2), two / two.sum(), rtol=0, atol=1e-12)
    assert torch.allclose(next_distribution(LOGITS, top_k=9), p, rtol=0, atol=1e-12)
    for share, kept in ((1e-9, 1), (float(p[1]) - 1e-9, 1), (float(p[1]) + 1e-9, 2), (1.0, 4)):
        assert int((next_distribution(LOGITS, top_p=share) > 0).sum()) == kept
    # Of the two that are kept first, the share of the likelier one is above 0.6.
    assert int((next_distribution(LOGITS, top_k=2, top_p=0.6) > 0).sum()) == 1
    assert next_distribution(torch.zeros(3), top_k=1).tolist() == [1, 0, 0]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    model = Table(LOGITS.expand(5, -1))
    for kernel in ("gaussian", "biweight"):
        counts = Counter(epan.generate(model, [0], tokens=600, kernel=kernel, seed=3))
        p = next_distribution(LOGITS, kernel=kernel).tolist()
        assert set(counts) == {token for token, chance in enumerate(p) if chance > 0}
        for token, chance in enumerate(p):
            # Five standard deviations.
            assert abs(counts[token] / 600 - chance) <= 5 * math.sqrt(chance * (1 - chance) / 600)


@pytest.mark.parametrize("name", ["memory_mosaic", "transformer"])
def test_greedy_tokens_are_those_of_the_whole_model_again_and_again(name: str) -> None:
    model = build(name, {"vocab_size": 11, "layers": 1, "heads": 2, "width": 16, "dropout": 0.5}).train()
    tokens = list(epan.generate(model, [1, 2, 3], tokens=8, temperature=0))
    assert model.training
    row = [1, 2, 3]
    with torch.no_grad():
        for _ in range(8):
            row.append(int(model.eval()(torch.tensor([row]))[0, -1].argmax()))
    assert row == [1, 2, 3, *tokens]


def test_a_seed_gives_the_same_tokens_and_another_one_others() -> None:
    model = Table(LOGITS.expand(5, -1))
    one, again, other = (list(epan.generate(model, [0], tokens=60, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert list(epan.generate(model, torch.tensor([0]), tokens=20, seed=1)) == one[:20]


def test_it_goes_on_token_by_token_and_ends_where_it_is_told() -> None:
    model = Table(torch.roll(torch.eye(5), 1, dims=1))
    found = epan.generate(model, [3, 1], tokens=100, temperature=0, stop=[0], given={1: 1})
    assert model.pieces == []
    assert next(found) == 2
    assert model.pieces == [[3, 1]]
    # The second one is given: a 1 instead of a 3.
    assert list(found) == [1, 2, 3, 4, 0]
    assert model.pieces == [[3, 1], [2], [1], [2], [3], [4]]
    assert model.modes == {False}
    assert list(epan.generate(model, [0], tokens=0)) == []


def test_the_kernel_is_that_of_the_loss_unless_another_is_asked_for() -> None:
    model = Table(torch.tensor([[4.0, 0.0]]).expand(2, -1))
    assert set(epan.generate(model, [0], tokens=150)) == {0, 1}
    model.output_kernel = epan.Epanechnikov()
    assert set(epan.generate(model, [0], tokens=150)) == {0}
    assert set(epan.generate(model, [0], tokens=150, kernel="gaussian")) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": -1}, "temperature is out of range"),
        ({"temperature": math.nan}, "temperature is out of range"),
        ({"top_k": 0}, "top_k is out of range"),
        ({"top_p": 0.0}, "top_p is out of range"),
        ({"top_p": 1.1}, "top_p is out of range"),
        ({"tokens": -1}, "tokens is out of range"),
        ({"kernel": "cosine"}, "no adaptive weights"),
        ({"prompt": []}, "at least one token"),
        ({"prompt": [[1, 2]]}, "in one row"),
        ({"model": "run"}, "epan.load"),
    ],
)
def test_mistakes_are_told_before_the_first_token(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(EpanError, match=said):
        epan.generate(**{"model": Table(torch.zeros(2, 2)), "prompt": [0], **arguments})


def test_logits_that_are_no_numbers_are_told() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(EpanError, match="not finite"):
            next(epan.generate(Table(torch.full((2, 2), value)), [0]))


# ---------------------------------------------------------------------- text


def as_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def as_words(tokens: list[int]) -> str:
    return " ".join(str(token) for token in tokens)


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_characters_appear_whole_and_as_soon_as_they_are_there(text: str) -> None:
    content, stream, shown = text.encode("utf-8", "surrogatepass"), TextStream(as_bytes), ""
    for place, token in enumerate(content):
        shown += stream.add(token)
        certain = as_bytes(list(content[: place + 1]))
        assert shown == certain.removesuffix("\N{REPLACEMENT CHARACTER}")
    assert shown + stream.end() == as_bytes(list(content))
    assert stream.end() == ""


@settings(max_examples=40)
@given(st.lists(st.integers(0, 255), max_size=90))
def test_damaged_bytes_neither_stop_it_nor_change_what_was_shown(tokens: list[int]) -> None:
    stream = TextStream(as_bytes)
    assert "".join(map(stream.add, tokens)) + stream.end() == as_bytes(tokens)


@pytest.mark.parametrize("decode", [as_bytes, as_words], ids=lambda decode: decode.__name__)
def test_a_long_text_costs_no_more_per_token(decode: Callable[[list[int]], str]) -> None:
    longest = 0

    def counted(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens)

    tokens = [*islice("naïve 😀 text ".encode() * 100, 1500)]
    stream = TextStream(counted)
    assert "".join(map(stream.add, tokens)) + stream.end() == decode(tokens)
    assert longest < 50
