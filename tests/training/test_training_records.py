"""The record of a run: lines, torn ends, damage, lines that a resume overtook."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from epan.errors import EpanError
from epan.training.records import FILE_NAME, RecordWriter, Tail, header, read, summary


def step(number: int, loss: float = 1.0) -> dict[str, object]:
    values = {"learning_rate": 0.1, "gradient_norm": 1.0, "tokens_per_second": 10.0, "elapsed": number, "support": None}
    return {"kind": "step", "step": number, "loss": loss, **values}


def write(folder: Path, *entries: dict[str, object]) -> None:
    with RecordWriter(folder) as writer:
        for entry in entries:
            writer.write(**entry)  # type: ignore[arg-type]


def test_lines_are_read_as_written(tmp_path: Path) -> None:
    entries = [{"kind": "run", "name": "x", "config": {"steps": 3}}, step(1), step(2)]
    write(tmp_path, entries[0])
    write(tmp_path, *entries[1:])
    assert read(tmp_path) == read(tmp_path / FILE_NAME) == entries
    assert header(read(tmp_path), tmp_path)["name"] == "x"


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        entry = writer.write("step", loss=float("nan"), deep={"a": [float("inf"), 1.0]})
    assert entry == {"kind": "step", "loss": None, "deep": {"a": [None, 1.0]}}
    assert read(tmp_path) == [entry]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_reported_and_then_removed(tmp_path: Path, cut: int) -> None:
    write(tmp_path, step(1), step(2))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    # Without its newline a whole line may still be whole: nothing is lost by a cut of one byte.
    whole = [step(1)] if cut > 1 else [step(1), step(2)]
    entries = read(tmp_path)
    assert entries[: len(whole)] == whole
    assert [entry["event"] for entry in entries[len(whole) :]] == (["torn"] if cut > 1 else [])
    write(tmp_path, step(3))
    steps = [entry["step"] for entry in read(tmp_path) if entry["kind"] == "step"]
    assert steps == [*(entry["step"] for entry in whole), 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_record_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"kind": "run", "na')
    write(tmp_path, step(1))
    assert [entry["kind"] for entry in read(tmp_path)] == ["event", "step"]


def test_a_damaged_line_inside_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, step(1), step(2), step(3))
    path = tmp_path / FILE_NAME
    lines = path.read_bytes().split(b"\n")
    for damage in (lines[1][:-4], b"[1]", b'{"step": 2}'):
        path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(EpanError, match="line 2"):
            read(tmp_path)


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EpanError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(EpanError, match="no line of kind 'run'"):
        header([step(1)], tmp_path)


def test_lines_that_a_resume_overtook_are_left_out(tmp_path: Path) -> None:
    end = {"kind": "end", "status": "interrupted", "step": 3, "elapsed": 1.0}
    resumed = {"kind": "event", "event": "resumed", "step": 2, "message": "resumed from step 2"}
    evaluation = {"kind": "eval", "step": 2, "length": 4, "decoding": "greedy"}
    entries = [{"kind": "run"}, step(1), step(2, 5.0), evaluation, step(3, 9.0), end, resumed, step(3, 1.0), step(4)]
    write(tmp_path, *entries)
    kept = [entries[i] for i in (0, 1, 2, 3, 6, 7, 8)]
    assert read(tmp_path) == kept
    assert read(tmp_path, superseded=True) == entries


def test_the_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.new() == []
    write(tmp_path, step(1), step(2))
    assert tail.new() == [step(1), step(2)]
    assert tail.new() == []
    path = tmp_path / FILE_NAME
    line = json.dumps(step(3)).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:20])
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(line[20:])
    assert tail.new() == [step(3)]


def test_a_full_disk_leaves_whole_lines_and_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with RecordWriter(tmp_path) as writer:
        writer.write(**step(1))  # type: ignore[arg-type]
        calls = []

        def full(handle: int, data: bytes) -> int:
            calls.append(len(data))
            if len(calls) == 1:
                return real(handle, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(EpanError, match="No space left"):
            writer.write(**step(2))  # type: ignore[arg-type]
        monkeypatch.undo()
        writer.write(**step(3))  # type: ignore[arg-type]
    assert len(calls) == 2
    assert read(tmp_path) == [step(1), step(3)]


def test_a_folder_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EpanError, match="cannot be written"):
        RecordWriter(tmp_path / "file" / "run")


def test_the_summary_follows_the_run() -> None:
    run = {"kind": "run", "name": "x", "method": "m", "config": {"steps": 4}, "config_hash": "h"}
    old, new = ({"kind": "eval", "step": s, "length": 4, "decoding": "greedy"} for s in (2, 4))
    other = {**new, "length": 8}
    found = summary([run, step(1), step(2, 7.0), old])
    assert (found.label, found.method, found.steps, found.config_hash) == ("x", "m", 4, "h")
    assert (found.status, found.step, found.loss, found.evaluations) == ("running", 2, 7.0, [old])
    end = {"kind": "end", "status": "failed", "step": 2, "elapsed": 9.0, "message": "why"}
    found.update([end])
    assert (found.status, found.message, found.elapsed) == ("failed", "why", 9.0)
    found.update([{"kind": "event", "event": "resumed", "step": 2, "message": ""}, step(4), new, other, {**other}])
    assert (found.status, found.message, found.step) == ("running", "", 4)
    assert found.evaluations == [new, other]
    found.update([old])
    assert found.evaluations == [new, other]
