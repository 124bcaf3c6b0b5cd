"""Every kernel × normalization × similarity × backend: the legal ones obey the formulas, the others say why not."""

from __future__ import annotations

import pytest
import torch

import epan
from epan.errors import EpanError, UnsupportedError
from epan.testing import catalogue, conformance
from epan.testing.catalogue import Entry
from epan.testing.execution import Attention, backend
from epan.testing.inputs import LOADED, PER_QUERY

LEGAL = catalogue.legal()
BACKENDS = catalogue.backends()
# Everything at once that may be combined: biases, masks, shared key heads, odd shapes, strides.
SETTINGS = {
    "plain": {"scale": 0.5},
    "loaded": LOADED,
    "per-query": PER_QUERY,
}


def yardstick(name: str) -> Attention | None:
    """The eager backend's own error is no excuse for itself."""
    return None if name == "eager" else backend("eager")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_float64_results_equal_the_formula(entry: Entry, setting: str, name: str) -> None:
    case = entry.case(**SETTINGS[setting])
    conformance.agrees_with_formula(backend(name), case)
    conformance.gradients_agree_with_formula(backend(name), case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_lower_precisions_stay_within_the_one_rule(entry: Entry, dtype: torch.dtype, name: str) -> None:
    case = entry.case(dtype=dtype, **SETTINGS["loaded"])
    conformance.keeps_dtype_and_shape(backend(name), case)
    conformance.agrees_with_formula(backend(name), case, yardstick(name))
    conformance.gradients_agree_with_formula(backend(name), case, yardstick(name))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_every_rule_sees_the_same_keys(entry: Entry, name: str) -> None:
    for masks in (
        {"mask": "bool_full"},
        {"window": (2, 1), "mask": "float_inf", "alibi": "batch"},
        {"window": (None, -1)},
    ):
        conformance.sees_exactly_the_allowed_keys(backend(name), entry.case(**masks))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_the_future_leaves_no_trace(entry: Entry, name: str) -> None:
    case = entry.case(is_causal=True, q_len=9, dtype=torch.float32)
    conformance.hidden_keys_leave_no_trace(backend(name), case, positions=(0, 4, 8))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_nonfinite_numbers_stay_where_they_may_be_seen(entry: Entry, name: str) -> None:
    for mask in ("padding", "some_rows"):
        case = entry.case(mask=mask, scale="head", q_len=4, k_len=6, dtype=torch.float32)
        conformance.contains_nonfinite(backend(name), case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_no_keys_no_output_no_gradient(entry: Entry, name: str) -> None:
    for changes in ({"mask": "some_rows"}, {"mask": "all_rows"}, {"window": (None, -2)}, {"window": (-12, None)}):
        case = entry.case(scale="query", alibi="head", dtype=torch.float32, **changes)
        conformance.fully_masked_rows_are_zero(backend(name), case)
    conformance.handles_nothing(backend(name), entry.case(scale="head", mask="float_full", alibi="head"))
    conformance.handles_nothing(backend(name), entry.case())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_the_order_of_keys_does_not_matter(entry: Entry, name: str) -> None:
    for content in ("normal", "ties", "duplicates", "constant", "near"):
        case = entry.case(content=content, mask="bool", dtype=torch.float64)
        conformance.ignores_the_order_of_keys(backend(name), case)
    case = entry.case(content="near", mask="float", dtype=torch.float32)
    conformance.ignores_the_order_of_keys(backend(name), case, yardstick(name))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_a_constant_in_the_scores(entry: Entry, name: str) -> None:
    # Near enough that the fixed rule has keys within reach, and enough of them that some cross its radius.
    case = entry.case(dtype=torch.float32, spread=0.6, k_len=30)
    if entry.kernel_id == "uniform-radius":
        case = case.but(spread=1.0, scale=1.0)
    conformance.answers_a_constant_shift(backend(name), case, yardstick(name))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_statistics_follow_their_definitions(entry: Entry, name: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        case = entry.case(dtype=dtype, mask="some_rows", scale="head", spread=1.3)
        conformance.reports_statistics(backend(name), case, yardstick(name))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_dropout(entry: Entry, name: str) -> None:
    case = entry.case(scale="head", mask="float_inf", q_len=12, k_len=20, heads=4, key_heads=2, dtype=torch.float32)
    conformance.drops_weights(backend(name), case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_calls_repeat_and_take_three_dimensions(entry: Entry, name: str) -> None:
    case = entry.case(mask="float_inf", is_causal=True, q_len=9, dtype=torch.float32)
    conformance.repeats_itself(backend(name), case)
    # One order per head has no meaning without heads.
    conformance.takes_three_dimensions(backend(name), case)


@pytest.mark.parametrize("entry", catalogue.illegal(), ids=str)
def test_combinations_without_meaning_name_reason_and_fix(entry: Entry) -> None:
    inputs = entry.case().build()
    for name in (*BACKENDS, "auto"):
        with pytest.raises(EpanError) as caught:
            backend(name)(inputs.query, inputs.key, inputs.value, **inputs.options())
        assert str(entry.reason) in str(caught.value)
        assert caught.value.fix
        assert "Fix: " in str(caught.value)
        if entry.kernel_id != "uniform":
            assert isinstance(caught.value, UnsupportedError)


def test_the_catalogue_covers_every_name() -> None:
    listed = {entry.kernel.name for entry in LEGAL} | {entry.normalization.name for entry in LEGAL}
    assert set(epan.kernels.names()) <= listed
    assert set(epan.normalizations.names()) <= listed
    assert set(BACKENDS) == {"eager", "tiled"}
    assert len(LEGAL) + len(catalogue.illegal()) == len(list(catalogue.entries()))
