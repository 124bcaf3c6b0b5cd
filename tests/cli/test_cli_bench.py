"""``epan bench``: a table on any machine, launch parameters where there is a GPU, and one message where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import epan
from epan import _cache
from epan.cli.main import run

SMALL = ["bench", "quick", "--device", "cpu", "--length", "48", "--heads", "1", "--size", "8", "--seconds", "0.02"]


def test_quick_times_every_backend_beside_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SMALL) == 0
    said = capsys.readouterr().out
    first, *lines = said.splitlines()
    assert "biweight, adaptive, causal, B=1 H=1 L=48 D=8, float32, cpu" in first
    rows = {line.split("|")[0].strip(): [cell.strip() for cell in line.split("|")[1:]] for line in lines if "|" in line}
    assert {"torch SDPA (softmax)", "epan eager", "epan tiled"} <= set(rows)
    assert rows["torch SDPA (softmax)"][-1] == "1.00"
    for name in ("epan eager", "epan tiled"):
        forward, _, both, quartiles, ratio = rows[name]
        low, high = map(float, quartiles.split("-"))
        assert float(forward) > 0
        assert low <= float(both) <= high
        assert float(ratio) > 0


def test_quick_takes_other_rules_and_leaves_out_what_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epan.cli.bench.EAGER_LIMIT", 1)
    assert run([*SMALL, "--normalization", "nearest:k=4", "--kernel", "gaussian", "--forward-only", "--full"]) == 0
    said = capsys.readouterr().out
    assert "with backward" not in said
    assert "full" in said
    assert "epan eager: left out, it would need about 0 GiB" in said
    assert run([*SMALL, "--normalization", "fixed"]) == 0


WRONG = {
    "part": (["bench", "tun"], ["tun", '"tune"']),
    "option of the other": (["bench", "tune", "--length", "64"], ["--length belongs to epan bench quick"]),
    "option of the other, renamed": (["bench", "--no-save"], ["--no-save belongs to epan bench tune"]),
    "kernel": ([*SMALL, "--kernel", "biwieght"], ["did you mean 'biweight'"]),
    "combination": ([*SMALL, "--kernel", "cosine"], ["not supported", "Fix:"]),
    "length": (["bench", "--length", "0"], ["--length must be above zero"]),
    "device": (["bench", "--device", "cuda"], ["torch finds no cuda device here", "--device"]),
    "no gpu": (["bench", "tune"], ["torch finds no NVIDIA GPU", "epan bench quick works here"]),
    "size": (["bench", "tune", "--sizes", "512"], ["up to 256"]),
    "dtype": (["bench", "tune", "--dtypes", "float8"], ["float8", "bfloat16"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_gets_one_message_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path))
    arguments, expected = WRONG[name]
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("epan: ")
    assert len(said.err.strip().splitlines()) == 1
    for part in expected:
        assert part in said.err, said.err
    assert not list(tmp_path.iterdir())


class OutOfResources(Exception):
    """What Triton raises when a candidate asks for too much shared memory."""


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A GPU and its kernels that take num_warps × 0.1 ms, more for other sizes; 8 warps do not fit."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object())
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "cache"))
    module: Any = ModuleType("epan.ops.triton.tuning")
    module.SCHEDULES = ("sweep", "attend")
    module.current = {}
    module.cost = lambda config: float(config["num_warps"])

    def measure(schedule: str, size: int, dtype: torch.dtype, config: dict[str, int], *, seconds: float) -> float:
        assert dtype in (torch.bfloat16, torch.float16)
        if config["num_warps"] == 8:
            raise OutOfResources
        return float(module.cost(config))

    def save(path: Path, found: dict[str, dict[str, int]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))

    module.candidates = lambda schedule: [{"num_warps": warps} for warps in (8, 4, 2)]
    module.measure, module.save, module.load = measure, save, lambda: module.current
    package: Any = ModuleType("epan.ops.triton")
    package.tuning = module
    monkeypatch.setitem(sys.modules, "epan.ops.triton", package)
    monkeypatch.setitem(sys.modules, "epan.ops.triton.tuning", module)
    return module


def test_tune_saves_the_fastest_that_fits(tuning: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning.current = {"sweep/64/bfloat16": {"num_warps": 4}}
    assert run(["bench", "tune", "--sizes", "64"]) == 0
    path = tmp_path / "cache" / "tuned-nvidia-h100-80gb-hbm3.json"
    saved = json.loads(path.read_text())
    assert saved == {
        f"{part}/64/{dtype}": {"num_warps": 2} for part in ("sweep", "attend") for dtype in ("bfloat16", "float16")
    }
    said = capsys.readouterr().out
    assert f"Saved to {path}" in said
    row = next(line for line in said.splitlines() if line.startswith("sweep/64/bfloat16 "))
    assert [cell.strip() for cell in row.split("|")[1:]] == ["4.000", "2.000", "2.00", "num_warps=2"]


def test_tune_keeps_what_is_used_where_the_gain_is_noise(tuning: Any, tmp_path: Path) -> None:
    tuning.current = {"sweep/64/float16": {"num_warps": 4}}
    tuning.cost = lambda config: 1.0 if config["num_warps"] == 4 else 0.99
    out = tmp_path / "mine.json"
    assert (
        run(["bench", "tune", "--sizes", "64", "--dtypes", "float16", "--schedules", "sweep", "--out", str(out)]) == 0
    )
    assert json.loads(out.read_text()) == {"sweep/64/float16": {"num_warps": 4}}
    tuning.cost = lambda config: 1.0 if config["num_warps"] == 4 else 0.9
    assert (
        run(["bench", "tune", "--sizes", "64", "--dtypes", "float16", "--schedules", "sweep", "--out", str(out)]) == 0
    )
    assert json.loads(out.read_text()) == {"sweep/64/float16": {"num_warps": 2}}


def test_tune_writes_nothing_when_asked_or_when_nothing_runs(
    tuning: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "tune", "--sizes", "64", "--no-save"]) == 0
    tuning.candidates = lambda schedule: [{"num_warps": 8}]
    assert run(["bench", "tune", "--sizes", "64"]) == 2
    assert "No candidate ran" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_tune_does_not_hide_a_fault_of_a_kernel(tuning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def faulty(config: dict[str, int]) -> float:
        raise RuntimeError("an illegal memory access")

    tuning.cost = faulty
    assert run(["bench", "tune", "--sizes", "64"]) == 1
    assert "an illegal memory access" in capsys.readouterr().err


def test_a_misspelt_schedule_gets_a_suggestion(tuning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "tune", "--schedules", "swep"]) == 2
    assert "did you mean 'sweep'" in capsys.readouterr().err


def test_the_cache_is_where_a_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EPAN_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache.tuned_file("NVIDIA A100-SXM4-40GB") == tmp_path / "epan" / "tuned-nvidia-a100-sxm4-40gb.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _cache.folder() == tmp_path / ".cache" / "epan"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _cache.folder() == tmp_path / "Library" / "Caches" / "epan"
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "own"))
    assert _cache.folder() == tmp_path / "own"
    assert epan.__version__ not in str(_cache.tuned_file("x"))
