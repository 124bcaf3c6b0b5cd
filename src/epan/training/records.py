"""The record of a run: ``RUN/record.jsonl``, one JSON object a line, only ever appended to. Needs no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from epan._lines import FILE_NAME, Entry, without_overtaken
from epan._lines import parse as _parse
from epan.errors import EpanError

__all__ = [
    "FILE_NAME",
    "SCHEMA",
    "Entry",
    "NoWriter",
    "RecordWriter",
    "RunSummary",
    "Tail",
    "header",
    "read",
    "summary",
]

SCHEMA = 1


def record_path(path: str | Path) -> Path:
    """The record of a run folder; a file stands for itself."""
    path = Path(path)
    return path / FILE_NAME if path.is_dir() or path.suffix != ".jsonl" else path


def _plain(value: object) -> object:
    """``value`` for JSON: numbers that are not finite become None, because JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class RecordWriter:
    """Appends lines to a record; usable as a context manager.

    Every line goes to the file in one write, so a killed process leaves at most one torn last line.
    Opening a record with a torn last line removes that piece and appends an event that says so.

    Raises
    ------
    EpanError: the file cannot be opened or written; the fix names the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = record_path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        torn = self._remove_torn_line()
        if torn:
            self.write("event", event="torn", message=f"a torn last line of {torn} bytes was removed")

    def _remove_torn_line(self) -> int:
        end = os.lseek(self._file, 0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - 65536)
            os.lseek(self._file, start, os.SEEK_SET)
            newline = os.read(self._file, keep - start).rfind(b"\n")
            keep = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if keep < end:
            os.lseek(self._file, keep, os.SEEK_SET)
            if _parse(os.read(self._file, end - keep)) is not None:
                # Only the newline is missing.
                os.write(self._file, b"\n")
                return 0
            os.ftruncate(self._file, keep)
        return end - keep

    def write(self, kind: str, *, flush: bool = False, **values: Any) -> Entry:
        """Append one line of ``kind``; ``flush`` waits until it is on the disk. Returns the line as it is read back."""
        entry = cast(Entry, _plain({"kind": kind, **values}))
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        size = os.lseek(self._file, 0, os.SEEK_END)
        try:
            # One call: lines of a killed process are whole, or the last one is torn.
            written = os.write(self._file, line)
            if written < len(line):
                os.write(self._file, line[written:])
            if flush:
                os.fsync(self._file)
        except OSError as error:
            # A full disk takes half a line: the next one must not be glued to it.
            os.ftruncate(self._file, size)
            raise _unwritable(self.path, error) from error
        return entry

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoWriter:
    """Stands for a writer in a process that keeps no record."""

    def write(self, kind: str, *, flush: bool = False, **values: Any) -> Entry:
        """The line that would have been written."""
        return {"kind": kind, **values}


def _unwritable(path: Path, error: OSError) -> EpanError:
    return EpanError(
        f"The run record cannot be written: {error.strerror}",
        found=str(path),
        fix="free space, or give a folder that you may write to",
    )


def _unreadable(path: Path, error: OSError) -> EpanError:
    return EpanError(
        f"The run record cannot be read: {error.strerror}",
        found=str(path),
        fix=f"give a run folder, which holds a {FILE_NAME}",
    )


def read(path: str | Path, *, superseded: bool = False) -> list[Entry]:
    """The lines of a run folder's record (or of a record file) in the order of writing.

    A torn last line becomes an entry ``{"kind": "event", "event": "torn", ...}``. Lines that a resumed run overtook
    (those after the step it resumed from, and the end before it) are left out; ``superseded=True`` keeps them.

    Raises
    ------
    EpanError: no record, or a damaged line that is not the last one (its number is named).
    """
    path = record_path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise _unreadable(path, error) from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _parse(line)
        # Only the piece after the last newline can be torn; a whole line that is no JSON was damaged later.
        if entry is None and number == len(lines):
            entry = {
                "kind": "event",
                "event": "torn",
                "message": f"line {number} is torn ({len(line)} bytes) and left out",
            }
        if entry is None:
            raise EpanError(
                "The run record is damaged",
                found=f"line {number} of {path} is no JSON object with a 'kind'",
                fix="remove that line, or restore the file",
            )
        entries.append(entry)
    return entries if superseded else without_overtaken(entries)


def header(entries: Iterable[Entry], path: str | Path) -> Entry:
    """The ``run`` line of a record.

    Raises
    ------
    EpanError: the record has none.
    """
    for entry in entries:
        if entry["kind"] == "run":
            return entry
    raise EpanError("The run record has no line of kind 'run'", found=str(path), fix="give the folder of a started run")


class Tail:
    """Reads what is appended to a record, for showing a run while it goes on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) / FILE_NAME
        self._offset = 0

    def new(self) -> list[Entry]:
        """The whole lines appended since the last call; none while the file does not exist."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [entry for entry in map(_parse, data.splitlines()) if entry is not None]


@dataclass
class RunSummary:
    """Where a run stands, from its record.

    Attributes
    ----------
    label, method, config: from the header.
    status: ``running`` (no end yet, or killed), ``finished``, ``interrupted``, ``failed``.
    step, steps, loss, support, tokens_per_second, elapsed: of the last line of kind step.
    evaluations: the evaluations of the last step that has some.
    message: why it failed, else "".
    """

    label: str = ""
    method: str = ""
    config: Entry = field(default_factory=dict)
    config_hash: str = ""
    status: str = "running"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    support: float | None = None
    tokens_per_second: float | None = None
    elapsed: float = 0.0
    evaluations: list[Entry] = field(default_factory=list)
    message: str = ""

    def update(self, entries: Iterable[Entry]) -> None:
        """Take in further lines, in the order of writing."""
        for entry in entries:
            kind = entry["kind"]
            if kind == "run":
                self.label, self.method = entry.get("name", ""), entry.get("method", "")
                self.config, self.config_hash = entry.get("config", {}), entry.get("config_hash", "")
                self.steps = self.config.get("steps", 0)
            elif kind == "step":
                self.step, self.loss = entry["step"], entry["loss"]
                self.support = entry["support"] if entry["support"] is not None else self.support
                self.tokens_per_second, self.elapsed = entry["tokens_per_second"], entry["elapsed"]
            elif kind == "eval":
                if self.evaluations and entry["step"] < self.evaluations[-1]["step"]:
                    continue
                if self.evaluations and entry["step"] > self.evaluations[-1]["step"]:
                    self.evaluations = []
                same = ("length", "decoding")
                self.evaluations = [old for old in self.evaluations if any(old[key] != entry[key] for key in same)]
                self.evaluations.append(entry)
            elif kind == "end":
                self.status, self.message = entry["status"], entry.get("message", "")
                self.step, self.elapsed = entry["step"], entry["elapsed"]
            elif entry.get("event") == "resumed":
                self.status, self.message, self.step = "running", "", entry["step"]
                self.evaluations = [old for old in self.evaluations if old["step"] <= self.step]


def summary(entries: Iterable[Entry]) -> RunSummary:
    """Where the run of ``entries`` stands."""
    result = RunSummary()
    result.update(entries)
    return result
