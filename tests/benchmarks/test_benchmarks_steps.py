"""The benchmark of small models runs, on the CPU and small, and its records say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import steps

SMALL = ["--device", "cpu", "--widths", "8,16", "--heads", "2", "--batch", "4", "--steps", "4", "--warmup", "2"]


def test_cases_are_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "records.jsonl"
    steps.main([*SMALL, "--kernels", "gaussian", "--pack", "1", "--checkpoint-every", "2", "--records", str(file)])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["width"], r["kernel"], r["runs"], r["precision"]) for r in records] == [
        (8, "gaussian", 1, "fp32"),
        (16, "gaussian", 1, "fp32"),
    ]
    assert all(r["steps_per_second"] > 0 and r["first_step_s"] > 0 and "saving" in r for r in records)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:4] == ["kernel", "width", "runs", "steps/s"]
    assert len(shown) == 3
