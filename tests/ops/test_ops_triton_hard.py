"""The inputs that break fused kernels, small, without a GPU: the cases of tests/gpu in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
SCRIPT = Path(__file__).parent / "interpreted_hard.py"
GROUPS = {
    "scores": ("equal_and_nearly_equal_scores", "zero_query_and_zero_tile", "one_peak_over_ties", "duplicated_keys"),
    "thresholds": ("offset_scores", "scale_ten_thousand", "support_is_the_whole_row"),
    "lengths": ("any_length", "other_numbers_of_keys", "packed_sequences"),
    "nothing": ("fully_masked_rows", "nothing_in_reach", "keys_that_nobody_attends", "a_sink_column"),
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

# Sums of rounded terms, which float32 does not have, and blocks of 128. One huge key is here alone: the weights that the
# backward pass makes again are exact to the rounding of a score in the thousands, which half precision forgives.
HALF = (
    "one_huge_key", "packed_sequences", "fully_masked_rows", "equal_keys_cancel", "values_with_an_offset", "gradient_of_the_scale",
    "one_key_has_no_gradient", "eight_bit_products_find_every_tile",
)  # fmt: skip


def run(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("passed")]


@pytest.mark.slow
@pytest.mark.parametrize("group", list(GROUPS))
def test_hard_inputs_in_the_interpreter(group: str) -> None:
    assert run("float32", *GROUPS[group]) == list(GROUPS[group])


@pytest.mark.slow
def test_hard_inputs_in_half_precision() -> None:
    assert run("float16", *HALF) == list(HALF)


def test_every_case_is_run() -> None:
    listed = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), "list"], capture_output=True, text=True, check=True
    )
    assert sorted(listed.stdout.split()) == sorted(name for names in (*GROUPS.values(), HALF[:1]) for name in names)
