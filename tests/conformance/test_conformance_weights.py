"""attention_weights for every kernel × normalization: formulas, other packages, distributions, edge rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import epan
from epan.testing import catalogue, conformance, inputs, oracles, tolerance
from epan.testing.catalogue import Entry
from epan.testing.conformance import WeightsCase

# Scores have no similarity; the euclidean half of the catalogue holds every pair that scores can have.
PAIRS = [entry for entry in catalogue.legal() if entry.similarity == "euclidean" and entry.order is None]
ADAPTIVE = [entry for entry in PAIRS if entry.normalization.name == "adaptive"]
LENGTHS = (1, 2, 3, 31, 128, 1000, 4096, 65536)


def case_of(entry: Entry, **changes: object) -> WeightsCase:
    return WeightsCase(kernel=entry.kernel, normalization=entry.normalization, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_weights_equal_the_formula(entry: Entry) -> None:
    for scores in inputs.SCORES:
        for mask in ("none", "bool", "float", "row"):
            conformance.weights_agree_with_formula(epan.attention_weights, case_of(entry, scores=scores, mask=mask))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # 10 000 is no number of float16's that leaves room for a mask.
        for scores in ("normal", "near", "ties", "offset_down"):
            case = case_of(entry, scores=scores, mask="float", dtype=dtype, length=40)
            conformance.weights_agree_with_formula(epan.attention_weights, case)


@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_gradients_equal_the_formula(entry: Entry) -> None:
    for scores in ("normal", "near", "constant", "offset_down", "one_huge", "minus_infinity"):
        for mask in ("none", "bool", "row"):
            case = case_of(entry, scores=scores, mask=mask)
            conformance.weights_gradient_agrees_with_formula(epan.attention_weights, case)
    for dtype in (torch.float32, torch.bfloat16):
        case = case_of(entry, mask="bool", dtype=dtype)
        conformance.weights_gradient_agrees_with_formula(epan.attention_weights, case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_rows_of_any_length_sum_to_one(entry: Entry, dtype: torch.dtype) -> None:
    for length in LENGTHS:
        for scores in ("normal", "constant", "near"):
            case = case_of(entry, scores=scores, rows=2, length=length, dtype=dtype)
            conformance.weights_are_a_distribution(epan.attention_weights, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_recorded_rows_sum_to_one_as_well(entry: Entry, dtype: torch.dtype) -> None:
    def recorded(scores: torch.Tensor, **options: object) -> torch.Tensor:
        return epan.attention_weights(scores.requires_grad_(), **options).detach()  # type: ignore[arg-type]

    for length in (1, 31, 4096):
        for scores in ("normal", "constant", "near", "offset_up", "sorted"):
            case = case_of(entry, scores=scores, rows=2, length=length, dtype=dtype)
            if dtype == torch.float32 or scores != "offset_up":
                conformance.weights_are_a_distribution(recorded, case)


@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_weights_are_ordered_and_equivariant(entry: Entry) -> None:
    for dtype in (torch.float64, torch.float32):
        for scores in ("normal", "ties", "near", "wide", "minus_infinity"):
            case = case_of(entry, scores=scores, length=160, mask="bool", dtype=dtype)
            conformance.weights_follow_the_scores(epan.attention_weights, case)
            conformance.weights_are_a_distribution(epan.attention_weights, case)
            conformance.weights_ignore_the_order(epan.attention_weights, case)


@pytest.mark.parametrize("entry", PAIRS, ids=str)
def test_nan_scores_stay_in_their_row(entry: Entry) -> None:
    for length in (9, 160):
        case = case_of(entry, length=length, dtype=torch.float32)
        conformance.weights_contain_nonfinite(epan.attention_weights, case)


@pytest.mark.parametrize("entry", ADAPTIVE, ids=str)
def test_adaptive_support_lies_inside_the_anchored_one(entry: Entry) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for scores in inputs.SCORES:
            for length in (1, 5, 300):
                case = case_of(entry, scores=scores, length=length, dtype=dtype)
                conformance.stays_within_reach(epan.attention_weights, case)
            if entry.kernel.order != torch.inf:
                case = case_of(entry, scores=scores, length=97)
                _, _, allowed, total = case.build()
                adaptive = (
                    epan.attention_weights(total, kernel=entry.kernel, normalization="adaptive", mask=allowed) > 0
                )
                anchored = (
                    epan.attention_weights(total, kernel=entry.kernel, normalization="anchored", mask=allowed) > 0
                )
                assert bool((adaptive <= anchored).all())


@pytest.mark.parametrize("rule", ["adaptive", "anchored", "fixed"])
def test_a_huge_order_is_softmax(rule: str) -> None:
    for length in (1, 17, 2000):
        for mask in ("none", "bool", "row"):
            for scores in ("normal", "near", "constant", "ties"):
                case = WeightsCase(normalization=rule, scores=scores, length=length, mask=mask)
                conformance.approaches_softmax(epan.attention_weights, case)
                if scores == "normal":
                    conformance.approaches_softmax(
                        lambda z, **o: epan.attention_weights(z.requires_grad_(), **o).detach(), case
                    )


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 1.5, 7.0])
def test_adaptive_weights_equal_the_entmax_package(order: float) -> None:
    kernel = {1.0: "epanechnikov", 2.0: "biweight", 3.0: "triweight"}.get(order, epan.Polynomial(order))
    for scores in ("normal", "near", "constant", "ties", "sorted", "one_huge"):
        for length in (1, 2, 33, 700):
            z = inputs.make_scores(scores, 4, length)
            ours = epan.attention_weights(z, kernel=kernel, normalization="adaptive")
            theirs = oracles.entmax_weights(z, order)
            tolerance.assert_within(ours, theirs, band=tolerance.EXACT, label=f"{scores}, {length} keys")
            assert torch.equal(ours > 1e-9, theirs > 1e-9)


def test_sorting_and_bisection_agree() -> None:
    kernel, rule = epan.Epanechnikov(), epan.Adaptive()
    for scores in inputs.SCORES:
        z = inputs.make_scores(scores, 6, 50)
        allowed = z != -torch.inf
        answer = oracles.weights(z, allowed, kernel, rule)
        live = allowed.any(-1)
        sorted_threshold = oracles.sparsemax_by_sorting(z, allowed).squeeze(-1)[live]
        size = tolerance.largest(sorted_threshold)
        tolerance.assert_within(answer.threshold[live], sorted_threshold, band=tolerance.EXACT * max(1.0, size))


def test_the_checks_cover_several_sizes_of_support() -> None:
    """A suite whose supports were all full or all of one key would prove little."""
    z = inputs.make_scores("normal", 6, 17)
    sizes = {int(n) for n in (epan.attention_weights(z, kernel="epanechnikov") > 0).sum(-1)}
    assert len(sizes) >= 2
    assert max(sizes) < 17


def test_case_names_are_unique() -> None:
    cases = [dataclasses.replace(WeightsCase(), scores=scores, length=n) for scores in inputs.SCORES for n in (1, 2)]
    assert len({str(case) for case in cases}) == len(cases)
