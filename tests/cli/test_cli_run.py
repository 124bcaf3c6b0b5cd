"""Train, test, report and stop, through the real command."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def _lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def test_training_says_what_it_does_first(trained: Any) -> None:
    folder, result = trained
    assert result.returncode == 0, result.stderr
    first = result.stdout.splitlines()
    assert "memory_mosaic with biweight-adaptive on copy, seed 0" in first[0]
    for place, word in enumerate(("parameters", "device", "memory", "data", "saved in"), start=1):
        assert word in first[place]
    assert "lengths 2 to 4, 4 sequences a step, 10 steps" in result.stdout
    assert str(folder) in first[5]


def test_training_without_a_terminal_prints_plain_lines(trained: Any) -> None:
    _, result = trained
    assert "step 10/10  loss " in result.stdout
    for word in ("keys/query", "tokens/s", "ETA", "exact match"):
        assert word in result.stdout
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout
    assert result.stderr == ""


def test_the_run_is_recorded_and_can_be_repeated(trained: Any) -> None:
    folder, _ = trained
    (head,) = _lines(folder, "run")
    assert head["command"].startswith("epan train --task copy")
    assert [line["length"] for line in _lines(folder, "eval")] == [4, 8]
    assert _lines(folder, "end")[0]["status"] == "finished"


def test_evaluation_at_new_lengths_and_report(trained: Any, epan: Any) -> None:
    folder, _ = trained
    tested = epan("eval", str(folder), "--lengths", "12,16", "24", "--sequences", "4")
    assert tested.returncode == 0, tested.stderr
    assert "12 " in tested.stdout
    assert "exact match" in tested.stdout
    assert [line["length"] for line in _lines(folder, "eval")] == [4, 8, 12, 16, 24]
    made = epan("report", str(folder), "--out", str(folder / "page"))
    assert made.returncode == 0, made.stderr
    assert str(folder / "page" / "index.html") in made.stdout
    page = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert "Biweight" in page
    assert "6×" in page
    assert (folder / "page" / "figures" / "heat-map.png").exists()
    assert "24" in (folder / "page" / "table.csv").read_text()


def test_evaluation_can_leave_the_record_alone(trained: Any, epan: Any) -> None:
    folder, _ = trained
    before = (folder / "record.jsonl").read_bytes()
    assert epan("eval", str(folder), "--lengths", "5", "--sequences", "2", "--no-record").returncode == 0
    assert (folder / "record.jsonl").read_bytes() == before


def test_the_best_checkpoint_is_tested_by_that_name(trained: Any, epan: Any) -> None:
    folder, _ = trained
    best = epan("eval", str(folder), "--step", "best", "--lengths", "5", "--sequences", "2", "--no-record")
    assert best.returncode == 0, best.stderr
    assert "Step 10 did best in the run's own tests" in best.stdout
    assert epan("eval", str(folder), "--step", "10", "--sequences", "2", "--no-record").returncode == 0
    wrong = epan("eval", str(folder), "--step", "worst")
    assert wrong.returncode == 2
    assert "best" in wrong.stderr


def test_what_is_whole_is_told_from_what_is_not(trained: Any, epan: Any, tmp_path: Path) -> None:
    folder, _ = trained
    whole = epan("verify", str(folder))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "ok       record.jsonl" in whole.stdout
    assert whole.stdout.splitlines()[-1].endswith("are whole.")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    next(copy.glob("checkpoints/*/model.safetensors")).write_bytes(b"")
    damaged = epan("verify", str(copy))
    assert damaged.returncode == 1
    assert "DAMAGED  checkpoints/step-" in damaged.stdout
    assert "model.safetensors has 0 bytes" in damaged.stdout
    nothing = epan("verify", str(tmp_path / "nothing"))
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("epan: Nothing there to verify")


def _wait_for(process: subprocess.Popen[str], word: str, seconds: float = 120.0) -> str:
    assert process.stdout is not None
    said, end = "", time.monotonic() + seconds
    while word not in said:
        ready, _, _ = select.select([process.stdout], [], [], end - time.monotonic())
        assert ready, said
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process")
def test_ctrl_c_saves_and_resume_goes_on(tiny: Any, epan: Any, surroundings: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "epan", "train", *tiny, "--steps", "300", "--out", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, env=surroundings
    ) as process:
        _wait_for(process, "\nstep ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == ""
    assert "Interrupted at step" in out
    assert f"epan train --resume --out {folder}" in out
    assert _lines(folder, "end")[-1]["status"] == "interrupted"
    assert list(folder.glob("checkpoints/step-*/model.safetensors"))

    result = epan("train", "--resume", "--out", str(folder))
    assert result.returncode == 0, result.stderr
    assert "resumed from step" in result.stdout
    assert _lines(folder, "end")[-1]["status"] == "finished"


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_a_bar(tiny: Any, on_terminal: Any, tmp_path: Path) -> None:
    code, said = on_terminal("train", *tiny, "--steps", "6", "--out", str(tmp_path / "run"), columns=80)
    assert code == 0, said
    for word in ("training", "6/6", "loss", "keys/query", "ETA", "testing", "Finished 6 steps"):
        assert word in said, said


def test_a_sweep_runs_all_skips_the_finished_and_tells_of_a_failure(
    epan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from epan.cli import main

    (tmp_path / "many.py").write_text(
        """
