"""The inputs that break fused kernels, small, without a GPU: the cases of tests/gpu in Triton's interpreter."""

from __future__ import annotations

import pytest
from scripts import Scripts

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
SCRIPT = "interpreted_hard.py"
GROUPS = {
    "scores": ("equal_and_nearly_equal_scores", "zero_query_and_zero_tile", "one_peak_over_ties", "duplicated_keys"),
    "thresholds": ("offset_scores", "scale_ten_thousand", "support_is_the_whole_row"),
    "lengths": ("any_length", "first_queries_that_see_no_key", "other_numbers_of_keys", "packed_sequences"),
    "nothing": ("fully_masked_rows", "nothing_in_reach", "keys_that_nobody_attends", "a_sink_column"),
    "rows": ("rows_of_a_block_are_strangers",),
    "sizes": ("any_head_size", "values_of_another_size", "shared_key_heads"),
    "surroundings": ("any_strides", "gradients_of_some", "one_graph_for_all_lengths", "reruns_are_equal"),
    "signs": (
        "masked_edges_below_zero",
        "negative_scales",
        "one_key_has_no_gradient",
        "gradient_of_the_scale",
        "equal_keys_cancel",
        "values_with_an_offset",
    ),
    "screen": ("eight_bit_products_find_every_tile", "eight_bit_products_without_bars_are_noticed"),
    "nonfinite": ("nonfinite_numbers_stay_in_their_rows",),
}

# Sums of rounded terms, which float32 does not have, blocks of 128, and the kernels for short sequences. One huge key is here
# alone: the weights that the backward pass makes again are exact to the rounding of a score in the thousands, which half
# precision forgives.
HALF = (
    "one_huge_key", "packed_sequences", "fully_masked_rows", "equal_keys_cancel", "values_with_an_offset", "gradient_of_the_scale",
    "one_key_has_no_gradient", "eight_bit_products_find_every_tile", "nonfinite_numbers_stay_in_their_rows", "any_strides",
    "first_queries_that_see_no_key", "nothing_in_reach", "negative_scales", "reruns_are_equal",
    "one_graph_for_all_lengths",
)  # fmt: skip


def passed(scripts: Scripts, *arguments: str) -> list[str]:
    said = scripts.run(SCRIPT, *arguments)
    return [line.split()[1] for line in said.splitlines() if line.startswith("passed")]


@pytest.mark.parametrize("group", list(GROUPS))
def test_hard_inputs_in_the_interpreter(scripts: Scripts, group: str) -> None:
    assert passed(scripts, "float32", *GROUPS[group]) == list(GROUPS[group])


def test_hard_inputs_in_half_precision(scripts: Scripts) -> None:
    assert passed(scripts, "float16", *HALF) == list(HALF)


def test_every_case_is_run(scripts: Scripts) -> None:
    assert sorted(scripts.run(SCRIPT, "list").split()) == sorted(
        name for names in (*GROUPS.values(), HALF[:1]) for name in names
    )
