"""Mistakes of the user: one clear message with the fix, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from epan.cli.main import run

WRONG = {
    "kernel": (["train", "--kernel", "biwieght"], ["Unknown kernel 'biwieght'", "did you mean 'biweight'"]),
    "familiar name": (["train", "--kernel", "softmax"], ["Unknown kernel 'softmax'", "gaussian"]),
    "normalization": (["train", "--normalization", "adaptiv"], ["Unknown normalization", "did you mean 'adaptive'"]),
    "task": (["train", "--task", "revers"], ["Unknown task 'revers'", "did you mean 'reverse'"]),
    "task option": (["train", "--set", "task.options.symbol=3"], ["symbol", "did you mean 'symbols'"]),
    "model": (["train", "--model", "transfomer"], ["Unknown model 'transfomer'", "did you mean 'transformer'"]),
    "model option": (["train", "--set", "model.options.widht=3"], ["widht", "did you mean 'width'"]),
    "kernel option": (["train", "--kernel", "polynomial:ordr=5"], ["'ordr'", "did you mean 'order'"]),
    "missing option": (["train", "--set", 'model.normalization={"name": "nearest", "q": 1}'], ["'q'", "Allowed: k."]),
    "vocabulary": (["train", "--set", "model.options.vocab_size=3"], ["'vocab_size'", "comes from the task"]),
    "option": (["train", "--kernal", "biweight"], ["--kernal", "--kernel"]),
    "config key": (["train", "--set", "optimizer.leaning_rate=1"], ["leaning_rate", "learning_rate"]),
    "setting": (["train", "--set", "steps"], ["must look like key=value"]),
    "choice": (["train", "--precision", "fp17"], ["fp17", "fp16"]),
    "number": (["train", "--steps", "many"], ["--steps", "many"]),
    "steps": (["train", "--steps", "0"], ["'steps' is out of range", "at least 1"]),
    "length": (["train", "--lengths", "0"], ["--lengths takes whole numbers of at least 1", "e.g. --lengths 32,64."]),
    "test length": (["train", "--test-lengths", "8,0"], ["--test-lengths takes whole numbers of at least 1"]),
    "config length": (["train", "--set", "lengths=[0,4]"], ["'lengths' is out of range"]),
    "three lengths": (["train", "--lengths", "1,2,3"], ["--lengths takes one or two numbers"]),
    "k": (["train", "--normalization", "nearest:k=0"], ["k of Nearest", "at least 1"]),
    "no k": (["train", "--normalization", "nearest"], ["--normalization nearest:k=16"]),
    "no order": (["train", "--kernel", "polynomial"], ["--kernel polynomial:order=5"]),
    "order": (["train", "--kernel", "polynomial:order=0.5"], ["order"]),
    "combination": (["train", "--kernel", "cosine"], ["not supported", "Fix:"]),
    "config file": (["train", "--config", "nowhere.toml"], ["nowhere.toml", "No such file"]),
    "resume without run": (["train", "--resume"], ["--out RUN"]),
    "nothing to resume": (["train", "--resume", "--out", "nowhere"], ["nowhere"]),
    "run": (["eval", "nowhere"], ["No such run", "nowhere"]),
    "no run": (["eval"], ["RUN"]),
    "sweep file": (["sweep", "nowhere.py"], ["nowhere.py"]),
    "tracker": (["train", "--track", "tensorbord"], ["Unknown tracker 'tensorbord'", "did you mean 'tensorboard'"]),
    "gpus": (["sweep", "sweep.py", "--gpus", "7"], ["There is no GPU '7' here", "--gpus"]),
    "workers": (["sweep", "sweep.py", "--workers", "0"], ["workers", "at least 1"]),
    "runs of a sweep": (["sweep", "sweep.py", "--runs", "pilot"], ["defines no runs", "pilot = None"]),
    "label": (["sweep", "sweep.py", "--only", "sort-*"], ["No run has such a label", "sort-*", "reverse-"]),
    "report": (["report", "nowhere"], ["No such folder"]),
    "empty report": (["report", "."], ["No run record", "epan demo"]),
    "no paths": (["report"], ["PATHS"]),
    "sweep file with an error": (["sweep", "broken.py"], ["ZeroDivisionError", "line 2 of broken.py"]),
    "demo workers": (["demo", "--workers", "0"], ["at least one worker", "--workers 1"]),
    "seeds": (["demo", "--seeds", "0"], ["at least one seed"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_gets_one_message_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.py").write_text("from epan.training import RunConfig\nruns = [RunConfig()]\n")
    (tmp_path / "broken.py").write_text("# a comment\nruns = 1 / 0\n")
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("epan: ")
    assert len(said.err.strip().splitlines()) == 1
    assert "Traceback" not in said.err + said.out
    assert "vocab_size" not in said.err.partition("Allowed:")[2]
    for part in expected:
        assert part in said.err, said.err
    assert {item.name for item in tmp_path.iterdir()} - {"__pycache__"} == {"sweep.py", "broken.py"}


def test_the_real_command_gives_the_same_message_and_code(epan: Any, tmp_path: Path) -> None:
    result = epan("train", "--kernel", "biwieght", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("epan: Unknown kernel 'biwieght'")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_config_with_a_misspelt_key_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text('seed = 1\n[model]\nkernal = "biweight"\n')
    assert run(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'model.kernel'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_kept(trained: Any, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained
    before = (folder / "record.jsonl").read_bytes()
    assert run(["train", *tiny, "--steps", "10", "--out", str(folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (folder / "record.jsonl").read_bytes() == before


def test_a_file_in_the_way_of_the_output_is_kept(tmp_path: Path, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    assert run(["train", *tiny, "--steps", "2", "--out", str(tmp_path / "file")]) == 2
    assert run(["train", *tiny, "--steps", "2", "--out", str(tmp_path / "file" / "run")]) == 2
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("Fix: ") == 3
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission_is_a_clear_error(
    tmp_path: Path, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run(["train", *tiny, "--steps", "2", "--out", str(tmp_path / "locked" / "run")]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_message_gives_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "no\x1b[2Jwhere"]) == 2
    assert r"no\x1b[2Jwhere" in capsys.readouterr().err


def test_a_missing_and_a_truncated_checkpoint(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (weights,) = copy.glob("checkpoints/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    assert run(["eval", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "Fix:" in said
    assert "Traceback" not in said
    shutil.rmtree(copy / "checkpoints")
    assert run(["eval", str(copy)]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_too_long_a_test_for_the_task_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--task", "mqar", "--set", "task.options.words=8", "--lengths", "2,3", "--test-lengths", "99"]
    assert run([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "cannot have the length 99" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
