"""Reading run records: ``RUN/record.jsonl``, one JSON object a line, each with a ``kind``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epan._lines import FILE_NAME, Entry, number, parse, without_overtaken
from epan.errors import EpanError

__all__ = ["FILE_NAME", "Record", "eval_rank", "find", "number", "read"]


@dataclass(frozen=True)
class Record:
    """One run as its record tells it.

    Attributes
    ----------
    folder: the run folder.
    run: the header (kind ``run``): name, task, model, training, seed, method, environment, command, parameters.
    steps: kind ``step`` in order of step; where a resumed run wrote a step twice, the later line counts.
    bandwidths: kind ``bandwidth`` in order of step.
    evals: of every length the evaluation that counts (``eval_rank``).
    events: kind ``event`` in file order.
    end: kind ``end``, or None while the run is going on or was killed.
    damaged: the numbers of the lines (from 1) that are no JSON object with a kind.
    """

    folder: Path
    run: Entry
    steps: tuple[Entry, ...] = ()
    bandwidths: tuple[Entry, ...] = ()
    evals: tuple[Entry, ...] = ()
    events: tuple[Entry, ...] = ()
    end: Entry | None = None
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


def _last_per_step(lines: Iterable[Entry]) -> tuple[Entry, ...]:
    by_step = {line["step"]: line for line in lines if number(line.get("step")) is not None}
    return tuple(by_step[step] for step in sorted(by_step))


def eval_rank(line: Entry) -> tuple[float, bool, float, bool]:
    """What makes one evaluation of a length count rather than another; among equals the later one does.

    The newest step; the split "test" (older records name none) before others; the larger test, so that a quick look
    at a few sequences replaces no measurement; greedy decoding before the teacher-forced pass.
    """
    step, sequences = number(line.get("step")), number(line.get("sequences"))
    tests = line.get("split") in (None, "test")
    return (-1.0 if step is None else step, tests, sequences or 0.0, line.get("decoding") == "greedy")


def _newest_evals(lines: Iterable[Entry]) -> tuple[Entry, ...]:
    best: dict[Any, Entry] = {}
    for line in lines:
        length = line.get("length")
        # Tests on another text have its name as split, and are none of the length.
        if line.get("split") not in (None, "test", "validation", "train"):
            continue
        if number(length) is not None and (length not in best or eval_rank(line) >= eval_rank(best[length])):
            best[length] = line
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
    lines: list[Entry] = []
    damaged: list[int] = []
    for place, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = parse(line)
        if entry is None:
            damaged.append(place)
        else:
            lines.append(entry)
    kinds: dict[str, list[Entry]] = {}
    for entry in without_overtaken(lines):
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
