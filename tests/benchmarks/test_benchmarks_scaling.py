"""The benchmark of several processes runs, on the CPU and small, and its records say what was compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import scaling

SMALL = [
    "--device", "cpu", "--layers", "1", "--width", "16", "--heads", "2", "--vocab", "32", "--length", "16", "--batch", "4",
    "--warmup", "1", "--steps", "2",
]  # fmt: skip


def judge(records: list[dict[str, Any]], said: str) -> None:
    told = [(r["model"], r["scaling"], r["processes"], r["batch"], r["tokens"]) for r in records]
    # Words of seven symbols, and so 16 predictions a sequence.
    assert told == [
        (model, kind, processes, batch, 16 * batch)
        for kind, processes, batch in (("one", 1, 4), ("weak", 2, 8), ("strong", 2, 4))
        for model in ("memory_mosaic", "transformer")
    ]
    for model in ("memory_mosaic", "transformer"):
        one, weak, strong = (r for r in records if r["model"] == model)
        assert one["speed_up"] == 1
        for other in (weak, strong):
            assert other["speed_up"] == pytest.approx(other["tokens_per_second"] / one["tokens_per_second"], rel=1e-3)
        # The same sequences and weights.
        assert strong["loss"] == pytest.approx(one["loss"], rel=2e-2)
        assert weak["loss"] != one["loss"]
    lines = said.splitlines()
    assert lines[0].split() == [
        "model",
        "scaling",
        "processes",
        "batch",
        "tokens/s",
        "spread",
        "memory",
        "MB",
        "speed-up",
    ]
    assert len(lines) == 1 + len(records)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_command_compares_two_processes_with_one(tmp_path: Path, parallel: str) -> None:
    file = tmp_path / "records.jsonl"
    command = [sys.executable, str(Path(scaling.__file__)), "--gpus", "2", *SMALL, "--parallel", parallel]
    command += ["--models", "biweight,transformer", "--records", str(file), "--run", "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    judge([json.loads(line) for line in file.read_text().splitlines()], done.stdout)


def test_the_comparison_is_recorded_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the group of processes replaced by this one, which does all of its work."""

    def start(world: int, batch: int, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
        result = tmp_path / "found.json"
        scaling.main([*arguments, "--batch", str(batch), "--worker", str(result)])
        return json.loads(result.read_text())

    monkeypatch.setattr(scaling, "start", start)
    file = tmp_path / "records.jsonl"
    scaling.main(["--gpus", "2", *SMALL, "--models", "biweight,transformer", "--records", str(file), "--run", "test"])
    judge([json.loads(line) for line in file.read_text().splitlines()], capsys.readouterr().out)


def test_a_group_is_started_with_the_arguments_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun's own parser reads them: it once took "--run" for a short form of an option of its own."""
    from torch.distributed.run import parse_args

    def run(command: list[str], **options: Any) -> Any:
        given = parse_args(command[command.index("torch.distributed.run") + 1 :])
        assert (given.nproc_per_node, given.training_script) == ("3", scaling.__file__)
        rest = given.training_script_args
        assert rest[: len(SMALL) + 2] == [*SMALL, "--run", "test"]
        assert rest[-4:-1] == ["--batch", "6", "--worker"]
        Path(rest[-1]).write_text('{"found": {}}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(scaling.subprocess, "run", run)
    assert scaling.start(3, 6, [*SMALL, "--run", "test"]) == {"found": {}}


def test_a_group_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--models", "nothing"])
    assert "unknown model 'nothing'" in capsys.readouterr().err
