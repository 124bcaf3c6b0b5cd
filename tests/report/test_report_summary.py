"""Grouping, numbers and remarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from epan._text import percent
from epan.report.caveats import missing
from epan.report.configs import differences
from epan.report.findings import remarks
from epan.report.look import looks, method_name
from epan.report.records import find
from epan.report.summary import spread, summarise


def test_seeds_are_joined_and_methods_stay_in_order(make_sweep: Any, tmp_path: Path) -> None:
    summary = summarise(find(make_sweep(tmp_path, seeds=3)))
    (setting,) = summary.settings
    assert [method.name for method in setting.methods] == [
        "Softmax (Gaussian)",
        "Epanechnikov",
        "Biweight",
        "Triweight",
        "ReLUmax",
    ]
    assert {method.seeds for method in setting.methods} == {3}
    assert setting.reference == 16
    assert setting.times(32) == "2×"
    assert setting.times(24) == "1.5×"


def test_mean_and_range_over_seeds(make_run: Any, tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.7, 0.9)):
        make_run(tmp_path / str(seed), seed=seed, accuracies={16: share})
    method = summarise(find(tmp_path)).settings[0].methods[0]
    value = method.at(16, "exact_match")
    assert value is not None
    assert (value.mean, value.low, value.high, value.count) == (pytest.approx(0.7), 0.5, 0.9, 3)
    low, high = method.interval(16) or (0, 0)
    assert low <= 0.5
    assert high >= 0.9


def test_spread_leaves_out_what_is_no_number() -> None:
    assert spread([None, float("nan"), "x", True]) is None
    value = spread([1, None, 3.0])
    assert value is not None
    assert (value.mean, value.count) == (2.0, 2)


def test_speed_ignores_pauses(tmp_path: Path) -> None:
    import json

    elapsed = [0.0, 1.0, 2.0, 500.0, 501.0, 502.0]
    lines: list[dict[str, Any]] = [{"kind": "run", "name": "a"}]
    lines += [
        {"kind": "step", "step": 10 * index, "loss": 1.0, "elapsed": value} for index, value in enumerate(elapsed)
    ]
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    speed = summarise(find(tmp_path)).settings[0].methods[0].steps_per_second()
    assert speed is not None
    assert speed.mean == pytest.approx(10.0)


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_method(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", training={"optimizer": {"learning_rate": 1e-3}})
    make_run(tmp_path / "b", seed=1, training={"optimizer": {"learning_rate": 3e-3}})
    methods = summarise(find(tmp_path)).settings[0].methods
    assert [method.name for method in methods] == ["Biweight · learning_rate=0.001", "Biweight · learning_rate=0.003"]
    assert len({method.look.colour for method in methods}) == 2


def test_tasks_are_kept_apart(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", task={"name": "sort", "train_lengths": [8, 16]})
    make_run(tmp_path / "b", task={"name": "copy", "train_lengths": [8, 16]})
    make_run(tmp_path / "c", task={"name": "copy", "train_lengths": [8, 32]})
    titles = [setting.title for setting in summarise(find(tmp_path)).settings]
    assert titles == ["sort", "copy (train_lengths=[8, 16])", "copy (train_lengths=[8, 32])"]


def test_training_lengths_of_the_run_go_before_those_of_the_task(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", training={"lengths": [4, 32]})
    setting = summarise(find(tmp_path)).settings[0]
    assert (setting.reference, setting.reference_known) == (32, True)


def test_the_usual_lengths_of_a_task_are_known(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", task={"name": "mqar", "options": {"words": 64}})
    make_run(tmp_path / "b", task={"name": "of somebody else"})
    known, unknown = summarise(find(tmp_path)).settings
    assert (known.reference, known.reference_known) == (8, True)
    assert (unknown.reference, unknown.reference_known) == (16, False)


def test_differences_leave_out_seed_and_name(make_sweep: Any, tmp_path: Path) -> None:
    assert sorted(differences(find(make_sweep(tmp_path)))) == ["model.kernel", "model.normalization"]


def _remarks(folder: Path) -> str:
    return "\n".join(remarks(summarise(find(folder)).settings[0]))


def test_equal_methods_are_said_to_be_equal(make_run: Any, tmp_path: Path) -> None:
    for kernel, share in (("gaussian", 0.97), ("biweight", 0.98)):
        for seed in (0, 1):
            make_run(tmp_path / f"{kernel}{seed}", kernel=kernel, seed=seed, accuracies={16: 1.0, 32: share, 64: 0.0})
    text = _remarks(tmp_path)
    assert "At the training length (16) every seed of all 2 methods solves 100% of the sequences." in text
    assert (
        "At 2× (32) the 2 methods differ by no more than the seed spread or binomial interval (means 97.0% to 98.0%)"
        in text
    )
    assert "At 4× (64) none of the 2 methods solves a single sequence" in text
    assert "lies above" not in text


def test_a_clear_difference_is_named_and_a_tie_is_not(make_run: Any, tmp_path: Path) -> None:
    for kernel, share in (("gaussian", 0.4), ("biweight", 0.91), ("triweight", 0.9)):
        make_run(tmp_path / kernel, kernel=kernel, accuracies={16: 1.0, 32: share})
    text = _remarks(tmp_path)
    assert (
        "Biweight (91.0%) and Triweight (90.0%), which cannot be told apart, lie above Softmax (Gaussian) (40.0%)"
        in text
    )
    assert "One seed per method" in text


def test_a_wide_seed_spread_hides_a_difference(make_run: Any, tmp_path: Path) -> None:
    for seed, share in enumerate((0.2, 0.95)):
        make_run(tmp_path / f"g{seed}", kernel="gaussian", seed=seed, accuracies={16: 1.0, 32: share})
        make_run(tmp_path / f"b{seed}", kernel="biweight", seed=seed, accuracies={16: 1.0, 32: 0.94})
    assert "At 2× (32) the 2 methods differ by no more than" in _remarks(tmp_path)


def test_a_method_that_did_not_learn_is_no_evidence(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", kernel="gaussian", accuracies={16: 0.5, 32: 0.1})
    make_run(tmp_path / "b", kernel="biweight", accuracies={16: 1.0, 32: 0.9})
    make_run(tmp_path / "c", kernel="triweight", accuracies={16: 1.0, 32: 0.9})
    text = _remarks(tmp_path)
    assert "Softmax (Gaussian) (50.0%) has not learnt the task" in text
    assert "left out of the comparisons below" in text
    assert "lies above" not in text


def test_a_method_without_a_test_at_the_training_length_is_named(make_run: Any, tmp_path: Path) -> None:
    for kernel in ("gaussian", "epanechnikov", "biweight"):
        make_run(tmp_path / kernel, kernel=kernel, accuracies={16: 1.0, 32: 1.0})
    make_run(tmp_path / "triweight", kernel="triweight", accuracies={32: 0.1})
    text = _remarks(tmp_path)
    assert "At the training length (16) all 3 compared methods solve 100% of the sequences." in text
    assert (
        "Triweight was not tested at the training length, so whether the task was learnt is unknown; it is left" in text
    )
    assert "At 1× (16) and 2× (32) all 3 compared methods are right on every test sequence" in text
    assert "every method" not in text


def test_a_method_without_a_test_at_one_length_is_named_there(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", kernel="gaussian", accuracies={16: 1.0, 32: 1.0, 64: 0.0})
    make_run(tmp_path / "b", kernel="biweight", accuracies={16: 1.0, 32: 1.0, 64: 0.0})
    make_run(tmp_path / "c", kernel="triweight", accuracies={16: 1.0})
    text = _remarks(tmp_path)
    assert "At 2× (32) all 2 compared methods (not Triweight, untested there) are right on every test sequence" in text
    assert "At 4× (64) none of the 2 compared methods (not Triweight, untested there) solves" in text


def test_seeds_without_a_test_at_the_training_length_are_counted(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracies={16: 1.0, 32: 1.0})
    make_run(tmp_path / "b", seed=1, accuracies={32: 1.0})
    assert "Not every seed was tested at the training length: Biweight (1 of 2 seeds)." in _remarks(tmp_path)


def test_runs_of_one_seed_are_one_sample(make_run: Any, tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        make_run(tmp_path / folder, accuracies={16: 0.9}, sequences=40)
    make_run(tmp_path / "d", seed=1, accuracies={16: 0.5}, sequences=40)
    (method,) = summarise(find(tmp_path)).settings[0].methods
    value = method.at(16, "exact_match")
    assert value is not None
    assert (method.seeds, value.count, method.sequences(16)) == (2, 2, 80)
    assert value.mean == pytest.approx(0.7)
    assert "Biweight: seed 0 was run 3 times, with the same losses. A repeat is no further seed" in _remarks(tmp_path)


def test_of_the_runs_of_one_seed_the_larger_test_counts(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracies={16: 0.5, 32: 0.4}, sequences=40)
    make_run(tmp_path / "b", accuracies={16: 1.0, 64: 0.3}, sequences=3)
    (method,) = summarise(find(tmp_path)).settings[0].methods
    assert {length: method.sequences(length) for length in method.lengths()} == {16: 40, 32: 40, 64: 3}


def test_runs_that_differ_in_their_test_alone_are_one_method(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", training={"evaluation": {"lengths": [16, 32], "sequences": 500, "seed": 0}})
    make_run(
        tmp_path / "b", seed=1, training={"evaluation": {"lengths": None, "sequences": 40, "seed": 3}}, sequences=40
    )
    (method,) = summarise(find(tmp_path)).settings[0].methods
    assert (method.name, method.seeds) == ("Biweight", 2)
    text = _remarks(tmp_path)
    assert "not set up to be tested alike: evaluation.lengths, evaluation.seed, evaluation.sequences" in text
    assert "differ in more than the method" not in text


def test_unequal_tests_are_pointed_out(make_run: Any, tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", kernel="gaussian", evaluation={"seed": 0, "split": "test", "device": "cpu", "precision": "fp32"}
    )
    make_run(tmp_path / "b", evaluation={"seed": 7, "split": "validation", "device": "cuda", "precision": "bf16"})
    text = _remarks(tmp_path)
    assert "different seeds of the test sequences: 0 and 7." in text
    assert "different devices: cpu and cuda." in text
    assert "different precisions: bf16 and fp32." in text
    assert "their sequences are of the split validation." in text


def test_test_sequences_that_training_has_shown_are_named(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", overlap={16: 0.25, 32: 0.0005, 64: None})
    make_run(tmp_path / "b", seed=1, overlap={16: 0.2, 32: 0.0})
    text = _remarks(tmp_path)
    assert "About 25.0% of the test sequences at 1× (16) also occur in training: the answers" in text


def test_a_small_or_unknown_overlap_is_no_finding(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", overlap=dict.fromkeys((16, 32, 64, 128), 0.0009))
    make_run(tmp_path / "b", seed=1)
    assert "also occur in training" not in _remarks(tmp_path)


def test_shares_are_never_rounded_up_to_all_or_down_to_nothing() -> None:
    shares = (0.0, 0.0004, 0.001, 0.5, 0.9994, 0.99951, 1.0)
    assert [percent(share) for share in shares] == ["0", "<0.1", "0.1", "50.0", ">99.9", ">99.9", "100"]


def test_unequal_runs_are_pointed_out(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", kernel="gaussian", training={"batch": 32})
    make_run(tmp_path / "b", kernel="biweight", until=200, empty_rows=0.25)
    make_run(tmp_path / "c", kernel="biweight", until=200, empty_rows=0.25, seed=1)
    text = _remarks(tmp_path)
    assert "training.batch" in text
    assert "Softmax (Gaussian) 1, Biweight 2" in text
    assert "after the same number of steps (200 to 400)" in text
    assert "Biweight leaves up to 25.0% of the queries without any key" in text


def test_missing_parts_are_listed(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracies={}, until=100, status=None, extra="{")
    (said,) = {"\n".join(missing(find(tmp_path)))}
    assert "has no end yet" in said
    assert "step 100 of 400" in said
    assert "no evaluation yet" in said
    assert "1 damaged line(s)" in said


def test_names_and_looks_are_stable() -> None:
    assert method_name("epanechnikov", "anchored") == "ReLUmax"
    assert method_name("gaussian", {"name": "nearest", "k": 16}) == "Top-k softmax (k=16)"
    assert method_name({"name": "polynomial", "order": 5}, "adaptive") == "Polynomial(order=5)"
    alone = looks([("biweight", "adaptive")])[0]
    among = looks([("cosine", "anchored"), ("biweight", "adaptive"), ("uniform", "fixed")])
    assert among[1] == alone
    assert len({look.colour for look in among}) == 3
