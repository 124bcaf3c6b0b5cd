"""Counter-based random numbers: the published generator, uniform, independent, without replacement."""

from __future__ import annotations

import itertools

import pytest
import torch

from epan.tasks.random import Stream, mix


def stream(batch: int = 64, *, seed: int = 0, step: int = 0, split: str = "train", first: int = 0) -> Stream:
    return Stream("test", seed, step, split, first, batch, "cpu")


def test_mix_is_splitmix64() -> None:
    step = 0x9E3779B97F4A7C15
    states = [(1234567 + step * i) % 2**64 for i in range(1, 6)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in mix(signed).tolist()] == published


def test_bits_agree_with_their_formula_in_plain_python() -> None:
    step, low = 0x9E3779B97F4A7C15, 2**64 - 1

    def plain(state: int) -> int:
        state &= low
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & low
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & low
        return state ^ (state >> 31)

    drawn = stream(3, seed=-5, step=9, first=7)
    key = drawn.key("tag")
    expected = [[plain(plain(key + row * step) + (column + 1) * step) for column in range(4)] for row in (7, 8, 9)]
    assert [[value % 2**64 for value in row] for row in drawn.bits("tag", 4).tolist()] == expected


def test_keys_differ_in_every_word() -> None:
    keys = {
        Stream(name, seed, step, split, 0, 1, "cpu").key(tag)
        for name, seed, step, split, tag in itertools.product(
            ("sort", "copy"), range(-3, 8), range(50), ("train", "validation", "test"), ("length", "source")
        )
    }
    assert len(keys) == 2 * 11 * 50 * 3 * 2


def test_streams_of_different_splits_share_no_number() -> None:
    drawn = [stream(256, split=split).bits("source", 400).flatten() for split in ("train", "validation", "test")]
    assert len(torch.cat(drawn).unique()) == 3 * 256 * 400


def test_every_bit_is_a_fair_coin_and_rows_and_columns_are_unrelated() -> None:
    bits = stream(512).bits("source", 128)
    planes = torch.stack([(bits >> shift) & 1 for shift in range(64)]).double() - 0.5
    assert float(planes.mean(dim=(1, 2)).abs().max()) < 0.01
    for left, right in (
        (planes[:, :, 1:], planes[:, :, :-1]),
        (planes[:, 1:], planes[:, :-1]),
        (planes[1:], planes[:-1]),
    ):
        assert float((left * right).mean(dim=(1, 2)).abs().max()) < 0.005


@pytest.mark.parametrize("count", [1, 2, 3, 7, 32, 1000, 65_536])
def test_integers_are_uniform_and_in_range(count: int) -> None:
    drawn = stream(256).integers("source", 1024, count)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < count
    assert float(drawn.double().mean()) == pytest.approx((count - 1) / 2, abs=0.01 * count)
    if 1 < count <= 1000:
        counts = torch.bincount(drawn.flatten(), minlength=count).double()
        expected = drawn.numel() / count
        assert float(((counts - expected) ** 2 / expected).sum()) / (count - 1) < 4


def test_integers_take_a_count_per_row() -> None:
    counts = torch.tensor([[1], [5], [2**31 - 1]])
    drawn = stream(3).integers("source", 4000, counts)
    assert (drawn < counts).all()
    assert drawn[1].unique().tolist() == [0, 1, 2, 3, 4]
    assert int(drawn[2].max()) > 2**30


@pytest.mark.parametrize(
    ("columns", "population"), [(1, 1), (2, 2), (1, 9), (3, 6), (4, 6), (8, 10_000), (300, 601), (500, 512)]
)
def test_distinct_draws_are_different_and_every_value_is_as_likely(columns: int, population: int) -> None:
    drawn = stream(400).distinct("key", columns, population)
    assert drawn.shape == (400, columns)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < population
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all(), "a value twice"
    if columns > 1:
        assert (drawn[:, 0] > drawn[:, -1]).double().mean() == pytest.approx(0.5, abs=0.1), "not in random order"


def test_all_orders_of_a_draw_without_replacement_are_as_likely() -> None:
    for population in (4, 3):
        drawn = stream(12_000).distinct("key", 2, population)
        codes = torch.bincount(drawn[:, 0] * population + drawn[:, 1], minlength=population**2)
        expected = 12_000 / (population * (population - 1))
        codes = codes.view(population, population)
        assert codes.diagonal().sum() == 0
        others = codes[~torch.eye(population, dtype=torch.bool)].double()
        assert float((others / expected - 1).abs().max()) < 0.12


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    # With 20 of 41 some rows need a longer draw than others; no row may notice.
    whole = stream(500).distinct("key", 20, 41)
    alone = torch.cat([stream(1, first=row).distinct("key", 20, 41) for row in range(500)])
    assert torch.equal(whole, alone)
