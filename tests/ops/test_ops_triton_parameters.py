"""Launch parameters: the user's file stands above what epan brings, and can neither be half written nor do harm."""

from __future__ import annotations

import importlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from epan import _cache
from epan.ops.triton import parameters

SWEEP = {"num_warps": 4, "num_stages": 2}
COLUMNS = {"T": True, "HALVES": 2, "SPLIT": 4, "num_warps": 8, "num_stages": 3, "maxnreg": 128}


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """No file yet, whatever the user of this machine has measured."""
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "cache"))
    parameters.forget()
    yield
    parameters.forget()


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a GPU that this machine seems to have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    return _cache.tuned_file("NVIDIA H100 80GB HBM3")


def test_what_is_saved_is_read(path: Path) -> None:
    assert parameters.in_force() == {}
    parameters.save(path, {"sweep/64/bfloat16": SWEEP})
    assert parameters.in_force() == {"sweep/64/bfloat16": SWEEP}
    # Others stay, the same one is replaced.
    parameters.save(path, {"by_columns/128/float16": COLUMNS, "sweep/64/bfloat16": {**SWEEP, "num_warps": 8}})
    assert parameters.in_force() == {
        "by_columns/128/float16": COLUMNS,
        "sweep/64/bfloat16": {**SWEEP, "num_warps": 8},
    }
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters.save(path, {"sweep/64/bfloat16": SWEEP})
    parameters.in_force()
    path.unlink()
    monkeypatch.setattr(parameters, "read", lambda _: pytest.fail("read again"))
    for _ in range(3):
        assert parameters.chosen("sweep", 64, 64, torch.bfloat16) == SWEEP


def test_the_exact_head_size_stands_above_the_padded_one(path: Path) -> None:
    wide = {**SWEEP, "num_warps": 8}
    parameters.save(path, {"sweep/128/float16": SWEEP, "sweep/80/float16": wide})
    assert parameters.chosen("sweep", 80, 128, torch.float16) == wide
    assert parameters.chosen("sweep", 96, 128, torch.float16) == SWEEP
    assert parameters.chosen("sweep", 96, 128, torch.bfloat16) is None
    assert parameters.chosen("attend", 96, 128, torch.float16) is None


