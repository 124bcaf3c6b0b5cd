"""Sweeps: files of runs, processes, skipping, failing and stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.training import (
    ModelConfig,
    OptimizerConfig,
    Progress,
    RunConfig,
    RunState,
    StepInfo,
    SweepProgress,
    load_sweep,
    records,
    run_sweep,
    train,
)
from epan.training.sweepfile import select

GOOD = "from epan.training import RunConfig\n"


class Notes(SweepProgress):
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.updates = 0

    def on_run(self, state: RunState) -> None:
        self.changes.append((state.label, state.status))

    def on_update(self, states: Any) -> None:
        self.updates += 1


class StopAtThree(Progress):
    def on_step(self, info: StepInfo) -> None:
        if info.step == 3:
            raise KeyboardInterrupt


def test_a_sweep_is_a_function_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "sweep.py"
    for text in (
        "def runs():\n    return [RunConfig(seed=s) for s in (1, 2)]",
        "runs = [RunConfig(seed=s) for s in (1, 2)]",
    ):
        file.write_text(GOOD + text)
        assert load_sweep(file) == [RunConfig(seed=1), RunConfig(seed=2)]


def test_a_file_may_have_several_lists_of_runs(tmp_path: Path) -> None:
    file = tmp_path / "sweep.py"
    file.write_text(GOOD + "runs = [RunConfig(seed=1)]\ndef pilot():\n    return [RunConfig(seed=2)]")
    assert load_sweep(file, "pilot") == [RunConfig(seed=2)]
    with pytest.raises(EpanError, match=r"defines no runs.*other = None.*def other"):
        load_sweep(file, "other")


def test_patterns_choose_runs_by_their_label() -> None:
    runs = [RunConfig(name=name) for name in ("sort-a-seed0", "sort-a-seed1", "copy-a-seed0", "Sort-b")]
    assert select(runs, []) == runs
    assert select(runs, ["sort-*"]) == runs[:2]
    # In the order of the runs, each once.
    assert select(runs, ["copy-*", "*seed0"]) == [runs[0], runs[2]]
    with pytest.raises(EpanError, match=r"No run has such a label.*seed0.*sort-a-seed1.*and 1 more"):
        select(runs, ["sort-*", "seed0"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["defines no runs", "None"]),
        ("runs = []", ["defines no runs"]),
        ("runs = [3]", ["no RunConfig", "3"]),
        ("x = 1\nruns = [RunConfig(seed=1 / 0)]", ["ZeroDivisionError", "line 3"]),
        ("def runs(:", ["SyntaxError", "line 2"]),
        ("runs = [RunConfig(steps=0)]", ["'steps'"]),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "sweep.py"
    file.write_text(GOOD + text)
    with pytest.raises(EpanError) as caught:
        load_sweep(file)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for name in ("sweep.py", "sweep.json"):
        with pytest.raises(EpanError, match="Python file"):
            load_sweep(tmp_path / name)


def test_nothing_starts_if_anything_is_wrong(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    good = tiny(steps=1)
    for configs, words in (
        ([good, tiny(steps=1)], "same label"),
        ([good, tiny(seed=1, model=ModelConfig(kernel="biwieght"))], "biwieght"),
    ):
        with pytest.raises(EpanError, match=words):
            run_sweep(configs, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(EpanError, match="workers of at least 1"):
        run_sweep([good], tmp_path / "out", workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(EpanError, match="cannot be used"):
        run_sweep([good], tmp_path / "file", validate=False)
    train(good, tmp_path / "out" / good.label)
    with pytest.raises(EpanError, match=r"another config.*steps: 1 -> 2"):
        run_sweep([tiny(steps=2)], tmp_path / "out", validate=False)


def test_runs_finish_fail_resume_and_are_skipped(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    done, fresh, stopped = tiny(name="done"), tiny(name="fresh", seed=1), tiny(name="stopped", seed=2)
    failing = tiny(name="failing", optimizer=OptimizerConfig(learning_rate=1e38, warmup=0.0, clip=None))
    train(done, tmp_path / "done")
    assert train(stopped, tmp_path / "stopped", progress=StopAtThree()).status == "interrupted"
    notes = Notes()
    result = run_sweep([failing, done, fresh, stopped], tmp_path, workers=2, progress=notes, validate=False)
    assert {state.label: state.status for state in result.states} == {
        "failing": "failed",
        "done": "skipped",
        "fresh": "finished",
        "stopped": "finished",
    }
    resumed = [entry["step"] for entry in records.read(tmp_path / "stopped") if entry.get("event") == "resumed"]
    assert resumed == [3]
    assert (result.exit_code, result.interrupted) == (1, False)
    assert "is not finite" in result.states[0].message
    assert sorted(notes.changes) == [
        ("done", "skipped"),
        ("failing", "failed"),
        ("failing", "running"),
        ("fresh", "finished"),
        ("fresh", "running"),
        ("stopped", "finished"),
        ("stopped", "running"),
    ]
    assert notes.updates >= 1
    summary = result.states[2].summary
    assert (summary.step, summary.steps, summary.status) == (8, 8, "finished")
    assert len(summary.evaluations) == 2
    # The numbers are those of the run in this process.
    here = train(fresh, tmp_path / "here")
    assert here.evaluations == summary.evaluations
    assert here.loss == summary.loss


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_saves_every_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    configs = [tiny(steps=4000, log_every=1, seed=seed, name=f"run{seed}") for seed in range(2)]
    plans = [json.dumps(config.to_dict()) for config in configs]
    (tmp_path / "sweep.py").write_text(
        f"import json\n{GOOD}runs = [RunConfig.from_dict(json.loads(t)) for t in {plans}]"
    )
    code = f"""
from epan.training import load_sweep, run_sweep
runs = load_sweep({str(tmp_path / "sweep.py")!r})
raise SystemExit(run_sweep(runs, {str(tmp_path / "out")!r}, validate=False).exit_code)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    folders = [tmp_path / "out" / config.label for config in configs]

    def steps() -> list[int]:
        there = [folder / records.FILE_NAME for folder in folders]
        return [records.summary(records.read(path)).step if path.exists() else 0 for path in there]

    deadline = time.monotonic() + 120
    while min(steps()) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    for folder, step in zip(folders, steps(), strict=True):
        summary = records.summary(records.read(folder))
        assert (summary.status, summary.step) == ("interrupted", step)
        assert 1 <= step < 4000
        assert (folder / "checkpoints" / f"step-{step:08d}").is_dir()
