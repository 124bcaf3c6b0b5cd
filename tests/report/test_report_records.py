"""Reading records, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.report.records import find, read


def test_a_whole_record_is_read(make_run: Any, tmp_path: Path) -> None:
    record = read(make_run(tmp_path / "run", steps=100))
    assert record.status == "finished"
    assert record.seed == 0
    assert record.planned_steps == 100
    assert record.last_step == 100
    assert [line["length"] for line in record.evals] == [16, 32, 64, 128]
    assert len(record.steps) == 11
    assert record.damaged == ()


def test_damaged_lines_are_counted_and_the_rest_is_kept(make_run: Any, tmp_path: Path) -> None:
    whole = read(make_run(tmp_path / "whole"))
    torn = read(make_run(tmp_path / "torn", extra='{"kind": "st\n[1, 2]\n\n"text"\n{"no": "kind"}\n\xff\xfe\n'))
    assert torn.evals == whole.evals
    assert torn.steps == whole.steps
    assert len(torn.damaged) == 5


def test_a_record_of_other_bytes_does_not_crash(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_bytes(b"\x00\xff\xfe\n{\n")
    record = read(tmp_path)
    assert record.run == {}
    assert record.status == "unfinished"
    assert record.damaged == (1, 2)


def test_what_a_resume_overtook_is_left_out(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "run", "name": "a"},
        *({"kind": "step", "step": step, "loss": 1.0} for step in (10, 20, 30, 40)),
        {"kind": "eval", "step": 40, "length": 8, "exact_match": 0.1},
        {"kind": "end", "status": "interrupted", "step": 40},
        {"kind": "event", "event": "resumed", "step": 20, "message": "resumed"},
        {"kind": "step", "step": 30, "loss": 2.0},
    ]
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read(tmp_path)
    assert [(line["step"], line["loss"]) for line in record.steps] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert record.evals == ()
    assert record.status == "unfinished"


def _evals(folder: Path, *lines: dict[str, Any]) -> list[Any]:
    """What counts of evaluation lines of length 8, by their exact match."""
    full = [{"kind": "eval", "step": 100, "length": 8, "decoding": "greedy", "sequences": 40, **line} for line in lines]
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in full))
    return [line["exact_match"] for line in read(folder).evals]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"step": 100}, {"step": 50, "sequences": 1000}),
        ({"sequences": 40}, {"sequences": 3, "decoding": "greedy"}),
        ({"sequences": 40, "decoding": "teacher-forced"}, {"sequences": 3}),
        ({"split": "test"}, {"split": "train", "sequences": 1000}),
        ({}, {"decoding": "teacher-forced"}),
    ],
)
def test_which_evaluation_of_a_length_counts(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    strong, weak = {**first, "exact_match": 0.2}, {**second, "exact_match": 0.9}
    assert _evals(tmp_path, strong, weak) == [0.2]
    assert _evals(tmp_path, weak, strong) == [0.2]


def test_of_equal_evaluations_the_later_one_counts(tmp_path: Path) -> None:
    assert _evals(tmp_path, {"exact_match": 0.1}, {"exact_match": 0.2}) == [0.2]


def test_training_and_report_read_the_same_lines(tmp_path: Path) -> None:
    from epan.training import records

    lines: list[dict[str, Any]] = [
        {"kind": "run", "name": "a"},
        {"kind": "step", "step": 10, "loss": 1.0},
        {"kind": "step", "step": 20, "loss": 1.0},
        {"kind": "event", "event": "skipped", "step": 20},
        {"kind": "eval", "step": 20, "length": 8, "exact_match": 0.1},
        {"kind": "end", "status": "interrupted", "step": 20},
        {"kind": "event", "event": "resumed", "step": 10},
        {"kind": "step", "step": 20, "loss": 2.0},
    ]
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, trained = read(tmp_path), records.read(tmp_path)
    for kind, part in (("step", found.steps), ("eval", found.evals), ("event", found.events)):
        assert list(part) == [line for line in trained if line["kind"] == kind], kind
    assert [event["event"] for event in found.events] == ["resumed"]


def test_runs_are_found_at_any_depth_and_once(make_sweep: Any, tmp_path: Path) -> None:
    root = make_sweep(tmp_path / "sweep", seeds=1)
    assert len(find(root)) == 5
    assert len(find([root, root / "gaussian-adaptive-0", root / "gaussian-adaptive-0" / "record.jsonl"])) == 5


def test_empty_and_missing_folders_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(EpanError, match=r"No run record.*Fix: train something first"):
        find(tmp_path)
    with pytest.raises(EpanError, match="No such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(EpanError, match=r"cannot be read.*record\.jsonl"):
        read(tmp_path)