DAMAGED = {
    "no JSON": "{",
    "no object": "[]",
    "another schema": json.dumps({"schema": "epan-tuned-0", "parameters": {}}),
    "no parameters": json.dumps({"schema": "epan-tuned-1", "parameters": []}),
    "no text": b"\xff\xfe\x00",
}
WRONG: dict[str, tuple[str, Any]] = {
    "an unknown kernel": ("swep/64/bfloat16", SWEEP),
    "no head size": ("sweep/x/bfloat16", SWEEP),
    "an unknown dtype": ("sweep/64/float8", SWEEP),
    "another key": ("sweep/64", SWEEP),
    "no parameters": ("sweep/64/bfloat16", 4),
    "one that is missing": ("sweep/64/bfloat16", {"num_warps": 4}),
    "one too many": ("sweep/64/bfloat16", {**SWEEP, "BM": 64}),
    "a text": ("sweep/64/bfloat16", {**SWEEP, "num_warps": "4"}),
    "a truth value": ("sweep/64/bfloat16", {**SWEEP, "num_stages": True}),
    "three warps": ("sweep/64/bfloat16", {**SWEEP, "num_warps": 3}),
    "no stage": ("sweep/64/bfloat16", {**SWEEP, "num_stages": 0}),
    "many registers": ("sweep/64/bfloat16", {**SWEEP, "maxnreg": 512}),
    "a number for a choice": ("by_columns/64/bfloat16", {**COLUMNS, "T": 1}),
    # Parts of a tile that are not whole would leave rows out.
    "rows beyond the tile": ("prepare/64/float32", {**SWEEP, "ROWS": 64}),
    "slim products": ("by_columns/64/float32", {**COLUMNS, "SPLIT": 4}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_named_once_and_ignored(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(RuntimeWarning) as caught:
        assert parameters.chosen("sweep", 64, 64, torch.bfloat16) is None
    (warning,) = caught
    assert str(path) in str(warning.message)
    assert "epan bench tune" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parameters.chosen("sweep", 64, 64, torch.bfloat16) is None
        # Measured anew, it is as good as any.
        parameters.save(path, {"sweep/64/bfloat16": SWEEP})
        assert parameters.in_force() == {"sweep/64/bfloat16": SWEEP}


@pytest.mark.parametrize(("key", "config"), WRONG.values(), ids=list(WRONG))
def test_what_no_launch_could_use_is_neither_saved_nor_read(path: Path, key: str, config: Any) -> None:
    with pytest.raises(ValueError, match=key.split("/")[0]):
        parameters.save(path, {key: config})
    assert not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": "epan-tuned-1", "parameters": {key: config}}))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert parameters.in_force() == {}


def test_a_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters.save(path, {"sweep/64/bfloat16": SWEEP})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        parameters.save(path, {"sweep/128/bfloat16": SWEEP})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_a_gpu_no_file_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parameters, "read", lambda _: pytest.fail("a file was read"))
    assert parameters.in_force() == {}


@pytest.fixture
def tuning() -> Any:
    pytest.importorskip("triton", reason="needs Triton (pip install triton, on Linux)")
    return importlib.import_module("epan.ops.triton.tuning")


def test_everything_that_is_shipped_or_tried_can_be_launched(tuning: Any) -> None:
    table = tuning.load()
    for kernel in parameters.NAMES:
        for size in (1, 16, 64, 80, 128, 256):
            for dtype in parameters.DTYPES:
                parameters.check(f"{kernel}/{size}/{dtype}", table[f"{kernel}/{size}/{dtype}"])
    for schedule in tuning.SCHEDULES:
        tried = tuning.candidates(schedule)
        assert len({json.dumps(config, sort_keys=True) for config in tried}) == len(tried) > 1
        for config in tried:
            parameters.check(f"{schedule}/64/bfloat16", config)


def test_the_table_in_force_is_what_a_launch_gets(tuning: Any, path: Path) -> None:
    launch = importlib.import_module("epan.ops.triton.launch")
    tuning.save(path, {"sweep/64/bfloat16": {**SWEEP, "num_warps": 16}})

    def given(kernel: str, size: int, dtype: torch.dtype) -> Any:
        flags = {"D": size, "DP": launch.padded(size)}
        return launch.Arguments({"Q": torch.empty(0, dtype=dtype)}, {}, flags).config(kernel)

    table = tuning.load()
    assert given("sweep", 64, torch.bfloat16) == {**SWEEP, "num_warps": 16} == table["sweep/64/bfloat16"]
    for kernel, size, dtype in (("sweep", 128, "bfloat16"), ("attend", 80, "float16"), ("by_columns", 64, "float32")):
        assert given(kernel, size, parameters.DTYPES[dtype]) == table[f"{kernel}/{size}/{dtype}"]
    assert given("attend", 80, torch.float16) == launch.TUNED["attend"][128]
    assert given("attend", 64, torch.float32) == launch.TUNED_WIDE["attend"][64]


def test_a_measurement_runs_its_candidate_and_leaves_no_trace(tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []

    def timed(call: Any, kernel: str, seconds: float) -> float:
        used.append((kernel, parameters.chosen(kernel, 80, 128, torch.bfloat16)))
        return 1.5

    q = torch.zeros(1, 1, 4, 80, dtype=torch.bfloat16)
    monkeypatch.setattr(tuning, "_inputs", lambda size, dtype: (q, q, q, q, None))
    monkeypatch.setattr(tuning, "_device_ms", timed)
    assert tuning.measure("sweep", 80, torch.bfloat16, SWEEP, seconds=0.1) == 1.5
    assert used == [("sweep", SWEEP)]
    assert parameters.in_force() == {}
    # Parts of 64 rows do not divide a tile of 32.
    assert tuning.measure("prepare", 80, torch.float32, {**SWEEP, "ROWS": 64}, seconds=0.1) == math.inf


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", ["prepare", "sweep", "attend", "by_rows", "by_columns"])
def test_each_kernel_is_timed_alone(tuning: Any, schedule: str) -> None:
    """More than nothing, and less than the whole call."""
    assert schedule in tuning.SCHEDULES
    config = tuning.load()[f"{schedule}/64/bfloat16"]
    ms = tuning.measure(schedule, 64, torch.bfloat16, config, seconds=0.05)
    q, k, v, scale, _ = tuning._inputs(64, torch.bfloat16)
    launch = importlib.import_module("epan.ops.triton.launch")

    def both() -> None:
        found = launch.forward(tuning._problem(q), q, k, v, scale, scale, False)
        launch.backward(tuning._problem(q), v, q, k, v, scale, scale, found.out, found.saved, {"q", "k", "v"})

    both()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        both()
    end.record()
    torch.cuda.synchronize()
    assert 0 < ms < start.elapsed_time(end) / 10