from epan.training import EvaluationConfig, ModelConfig, RunConfig, TaskConfig

def runs():
    small = {"width": 16, "heads": 2, "layers": 1, "persistent_size": 4}
    return [
        RunConfig(
            steps=4, batch=2, lengths=(2, 4), device="cpu", task=TaskConfig("copy"), log_every=1,
            model=ModelConfig("memory_mosaic", small, kernel),
            evaluation=EvaluationConfig(lengths=(4,), sequences=4),
        )
        for kernel in ("gaussian", "biweight")
    ]
"""
    )
    result = epan("sweep", "many.py", "--out", "out", "--workers", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "2 of 2 runs finished" in result.stdout
    assert result.stdout.count(": finished  exact match") == 2
    # What follows trains nothing, and may be this process.
    monkeypatch.chdir(tmp_path)
    assert main.run(["sweep", "many.py", "--out", "out"]) == 0
    assert capsys.readouterr().out.count(": skipped") == 2
    assert main.run(["report", "out"]) == 0
    page = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Softmax (Gaussian)" in page
    assert "2 attention methods on copy" in page


def test_the_demo_with_two_of_its_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from epan.cli import demo, main

    monkeypatch.setattr(demo, "METHODS", (demo.METHODS[0], demo.METHODS[-1]))
    out = tmp_path / "demo"
    assert main.run(["demo", "--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "has not learnt" in said or "have not learnt" in said
    assert str(out / "report" / "index.html") in said
    assert "ReLUmax" in said
    assert "Softmax (Gaussian)" in (out / "report" / "index.html").read_text(encoding="utf-8")
    assert len(list(out.glob("*/record.jsonl"))) == 2

    assert main.run(["demo", "--quick", "--out", str(out)]) == 0
    assert "Going on with the demo" in capsys.readouterr().out
    assert not (tmp_path / "demo-1").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_the_demo_from_end_to_end(on_terminal: Any, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code, said = on_terminal("demo", "--quick", "--out", str(out), columns=100)
    assert code == 0, said
    assert "ReLUmax" in said
    assert "has not learnt" in said or "have not learnt" in said
    assert str(out / "report" / "index.html") in said.replace("\r\n", "")
    assert len(list(out.glob("*/record.jsonl"))) == 5
    softmax = re.findall(r"Softmax \(Gaussian\) +([^\r\n]*\S)", said.partition("Sequences without a mistake")[2])
    assert re.fullmatch(r"[\d.]+% +[\d.]+%", softmax[0]), softmax
    assert re.fullmatch(r"[\d.]+ \(100%\) +[\d.]+ \(100%\)", softmax[1]), softmax

    code, said = on_terminal("demo", "--quick", "--out", str(out), columns=100)
    assert code == 0, said
    assert "Going on with the demo" in said
    assert not (tmp_path / "demo-1").exists()


def test_the_doctor_passes_here(epan: Any) -> None:
    result = epan("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout
    assert result.stdout.count("PASS") >= 7
    assert '"auto" takes' in result.stdout
    assert re.search(r"cpu +tiled +every call\n +memory linear in length", result.stdout)
    assert max(map(len, result.stdout.splitlines())) <= 140


def test_the_doctor_as_json(epan: Any) -> None:
    result = epan("doctor", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert {"epan", "python", "torch", "triton", "device", "[lab]"} <= found["environment"].keys()
    assert {check["status"] for check in found["checks"]} <= {"PASS", "SKIP"}
    assert {check["name"]: check["status"] for check in found["checks"]}["a checkpoint comes back whole"] == "PASS"
    calls = {(choice["device"], choice["call"]) for choice in found["backends"]}
    assert {("cpu", f"float32, {rule}") for rule in ("adaptive", "anchored", "fixed", "nearest")} <= calls


def test_the_doctor_tells_what_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in, because the choice is shown where there is no GPU to make it."""
    from epan.cli import doctor

    found = [
        {"device": "cuda", "call": f"{dtype}, {rule}", "backend": backend, "reason": f"because {backend}"}
        for dtype, backend in (("bfloat16", "triton"), ("float32", "tiled"))
        for rule in ("adaptive", "fixed")
    ]
    assert doctor._choice_lines(
        [*found, {"device": "cuda", "call": "float64", "backend": "tiled", "reason": "because tiled"}]
    ) == [
        "  cuda  triton  bfloat16 (adaptive, fixed)",
        "                because triton",
        "  cuda  tiled   float32 (adaptive, fixed); float64",
        "                because tiled",
    ]


