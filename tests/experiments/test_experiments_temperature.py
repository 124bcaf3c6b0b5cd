"""Trained runs with β multiplied: what is tested, what validation chooses, and what comes into the table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import collecting
import length_generalization as study
import tempering
from epan.errors import EpanError
from epan.training import RunConfig, records

NEAREST = {"name": "nearest", "k": 16}


def ladder() -> tempering.Ladder:
    return tempering.Ladder(
        factors=(0.5, 1.0, 2.0),
        numbers={"power": (-0.5, 0.0, 0.5), "logarithm": (0.0, 1.0)},
        trained=64,
        longer=(128, 256),
        lengths=lambda run: (64, 128),
        sequences=lambda length: 5,
    )


def test_factors_grow_with_the_length_as_they_say() -> None:
    rule = ladder()
    assert [rule.factor("power", 0.5, length) for length in (64, 256, 65_536)] == [1, 2, 32]
    assert rule.factor("logarithm", 0.25, 65_536) == pytest.approx(1 + 0.25 * 6.931472, rel=1e-5)
    assert rule.factor("constant", 2.0, 65_536) == 2


def _done(score: Any) -> dict[tuple[str, int, float], dict[str, float]]:
    rule, run = ladder(), study.main()[0]
    return {
        (split, length, factor): dict(zip(("exact_match", "loss"), score(length, factor), strict=True))
        for split, length, factor in rule.wanted(run, {})
        if split == "validation"
    }


def test_validation_chooses_by_exact_match_then_loss_then_what_changes_least() -> None:
    rule = ladder()
    best = {128: 1.41421, 256: 2.0}
    by_exact = _done(lambda length, factor: (float(factor == best.get(length)), 1.0))
    assert rule.chosen("power", rule.longer, by_exact) == 0.5
    by_loss = _done(lambda length, factor: (1.0, factor))
    assert rule.chosen("power", rule.longer, by_loss) == -0.5
    assert rule.chosen("constant", (64,), by_loss) == 0.5
    equal = _done(lambda length, factor: (1.0, 0.0))
    assert [rule.chosen(growth, rule.longer, equal) for growth in ("constant", "power", "logarithm")] == [1, 0, 0]
    # One test that is not there yet might have been the best.
    del equal["validation", 256, 2.0]
    assert rule.chosen("power", rule.longer, equal) is None
    assert rule.chosen("constant", (64,), equal) == 1


def test_what_is_chosen_is_tested_at_every_length() -> None:
    rule, run = ladder(), study.main()[0]
    done = _done(lambda length, factor: (float(factor in (1.41421, 2.0)), 1.0))
    wanted = rule.wanted(run, done)
    assert ("test", 128, 1.41421) in wanted
    assert ("test", 128, 1.41421) not in rule.wanted(run, {})
    assert len(wanted) == len(set(wanted))


def test_equal_weights_on_the_nearest_keys_have_no_temperature() -> None:
    runs = {study.method_of(run): run for run in study.main() if run.model.name == "memory_mosaic"}
    without = {method for method, run in runs.items() if not tempering.has_temperature(run)}
    assert without == {"uniform-nearest(k=16)"}


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in records.read(folder) if entry["kind"] == "temperature"]


def test_a_run_is_tempered_once_and_its_record_and_the_table_keep_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only, results = ["--only", "*seed1"], tmp_path / "results"
    assert study.command(["temperature", str(trained), *only, "--seconds", "0"]) == 75
    assert "The same command goes on" in capsys.readouterr().out
    assert study.command(["temperature", str(trained), *only, "--longest", "4"]) == 0
    folders = [trained / run.label for run in study.main() if run.seed == 1]
    assert {line["length"] for folder in folders for line in _lines(folder)} == {4}
    assert study.command(["temperature", str(trained), *only]) == 0
    assert capsys.readouterr().out
    assert study.command(["temperature", str(trained), *only]) == 0
    assert capsys.readouterr().out == ""
    for folder in folders:
        lines = {(line["split"], line["length"], line["factor"]): line for line in _lines(folder)}
        assert len(lines) == len(_lines(folder))
        assert {key[1:] for key in lines if key[0] == "test"} >= {(n, f) for n in (4, 8) for f in study.FACTORS}
        for entry in records.read(folder):
            if (entry["kind"], entry.get("split"), entry.get("sequences")) == ("eval", "test", 5):
                # Nothing is changed by a factor of 1, and something by another.
                assert lines["test", entry["length"], 1.0]["loss"] == pytest.approx(entry["loss"], rel=1e-5)
                assert lines["test", entry["length"], 2.0]["loss"] != pytest.approx(entry["loss"], rel=1e-5)
    assert study.command(["collect", str(trained), "--results", str(results)]) == 0
    found = [json.loads(line) for line in (results / "records.jsonl").read_text().splitlines()]
    kept = [record["temperatures"] for record in found if record["seed"] == 1]
    assert [len(rows) for rows in kept] == [len(_lines(trained / r["name"])) for r in found if r["seed"] == 1]
    assert study.command(["tables", "--results", str(results)]) == 0
    rows = list(csv.DictReader((results / "temperature.csv").read_text().splitlines()))
    for method in ("gaussian-adaptive", "biweight-adaptive"):
        names = [row["temperature"] for row in rows if row["method"] == method and row["length"] == "8"]
        assert names == [
            *("0.5", "1", "2"),
            "constant, on validation at 4",
            "constant, on validation to 8",
            "power, on validation to 8",
        ]
    assert {row["seeds"] for row in rows} == {"1"}
    assert (results / "copy-temperature.png").read_bytes().startswith(b"\x89PNG")
    made = (results / "copy-temperature.png").read_bytes()
    assert study.command(["tables", "--results", str(results)]) == 0
    assert (results / "copy-temperature.png").read_bytes() == made


def test_what_two_records_of_a_run_know_is_put_together(trained: Path, tmp_path: Path) -> None:
    results, run = tmp_path / "results", study.main()[1]
    arguments = ["collect", str(trained), "--results", str(results)]
    row = {"split": "test", "length": 4, "sequences": 5, "exact_match": 0.5, "token_accuracy": 0.5, "loss": 1.0}
    record = trained / run.label / records.FILE_NAME
    plain = record.read_text()
    for factor in (2.0, 0.5):
        # Each time as on another machine, where the other factor was not tested.
        record.write_text(plain)
        with records.RecordWriter(record) as writer:
            writer.write("temperature", factor=factor, step=6, seed=0, **row)
        assert study.command(arguments) == 0
    found = [json.loads(line) for line in (results / "records.jsonl").read_text().splitlines()]
    (rows,) = (line["temperatures"] for line in found if line["name"] == run.label)
    assert [dict(zip(collecting.TEMPERED, row, strict=True))["factor"] for row in rows] == [0.5, 2.0]
    before = (results / "records.jsonl").read_bytes()
    assert study.command(arguments) == 0
    assert (results / "records.jsonl").read_bytes() == before


def test_records_from_before_there_were_temperatures_stay_as_they_are(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert study.command(["collect", str(trained), "--results", str(results)]) == 0
    path = results / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["temperatures"], line["attention"]
    old = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(old)
    assert study.command(["collect", str(trained), "--results", str(results)]) == 0
    assert path.read_text() == old
    assert study.command(["tables", "--results", str(results)]) == 0
    assert not (results / "temperature.csv").exists()


def test_a_run_that_is_not_finished_is_no_run_to_temper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    run = study.main()[0]
    with records.RecordWriter(tmp_path / "run") as writer:
        writer.write("run", name=run.label, config=run.to_dict())
    for what in ("temperature", "diagnose"):
        assert study.command([what, str(tmp_path)]) == 2
        assert "No run is finished" in capsys.readouterr().err
    with pytest.raises(EpanError, match="No such folder"):
        tempering.temper([tmp_path / "nowhere"], ladder(), study_selection())


def study_selection() -> Any:
    import testing

    return testing.Selection()


def test_runs_keep_their_labels() -> None:
    assert RunConfig.from_dict(study.main()[0].to_dict()).label == study.main()[0].label
