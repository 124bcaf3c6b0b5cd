"""Support size, density and empty rows against a loop, and allowed keys against masks and models."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from epan.errors import EpanError
from epan.metrics import SupportMeter, allowed_keys, empty_rows
from epan.models import build


class Rows(NamedTuple):
    threshold: torch.Tensor
    support_size: torch.Tensor
    partition: torch.Tensor


def rows(seed: int, length: int = 6) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    support = torch.minimum(torch.randint(0, 5, (2, 3, length), generator=generator), torch.arange(length))
    return Rows(torch.zeros(2, 3, length), support.float(), (support > 0).float())


def test_the_meter_agrees_with_a_loop_over_batches() -> None:
    meter, allowed = SupportMeter(), torch.arange(6)
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    sizes, shares, empties = [], [], []
    for seed in range(3):
        batch = rows(seed)
        meter.add("layers.0.contextual", batch, valid, allowed)
        for sequence in range(2):
            for head in range(3):
                for position in range(1, 4 if sequence == 0 else 6):
                    size = float(batch.support_size[sequence, head, position])
                    sizes.append(size)
                    shares.append(size / position)
                    empties.append(float(batch.partition[sequence, head, position]) == 0)
    found = meter.overall()
    assert found["support_size"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-12)
    assert found["density"] == pytest.approx(sum(shares) / len(shares), rel=1e-12)
    assert found["empty_rows"] == pytest.approx(sum(empties) / len(empties), rel=1e-12)
    assert 0 < found["empty_rows"] < 1


def test_overall_leaves_out_persistent_memories_unless_there_is_nothing_else() -> None:
    meter, valid = SupportMeter(), torch.ones(2, 6, dtype=torch.bool)
    meter.add("layers.0.persistent", rows(0), valid, torch.full((6,), 9))
    alone = meter.overall()
    assert alone == meter.per_layer()["layers.0.persistent"]
    meter.add("layers.0.contextual", rows(1), valid, torch.arange(6))
    assert meter.overall() == meter.per_layer()["layers.0.contextual"] != alone
    assert set(meter.per_layer()) == {"layers.0.persistent", "layers.0.contextual"}


def test_attention_may_see_the_last_steps_alone() -> None:
    assert allowed_keys("layers.0.attention", 5).tolist() == [1, 2, 3, 4, 5]
    assert allowed_keys("layers.0.attention", 5, window=3).tolist() == [1, 2, 3, 3, 3]


def test_no_counted_query_gives_none() -> None:
    meter = SupportMeter()
    assert meter.overall() == {"support_size": None, "density": None, "empty_rows": None}
    meter.add("layers.0.contextual", rows(0), torch.zeros(2, 6, dtype=torch.bool), torch.arange(6))
    assert meter.overall() == {"support_size": None, "density": None, "empty_rows": None}


class Tiled(NamedTuple):
    threshold: torch.Tensor
    support_size: torch.Tensor
    partition: torch.Tensor
    tile_density: torch.Tensor


def test_tile_density_is_a_mean_over_queries_that_count_and_only_where_all_batches_have_it() -> None:
    meter, allowed = SupportMeter(), torch.tensor([0, 1, 2, 3])
    ones = torch.ones(1, 1, 4)
    valid = torch.tensor([[True, True, True, False]])
    meter.add("layers.0.long", Tiled(0 * ones, ones, ones, torch.tensor([[[0.0, 0.25, 1.0, 0.5]]])), valid, allowed)
    meter.add("layers.1.long", Tiled(0 * ones, ones, ones, torch.tensor([[[0.0, 0.5, 0.5, 0.5]]])), valid, allowed)
    assert meter.per_layer()["layers.0.long"]["tile_density"] == (0.25 + 1.0) / 2
    assert meter.overall()["tile_density"] == (0.25 + 1.0 + 0.5 + 0.5) / 4
    assert SupportMeter.of(*meter.sums()).per_layer() == meter.per_layer()
    meter.add("layers.1.long", Rows(0 * ones, ones, ones), valid, allowed)
    assert "tile_density" in meter.per_layer()["layers.0.long"]
    assert "tile_density" not in meter.per_layer()["layers.1.long"]
    assert "tile_density" not in meter.overall()


def test_a_gaussian_row_whose_log_sum_exp_is_zero_is_not_empty() -> None:
    threshold = torch.tensor([[[0.0, -torch.inf, 0.0, 0.0]]])
    partition = torch.tensor([[[0.0, 0.0, 0.0, 0.5]]])
    found = empty_rows(Rows(threshold, torch.ones(1, 1, 4), partition), torch.tensor([3, 3, 0, 3]))
    assert found.tolist() == [[[True, False, False, False]]]


def test_an_unknown_kind_or_size_is_an_error() -> None:
    with pytest.raises(EpanError, match="unknown kind"):
        allowed_keys("layers.0.convolution", 4)
    with pytest.raises(EpanError, match="size"):
        allowed_keys("layers.0.persistent", 4)
    with pytest.raises(EpanError, match="size"):
        allowed_keys("layers.0.short", 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("memory_mosaic", {}),
        ("memory_mosaic", {"short_window": 5, "long_skip": 3}),
        ("memory_mosaic", {"short_window": 4}),
        ("transformer", {}),
    ],
)
def test_allowed_keys_are_those_of_the_models(name: str, options: dict[str, object]) -> None:
    # The Gaussian gives weight to every key that its query may see.
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "layers": 1, "heads": 2, "width": 8, "dropout": 0.0}
    model = build(name, {**sizes, "kernel": "gaussian", **options}).eval()
    _, stats = model(torch.randint(0, 9, (2, 12)), return_stats=True)
    config = model.config
    known = {}
    if name == "memory_mosaic":
        known = {"size": config.size, "window": config.short_window, "skip": config.skip}
    assert len(stats) >= 1
    for key, found in stats.items():
        expected = allowed_keys(key, 12, **known).expand_as(found.support_size)
        assert torch.equal(found.support_size.long(), expected), key
