"""The study of language models: its runs keep its rules, and tiny ones go from training to table and figure."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import collecting
import language_modeling as study
from epan import models
from epan.data.building import Request, build
from epan.training import EvaluationConfig, RunConfig, load_sweep, train

FILE = Path(study.__file__)


def test_the_sweep_file_lists_every_stage_and_no_label_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_sweep(FILE)
    assert [run.label for run in loaded] == list(
        dict.fromkeys(run.label for stage in study.STAGES.values() for run in stage())
    )
    speeds = {
        (model, f"{m.kernel}-{m.normalization}"): 1000.0 + 7 * n
        for model in study.MODELS
        for n, m in enumerate(study.METHODS)
    }
    monkeypatch.setattr(study, "SPEEDS", speeds)
    listed = study.runs()
    assert not [name for name, count in Counter(map(collecting.identity, listed)).items() if count > 1]
    assert not [label for label, count in Counter(run.label for run in listed).items() if count > 1]
    assert {study.stage_of(run) for run in listed} == set(study.STAGES)
    for run in listed:
        assert run.lengths is not None
        assert run.batch * run.lengths[1] == study.TOKENS_A_STEP


def test_models_are_of_equal_size() -> None:
    sizes = {}
    for run in [run for run in study.main() if run.seed == 0]:
        with torch.device("meta"):
            options = {"vocab_size": 16_384, "kernel": run.model.kernel, "normalization": run.model.normalization}
            model = models.build(run.model.name, {**options, **run.model.options})
        sizes[run.model.name, run.method] = model.num_parameters()
    assert min(sizes.values()) > 30e6
    assert max(sizes.values()) < 45e6
    assert max(sizes.values()) < 1.005 * min(sizes.values())


def test_the_table_is_at_equal_tokens_and_two_seeds() -> None:
    groups: dict[tuple[str, str], list[RunConfig]] = {}
    for run in study.main():
        groups.setdefault((run.model.name, run.method), []).append(run)
    assert len(groups) == 10
    for group in groups.values():
        assert sorted(run.seed for run in group) == [0, 1]
        assert {run.steps for run in group} == {study.STEPS}
        assert len({str(dataclasses.replace(run, seed=0, name=None)) for run in group}) == 1


def test_equal_time_follows_from_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SPEEDS", {})
    assert study.time() == []
    monkeypatch.setattr(
        study, "SPEEDS", {("transformer", "gaussian-adaptive"): 100.0, ("transformer", "biweight-adaptive"): 80.0}
    )
    assert {(run.method, run.steps) for run in study.time()} == {("biweight-adaptive", round(0.8 * study.STEPS))}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study as small as it gets, in a folder of its own that has the tokens."""
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    (tmp_path / "novels").mkdir()
    for number in range(12):
        (tmp_path / "novels" / f"{number:02d}.txt").write_text(
            " ".join(draw.choice(["sea", "ship"]) for _ in range(400))
        )
    build(Request("novels", split="every:6"), study.TOKENS)
    (tmp_path / "other.txt").write_text("another text " * 300)
    for name, value in (("CONTEXT", 16), ("LONG", 32), ("TOKENS_A_STEP", 64), ("STEPS", 4)):
        monkeypatch.setattr(study, name, value)
    small = {"layers": 1, "heads": 2, "width": 8}
    monkeypatch.setattr(study, "MODELS", dict.fromkeys(study.MODELS, small))
    original = study.config

    def plain(*positional: Any, **named: Any) -> RunConfig:
        named.setdefault("context", 16)
        named.setdefault("steps", 4)
        made = original(*positional, **named)
        tests = EvaluationConfig(lengths=made.evaluation.lengths, sequences=16)
        return dataclasses.replace(made, precision="fp32", compile=False, log_every=2, evaluation=tests, device="cpu")

    monkeypatch.setattr(study, "config", plain)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_from_training_to_the_table(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {("memory_mosaic", "gaussian-adaptive"): 100.0, ("memory_mosaic", "epanechnikov-anchored"): 50.0}
    monkeypatch.setattr(study, "SPEEDS", speeds)
    chosen = [run for run in study.main() if run.method in ("gaussian-adaptive", "epanechnikov-anchored")]
    chosen += study.time()
    chosen = [run for run in (*chosen, *study.rates()) if run.model.name == "memory_mosaic"]
    for run in chosen:
        train(run, tiny / "runs" / run.label)
    folder, results = str(tiny / "runs"), tiny / "results"
    ood = ("--ood", str(tiny / "other.txt"), "--device", "cpu")
    assert study.command(["test", folder, *ood, "--seconds", "0"]) == 75
    assert study.command(["test", folder, *ood, "--longest", "32"]) == 0
    ours = tiny / "runs" / chosen[0].label
    assert not study.tests(None).is_tested(ours)
    assert study.command(["test", folder, *ood]) == 0
    assert study.tests(None).is_tested(ours)
    capsys.readouterr()
    assert study.command(["test", folder, *ood]) == 0
    assert capsys.readouterr().out == ""
    assert study.command(["pack", folder, "--out", str(tiny / "archives")]) == 0
    assert study.command(["collect", folder, "--results", str(results)]) == 0
    records = collecting.load(results / "records.jsonl")
    # Backends of a GPU tell these two.
    for record in records:
        record["peak_memory"] = 2e9
        for test in record["evaluations"]:
            for name, values in test["per_layer"].items():
                if record["method"] != "gaussian-adaptive" and name.endswith("contextual"):
                    values["tile_density"] = 0.25 * record["seed"] + test["length"] / 1024
    (results / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert study.command(["tables", "--results", str(results)]) == 0

    with (results / "table.csv").open() as file:
        assert file.readline() == (
            "model,method,parameters,tokens,validation,ood,loss_1x,loss_2x,loss_4x,loss_8x,tokens_per_second,seeds\n"
        )
    table = rows_of(results / "table.csv")
    assert [(row["model"], row["method"], row["seeds"], row["tokens"]) for row in table] == [
        ("mosaic", "gaussian-adaptive", "2", "256"), ("mosaic", "epanechnikov-anchored", "2", "256"),
    ]  # fmt: skip
    assert all(value for row in table for value in row.values())

    # A number of a table is the mean of what the runs have written.
    def losses(method: str, steps: int, split: str, length: int) -> list[float]:
        tests = [
            (record["seed"], test["loss"])
            for record in records
            if (record["method"], record["step"]) == (method, steps)
            for test in record["evaluations"]
            if (test["split"], test["length"]) == (split, length)
        ]
        return [loss for _, loss in sorted(tests)]

    gaussian, relumax = "gaussian-adaptive", "epanechnikov-anchored"
    for name, split, length in (("loss_2x", "test", 32), ("validation", "validation", 16), ("ood", "other.txt", 16)):
        found = losses(gaussian, 4, split, length)
        assert len(found) == 2
        assert float(table[0][name]) == pytest.approx(sum(found) / 2, abs=1e-4)
    ranges = {(row["stage"], row["method"]): row for row in rows_of(results / "ranges.csv")}
    assert set(ranges) == {("main", gaussian), ("main", relumax), ("time", relumax)}
    assert ranges["time", relumax]["tokens"] == "128"
    assert ranges["main", gaussian]["peak_memory_max"] == "2000000000"
    assert float(ranges["main", gaussian]["ood_max"]) == pytest.approx(
        max(losses(gaussian, 4, "other.txt", 16)), abs=1e-4
    )
    judged = {row["equal"]: row for row in rows_of(results / "against_gaussian.csv")}
    for equal, steps in (("tokens", 4), ("time", 2)):
        pairs = zip(losses(relumax, steps, "test", 128), losses(gaussian, 4, "test", 128), strict=True)
        less = [own - other for own, other in pairs]
        assert float(judged[equal]["loss_8x"]) == pytest.approx(sum(less) / 2, abs=1e-4)
        assert float(judged[equal]["loss_8x_max"]) == pytest.approx(max(less), abs=1e-4)
        assert (judged[equal]["steps"], judged[equal]["seeds"]) == (str(steps), "2")
    support = {
        (row["method"], row["length"], row["memory"]): row
        for row in rows_of(results / "support.csv")
        if row["split"] == "test"
    }
    assert float(support[relumax, "128", "contextual"]["tile_density"]) == pytest.approx(0.125 + 128 / 1024)
    assert support[gaussian, "128", "contextual"]["tile_density"] == ""
    # Position i, from 0, sees i keys of a contextual memory, and the first one does not count.
    assert float(support[gaussian, "128", "contextual"]["support_size"]) == sum(range(128)) / 127
    positions = [row for row in rows_of(results / "positions.csv") if (row["split"], row["length"]) == ("test", "16")]
    own = [row for row in positions if (row["stage"], row["method"]) == ("main", gaussian)]
    width = [int(row["last"]) - int(row["first"]) + 1 for row in own]
    assert sum(width) == 16
    mean = sum(float(row["loss"]) * count for row, count in zip(own, width, strict=True)) / 16
    assert mean == pytest.approx(float(table[0]["loss_1x"]), abs=2e-4)
    for name in ("lengths", "positions", "support"):
        assert (results / f"{name}.png").stat().st_size > 10_000
    capsys.readouterr()
    assert study.command(["choose", "--results", str(results)]) == 0
    assert "memory_mosaic  0.001: " in capsys.readouterr().out
    assert "take 0.00" in "".join(study.choose(records))


def test_runs_of_another_rate_are_not_in_the_table(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = study.main()[0]
    train(run, tiny / "run")
    record = collecting.compact(tiny / "run", study.method_of)
    assert record is not None
    assert len(study.plan().groups([record])) == 1
    monkeypatch.setattr(study, "RATES", dict.fromkeys(study.MODELS, 3e-3))
    assert study.plan().groups([record]) == {}


def test_nothing_to_test_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.command(["test", str(tmp_path), "--ood", "x.txt"]) == 2
    assert "No run is finished" in capsys.readouterr().err
