"""The study of length generalisation: its runs keep its rules, and a tiny one goes from training to table and figure."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import collecting
import length_generalization as study
from epan.errors import EpanError
from epan.training import RunConfig, check, load_sweep, records, train

FILE = Path(study.__file__)


# ---------------------------------------------------------------------- the runs


def test_the_sweep_file_lists_every_stage_and_no_label_twice() -> None:
    loaded = load_sweep(FILE)
    assert not [label for label, count in Counter(run.label for run in loaded).items() if count > 1]
    assert not [name for name, count in Counter(map(collecting.identity, loaded)).items() if count > 1]
    assert {run.label for run in loaded} == {run.label for stage in study.STAGES.values() for run in stage()}
    for name, stage in study.STAGES.items():
        assert load_sweep(FILE, name) == stage()


def test_every_run_can_be_built() -> None:
    # Budget, seed and rate change nothing in what is built.
    different = {(run.task.name, run.model.name, study.method_of(run)): run for run in study.runs()}
    for run in different.values():
        check(run)


def test_every_method_has_three_seeds_one_budget_and_one_rate() -> None:
    groups: dict[tuple[str, str, str], list[RunConfig]] = defaultdict(list)
    for run in study.main():
        groups[run.task.name, run.model.name, study.method_of(run)].append(run)
        assert run.steps == study.PLANS[run.task.name].steps
        assert (run.batch, run.lengths, run.precision) == (study.PLANS[run.task.name].batch, (32, 64), "bf16")
        assert run.optimizer.learning_rate in study.LEARNING_RATES
    for group in groups.values():
        assert sorted(run.seed for run in group) == [0, 1, 2]
        assert len({str(dataclasses.replace(run, seed=0, name=None)) for run in group}) == 1
    mosaics = {method for task, model, method in groups if model == "memory_mosaic" and task == "reverse"}
    compact = {f"{kernel}-{rule}" for kernel in study.COMPACT for rule in ("adaptive", "anchored", "fixed")}
    assert mosaics >= compact | {
        "gaussian-adaptive",
        "gaussian-nearest(k=16)",
        "uniform-nearest(k=16)",
        "gaussian-adaptive+adaptive_bandwidth",
        "biweight-adaptive+adaptive_bandwidth",
    }
    for task in study.PLANS:
        assert {method for other, model, method in groups if model == "memory_mosaic" and other == task} == mosaics


def test_both_rates_are_tried_on_one_method_of_each_family() -> None:
    tried: dict[tuple[str, str, str], set[float]] = defaultdict(set)
    for run in study.rates():
        assert run.seed == 0
        tried[run.task.name, run.model.name, study.method_of(run)].add(run.optimizer.learning_rate)
    assert set(map(frozenset, tried.values())) == {frozenset(study.LEARNING_RATES)}
    assert len(tried) == 8 * len(study.PLANS)
    for (model, task), rates in study.RATES.items():
        assert set(rates.values()) <= set(study.LEARNING_RATES)
        assert {method.family for method in study.METHODS[model]} == set(rates), task
    # Seed 0 at the chosen rate is trained once.
    assert {run.label for run in study.rates()} & {run.label for run in study.main()}


def test_going_beyond_tries_few_things_once_at_the_budget_of_all() -> None:
    found = study.beyond()
    models = {"reverse": "transformer", "sort": "transformer", "mqmtar": "memory_mosaic"}
    assert {run.task.name for run in found} == set(models)
    for run in found:
        assert sum(other.task.name == run.task.name for other in found) <= 8
        assert (run.seed, run.steps, run.model.name) == (0, study.PLANS[run.task.name].steps, models[run.task.name])
    # Whatever differs from the model of the main table is in the name, and nothing else is.
    methods = [study.method_of(run) for run in found]
    assert {"epanechnikov-anchored+heads=2", "epanechnikov-anchored+heads=2+nope+short_conv=5"} <= set(methods)
    assert not {run.label for run in found} & {run.label for stage in (study.main, study.longer) for run in stage()}


def test_a_tuned_k_and_a_chosen_rate_come_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "TUNED_K", {"sort": 32})
    monkeypatch.setitem(study.RATES["memory_mosaic", "sort"], "gaussian", 3e-3)
    of_sort = {study.method_of(run): run for run in study.main() if run.task.name == "sort"}
    assert of_sort["uniform-nearest(k=32)"].optimizer.learning_rate == 3e-3
    assert of_sort["gaussian-adaptive+adaptive_bandwidth"].optimizer.final_learning_rate == pytest.approx(1.5e-4)
    assert "uniform-nearest(k=32)" not in {study.method_of(run) for run in study.main() if run.task.name == "copy"}


# ---------------------------------------------------------------------- a tiny study, from training to figure


def _collect(trained: Path, results: Path) -> list[dict[str, Any]]:
    assert study.command(["collect", str(trained), "--results", str(results)]) == 0
    return [json.loads(line) for line in (results / "records.jsonl").read_text().splitlines()]


def test_a_record_holds_what_repeats_the_run_and_what_came_out(trained: Path, tmp_path: Path) -> None:
    found = _collect(trained, tmp_path / "results")
    assert len(found) == 6
    record = found[0]
    assert RunConfig.from_dict(record["config"]) in [*study.rates(), *study.main()]
    assert record["command"].endswith(f"--only {record['name']}")
    assert record["hardware"] == "cpu"
    assert (record["status"], record["step"]) == ("finished", 6)
    assert record["seconds"] > 0
    assert [step for step, _ in record["losses"]] == [2, 4, 6]
    assert record["loss"] == pytest.approx(sum(loss for _, loss in record["losses"]) / 3, rel=1e-4)
    tests = {(test["split"], test["length"]): test["sequences"] for test in record["evaluations"]}
    assert tests == {("validation", 4): 5, ("test", 4): 5, ("test", 8): 5}
    assert len(record["bandwidth"]) == 2


def test_collecting_again_changes_nothing_and_a_better_record_replaces_a_worse_one(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, label = tmp_path / "results", study.main()[0].label
    record = trained / label / records.FILE_NAME
    whole = record.read_text()
    lines = whole.splitlines(keepends=True)
    # As it was before the tests, and half way.
    record.write_text("".join(lines[: next(i for i, line in enumerate(lines) if '"step": 4' in line) + 1]))
    found = {line["name"]: line for line in _collect(trained, results)}
    assert (found[label]["status"], found[label]["step"]) == ("unfinished", 4)
    assert len(found) == 6
    record.write_text(whole)
    found = {line["name"]: line for line in _collect(trained, results)}
    assert "1 more complete" in capsys.readouterr().out
    assert (found[label]["status"], len(found[label]["evaluations"])) == ("finished", 3)
    before = (results / "records.jsonl").read_bytes()
    _collect(trained, results)
    assert (results / "records.jsonl").read_bytes() == before
    # A worse one comes too late, and a run may be gone from the disk.
    record.write_text("".join(lines[:3]))
    shutil.rmtree(trained / study.main()[1].label)
    _collect(trained, results)
    assert (results / "records.jsonl").read_bytes() == before


def test_the_table_has_mean_and_range_over_the_seeds(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    _collect(trained, results)
    path = results / "records.jsonl"
    # What six steps learn is nothing, so exact matches are put in by hand.
    exact = {0: 1.0, 1: 0.5}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for test in line["evaluations"]:
            test["exact_match"] = exact[line["seed"]] if test["length"] == 4 else 0.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert study.command(["tables", "--results", str(results)]) == 0
    text = (results / "table.csv").read_text()
    assert text.splitlines()[0] == "task,model,method,length,mean,min,max,seeds"
    rows = list(csv.DictReader(text.splitlines()))
    # The rates that were not chosen are not in it.
    assert [(row["method"], row["length"]) for row in rows] == [
        (method, length) for method in ("gaussian-adaptive", "biweight-adaptive") for length in ("4", "8")
    ]
    assert [rows[0][name] for name in ("mean", "min", "max", "seeds")] == ["0.75", "0.5", "1", "2"]
    assert [rows[1][name] for name in ("mean", "min", "max", "seeds")] == ["0", "0", "0", "2"]
    made = {name: (results / name).read_bytes() for name in ("table.csv", "diagnostics.csv", "copy.png")}
    assert made["copy.png"].startswith(b"\x89PNG")
    assert study.command(["tables", "--results", str(results)]) == 0
    assert made == {name: (results / name).read_bytes() for name in made}


def test_tables_come_from_run_folders_too(trained: Path, tmp_path: Path) -> None:
    assert study.command(["tables", str(trained), "--results", str(tmp_path / "one")]) == 0
    assert not (tmp_path / "one" / "records.jsonl").exists()
    _collect(trained, tmp_path / "two")
    assert study.command(["tables", "--results", str(tmp_path / "two")]) == 0
    assert (tmp_path / "one" / "table.csv").read_bytes() == (tmp_path / "two" / "table.csv").read_bytes()


def test_a_test_of_too_few_sequences_is_no_result(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "sequences", lambda length: 6)
    assert study.command(["tables", str(trained), "--results", str(tmp_path)]) == 2


def test_few_sequences_are_enough_above_a_length_at_which_none_is_right() -> None:
    import testing

    tests = testing.Study(lengths=lambda run: (), sequences=lambda length: 1_000 if length < 64 else 200, few=100)

    def of(split: str, length: int, exact: float, sequences: int) -> dict[str, Any]:
        return {"split": split, "length": length, "exact_match": exact, "sequences": sequences}

    none = of("test", 16, 0.0, 1_000)
    for before, wanted in (
        ([], 1_000),
        ([of("test", 16, 0.001, 1_000)], 1_000),
        ([none], 100),
        # Not all sequences, another split, a longer length.
        ([of("test", 16, 0.0, 999)], 1_000),
        ([of("validation", 16, 0.0, 1_000)], 1_000),
        ([of("test", 64, 0.0, 200)], 1_000),
        # What few sequences say of a length in between does not count, but what all say of a shorter one does.
        ([none, of("test", 24, 0.0, 100)], 100),
    ):
        assert tests.wanted("test", 32, before) == wanted
    assert tests.wanted("test", 64, [none]) == 100
    assert tests.wanted("validation", 32, [none]) == 1_000
    assert dataclasses.replace(tests, few=None).wanted("test", 32, [none]) == 1_000


def test_what_is_tested_is_not_tested_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.command(["test", str(trained)]) == 0
    assert capsys.readouterr().out == ""
    study.PLANS["copy"] = study.Plan(6, (4, 8, 16))
    assert study.command(["test", str(trained), "--seconds", "0"]) == 75
    assert "6 tests are left" in capsys.readouterr().out
    assert study.command(["test", str(trained), "--only", "*seed1", "--longest", "15"]) == 0
    assert capsys.readouterr().out == ""
    assert study.command(["test", str(trained), "--only", "*seed1"]) == 0
    assert capsys.readouterr().out.count("test 16:") == 2
    assert study.command(["test", str(trained), "--only", "nothing"]) == 2


def test_the_rule_takes_the_rate_with_the_better_validation(trained: Path, tmp_path: Path) -> None:
    found = _collect(trained, tmp_path)

    def put(family: str, values: dict[float, tuple[float, float]]) -> None:
        for record in found:
            kernel = "gaussian" if family == "gaussian" else "biweight"
            if record["seed"] == 0 and record["method"].startswith(kernel):
                test = next(test for test in record["evaluations"] if test["split"] == "validation")
                test["exact_match"], test["loss"] = values[record["config"]["optimizer"]["learning_rate"]]

    put("gaussian", {1e-3: (1.0, 0.2), 3e-3: (0.9, 0.1)})
    put("adaptive", {1e-3: (1.0, 0.2), 3e-3: (1.0, 0.1)})
    assert {row["family"]: row["rate"] for row in study.decided(found)} == {"gaussian": 1e-3, "adaptive": 3e-3}
    half = [record for record in found if record["config"]["optimizer"]["learning_rate"] == 1e-3]
    assert {row["rate"] for row in study.decided(half)} == {None}


def test_chosen_rates_are_kept_and_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _collect(trained, tmp_path)
    path = tmp_path / study.CHOSEN
    path.write_text('{"transformer": {"copy": {"gaussian": 0.003}}}')
    assert study.command(["rates", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    rule = {row["family"]: row["rate"] for row in study.decided(collecting.load(tmp_path / "records.jsonl"))}
    assert set(rule) == {"gaussian", "adaptive"}
    assert all(f"take {rate:g}" in said for rate in rule.values())
    # What has no records stays.
    assert json.loads(path.read_text()) == {
        "transformer": {"copy": {"gaussian": 0.003}}, "memory_mosaic": {"copy": rule}
    }  # fmt: skip
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    other = {family: (4e-3 - rate) for family, rate in rule.items()}
    path.write_text(json.dumps({"memory_mosaic": {"copy": other}}))
    assert study._rates() == {("memory_mosaic", "copy"): other}
    path.unlink()
    assert study._rates() == {("memory_mosaic", "copy"): {"gaussian": 1e-3, "adaptive": 1e-3}}


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"memory_mosaic": 3}', '{"memory_mosaic": {"copy": {"gaussian": 0.5}}}']
)
def test_damaged_rates_are_told_and_left(
    trained: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _collect(trained, tmp_path)
    path = tmp_path / study.CHOSEN
    path.write_text(damage)
    assert study.command(["rates", "--results", str(tmp_path)]) == 2
    assert str(path) in (said := capsys.readouterr().err)
    assert "restore the file" in said
    assert path.read_text() == damage


def test_damage_is_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    label = study.main()[0].label
    record = trained / label / records.FILE_NAME
    # Half a line, and a line of something else.
    record.write_text(
        record.read_text().replace('{"kind": "step", "step": 2,', '{"kind"\n[1]\n{"kind', 1) + '{"kind": "ev'
    )
    (trained / "empty").mkdir()
    (trained / "empty" / records.FILE_NAME).write_text("no record\n")
    found = {line["name"]: line for line in _collect(trained, results)}
    assert found[label]["damaged"] == 4
    assert found[label]["status"] == "finished"
    assert "4 damaged lines skipped" in (out := capsys.readouterr().out)
    assert "1 not started" in out
    path = results / "records.jsonl"
    for damage in ("{", '{"schema": 99, "evaluations": [], "identity": "a"}', "3"):
        whole = path.read_text()
        path.write_text(whole + damage + "\n")
        for command in (["collect", str(trained)], ["tables"], ["rates"]):
            assert study.command([*command, "--results", str(results)]) == 2
            assert "line 7 of" in capsys.readouterr().err
        assert path.read_text() == whole + damage + "\n"
        path.write_text(whole)


def test_other_runs_are_left_out_and_nothing_is_an_error(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = study.main()[0].label
    record = trained / label / records.FILE_NAME
    record.write_text(record.read_text().replace('"batch": 4', '"batch": 8'))
    assert len(_collect(trained, tmp_path)) == 5
    assert "1 of no run of the study" in capsys.readouterr().out
    assert study.command(["tables", "--results", str(tmp_path / "nothing")]) == 2
    assert "0 records" in capsys.readouterr().err
    assert study.command(["collect", str(tmp_path / "nowhere"), "--results", str(tmp_path)]) == 2


def test_packed_runs_go_on_elsewhere(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = study.main()[:2]
    # The first is not finished: its record ends with the checkpoint of step 4.
    half = Path("runs") / first.label
    lines = (half / records.FILE_NAME).read_text().splitlines(keepends=True)
    (half / records.FILE_NAME).write_text(
        "".join(line for line in lines if not any(text in line for text in ('"step": 6', '"kind": "end"')))
    )
    assert study.command(["pack", "runs", "--out", "packed"]) == 0
    there = tmp_path / "there"
    for archive in sorted(Path("packed").iterdir()):
        with tarfile.open(archive) as opened:
            opened.extractall(there, filter="data")
    assert any((there / half / "checkpoints").iterdir())
    assert [path.name for path in (there / "runs" / second.label).iterdir()] == [records.FILE_NAME]
    assert train(first, there / half, resume="auto").status == "finished"
    assert train(second, there / "runs" / second.label, resume="auto").status == "finished"


def test_archives_stay_below_their_size(trained: Path, tmp_path: Path) -> None:
    largest = max(
        sum(path.stat().st_size + 2048 for path in folder.rglob("*")) for folder in collecting.folders_below([trained])
    )
    made = collecting.pack([trained], tmp_path / "packed", None, most=largest + 20_000)
    assert len(made) > 1
    assert all(path.stat().st_size <= largest + 20_000 for path in made)
    names: list[str] = []
    for path in made:
        with tarfile.open(path) as opened:
            names += opened.getnames()
    assert len(names) == len(set(names)) == sum(path.is_file() for path in trained.rglob("*"))
    with pytest.raises(EpanError, match="too large"):
        collecting.pack([trained], tmp_path / "other", None, most=1000)
    with pytest.raises(EpanError, match="archives already"):
        collecting.pack([trained], tmp_path / "packed", None)
