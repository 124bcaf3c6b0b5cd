"""Bars on a terminal: name, bar, counter, and as many notes as the line has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epan.cli.output import console

__all__ = ["Bars", "short_names"]

BAR = 12
# Spaces between the four columns.
GAPS = 3


class Bars:
    """Rows of a name, a bar, a counter and notes. What does not fit is left out from the last note on, never the bar.

    Parameters
    ----------
    rate: redraws a second.
    """

    def __init__(self, rate: float = 4) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.console = console()
        self._bars: Any = Progress(*columns, console=self.console, refresh_per_second=rate)
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def update(self, name: str, done: int, total: int, notes: Sequence[str], visible: bool = True) -> None:
        """Show that ``done`` of ``total`` is done in the row ``name``, the most important of the ``notes`` first."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, note="")
        counter = 2 * max(len(str(task.total)) for task in self._bars.tasks) + 1
        room = self.console.width - max(map(len, self._tasks)) - BAR - counter - GAPS
        note = _fitting(notes, room)
        self._bars.update(self._tasks[name], completed=done, total=total, note=note, visible=visible)

    def print(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Give the terminal back; may be called again."""
        self._bars.stop()


def _fitting(notes: Sequence[str], room: int) -> str:
    line = ""
    for note in notes:
        longer = f"{line}  {note}" if line else note
        if len(longer) > room:
            break
        line = longer
    return line


def short_names(labels: Sequence[str], most: int) -> dict[str, str]:
    """Labels without the words between dashes that all of them start or end with, and at most ``most`` long.

    ``mqar-biweight-seed0``, ``mqar-triweight-seed0`` → ``biweight``, ``triweight``. A longer one loses its middle, for
    the end tells seeds apart. No two become alike, or else nothing is cut.
    """
    words = [label.split("-") for label in labels]
    fewest = min(map(len, words), default=0)
    start = _common(words, fewest - 1) if len(words) > 1 else 0
    end = _common([list(reversed(parts)) for parts in words], fewest - 1 - start) if len(words) > 1 else 0
    names = ["-".join(parts[start : len(parts) - end]) for parts in words]
    cut = [name if len(name) <= most else f"{name[: most - 1 - most // 2]}…{name[-(most // 2) :]}" for name in names]
    return dict(zip(labels, cut if len(set(cut)) == len(set(names)) else names, strict=True))


def _common(rows: Sequence[Sequence[str]], most: int) -> int:
    """How many of the first ``most`` words are the same in all rows."""
    count = 0
    while count < most and len({row[count] for row in rows}) == 1:
        count += 1
    return count
