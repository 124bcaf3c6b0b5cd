"""Reading run records: ``RUN/record.jsonl``, one JSON object a line, each with a ``kind``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epan.errors import EpanError

__all__ = ["FILE_NAME", "Record", "find", "number", "read"]

FILE_NAME = "record.jsonl"


@dataclass(frozen=True)
class Record:
    """One run as its record tells it.

    Attributes
    ----------
    folder: the run folder.
    run: the header (kind ``run``): name, task, model, training, seed, method, environment, command, parameters.
    steps: kind ``step`` in order of step; where a resumed run wrote a step twice, the later line counts.
    bandwidths: kind ``bandwidth`` in order of step.
    evals: the newest evaluation of every length; greedy decoding goes before the teacher-forced pass of one step.
    events: kind ``event`` in file order.
    end: kind ``end``, or None while the run is going on or was killed.
    damaged: the numbers of the lines (from 1) that are no JSON object with a kind.
    """

    folder: Path
    run: dict[str, Any]
    steps: tuple[dict[str, Any], ...] = ()
    bandwidths: tuple[dict[str, Any], ...] = ()
    evals: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    end: dict[str, Any] | None = None
    damaged: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return str(self.run.get("name") or self.folder.name)

    @property
    def seed(self) -> Any:
        return self.run.get("seed")

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, ``failed``, or ``unfinished`` where the record has no end."""
        return str(self.end.get("status", "finished")) if self.end else "unfinished"

    @property
    def last_step(self) -> int:
        steps = (number(line.get("step")) for line in (*self.steps, *self.evals))
        return int(max((step for step in steps if step is not None), default=0))

    @property
    def planned_steps(self) -> int | None:
        training = self.run.get("training")
        steps = number(training.get("steps")) if isinstance(training, dict) else None
        return None if steps is None else int(steps)


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _last_per_step(lines: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    by_step = {line["step"]: line for line in lines if number(line.get("step")) is not None}
    return tuple(by_step[step] for step in sorted(by_step))


def _newest_evals(lines: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    best: dict[Any, dict[str, Any]] = {}
    ranks: dict[Any, tuple[float, bool, int]] = {}
    for index, line in enumerate(lines):
        if number(line.get("length")) is None:
            continue
        step = number(line.get("step"))
        rank = (-1.0 if step is None else step, line.get("decoding") == "greedy", index)
        if line["length"] not in best or rank > ranks[line["length"]]:
            best[line["length"]], ranks[line["length"]] = line, rank
    return tuple(best[length] for length in sorted(best))


def read(folder: Path) -> Record:
    """The record of one run ``folder``.

    Lines that are damaged (a crash in the middle of a write, a full disk) are skipped and counted in ``damaged``.

    Raises
    ------
    EpanError: there is no record in the folder, or it cannot be read.
    """
    path = Path(folder) / FILE_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise EpanError(
            f"The run record cannot be read: {error.strerror}",
            found=str(path),
            fix=f"give a run folder, which holds a {FILE_NAME}, or a folder of such folders",
        ) from error
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    for place, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            damaged.append(place)
            continue
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            resumed = (
                number(entry.get("step")) if entry["kind"] == "event" and entry.get("event") == "resumed" else None
            )
            if resumed is not None:
                lines = [old for old in lines if not _overtaken(old, resumed)]
            lines.append(entry)
        else:
            damaged.append(place)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in lines:
        kinds.setdefault(entry["kind"], []).append(entry)
    headers, ends = kinds.get("run", []), kinds.get("end", [])
    return Record(
        folder=Path(folder),
        # The first header is the run as it was started; a resumed run may add another one.
        run=headers[0] if headers else {},
        steps=_last_per_step(kinds.get("step", [])),
        bandwidths=_last_per_step(kinds.get("bandwidth", [])),
        evals=_newest_evals(kinds.get("eval", [])),
        events=tuple(kinds.get("event", [])),
        end=ends[-1] if ends else None,
        damaged=tuple(damaged),
    )


def _overtaken(line: dict[str, Any], step: float) -> bool:
    """True for what a run wrote beyond the checkpoint from which it was resumed, and for its earlier end."""
    if line["kind"] == "end":
        return True
    reached = number(line.get("step"))
    return line["kind"] in ("step", "bandwidth", "eval") and reached is not None and reached > step


def find(paths: Path | str | Sequence[Path | str]) -> list[Record]:
    """All records at or below ``paths``, in the order of the folders' names; no folder twice.

    Raises
    ------
    EpanError: a path does not exist, or no record is found at all.
    """
    roots = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    folders: dict[Path, Path] = {}
    for root in roots:
        if not root.exists():
            raise EpanError("No such folder", found=str(root), fix="give a run folder or a folder of run folders")
        if root.is_file():
            root = root.parent if root.name == FILE_NAME else root
        for path in [root / FILE_NAME] if (root / FILE_NAME).is_file() else sorted(root.rglob(FILE_NAME)):
            folders.setdefault(path.parent.resolve(), path.parent)
    if not folders:
        raise EpanError(
            f"No run record ({FILE_NAME}) at or below {', '.join(str(root) for root in roots) or 'nothing'}",
            fix="train something first, e.g. `epan demo` or `epan train`, then give that folder",
        )
    return [read(folder) for folder in folders.values()]
