"""The benchmark of several processes runs, on the CPU and small, and its records say what was compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import scaling

SMALL = [
    "--device", "cpu", "--layers", "1", "--width", "16", "--heads", "2", "--vocab", "32", "--length", "16", "--batch", "4",
    "--warmup", "1", "--steps", "2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_command_compares_two_processes_with_one(tmp_path: Path, parallel: str) -> None:
    file = tmp_path / "records.jsonl"
    command = [sys.executable, str(Path(scaling.__file__)), "--gpus", "2", *SMALL, "--parallel", parallel]
    command += ["--models", "biweight,transformer", "--records", str(file), "--run", "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in file.read_text().splitlines()]
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
    lines = done.stdout.splitlines()
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


def test_a_group_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--models", "nothing"])
    assert "unknown model 'nothing'" in capsys.readouterr().err