def test_the_doctor_finds_a_damaged_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from epan.cli import selftests
    from epan.training import checkpoint

    check = next(check for check in selftests.CHECKS if "checkpoint" in check.name)
    assert check.run().status == "PASS"
    # It reads the manifest and looks at nothing.
    monkeypatch.setattr(checkpoint, "verify", lambda path: json.loads((path / checkpoint.MANIFEST).read_bytes()))
    outcome = check.run()
    assert (outcome.status, outcome.detail) == ("FAIL", "RuntimeError: a changed bit was not found")


def test_the_doctor_finds_what_differs_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from epan import ops
    from epan.cli import selftests

    check = next(check for check in selftests.CHECKS if "same bits" in check.name)
    assert check.run().status == "PASS"
    right = ops.attention
    monkeypatch.setattr(
        ops, "attention", lambda *inputs, **options: right(*inputs, **options) * (1 + 1e-3 * torch.rand(()))
    )
    assert check.run().status == "FAIL"


def test_the_doctor_skips_what_cannot_be_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    from epan.cli import selftests

    check = next(check for check in selftests.CHECKS if "compilers" in check.name)
    monkeypatch.setattr(selftests.shutil, "which", lambda name: None)
    outcome = check.run()
    assert outcome.status == "SKIP"
    assert "no C++ compiler" in outcome.detail


def test_the_doctor_finds_a_wrong_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from epan.cli import doctor

    def wrong() -> float:
        return 1.0

    def broken() -> float:
        raise ZeroDivisionError("broken")

    checks = (doctor.Check("wrong", 1e-12, wrong), doctor.Check("broken", 1e-12, broken))
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.doctor() == 1
    said = capsys.readouterr().out
    assert "FAIL  wrong" in said
    assert "FAIL  broken (ZeroDivisionError: broken)" in said
