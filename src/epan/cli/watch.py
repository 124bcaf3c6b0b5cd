"""``epan report --watch``: the report of runs that go on, made again whenever their records have grown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from epan.errors import EpanError
from epan.report.builder import build, publish
from epan.report.live import Live, LiveRun
from epan.report.records import FILE_NAME, Record, find
from epan.training import claims

__all__ = ["Watcher", "watch"]

# Seconds between looks; looks in a row that find nothing going on before the watch ends, for a sweep starts its next run
# a moment after the last one has ended.
PAUSE, QUIET = 2.0, 2


class Watcher:
    """Looks at runs and the claims on their folders, and makes the report again where anything has changed.

    Parameters
    ----------
    paths, out, title: as of ``epan.report.build``.
    """

    def __init__(self, paths: Sequence[Path], out: Path, title: str | None) -> None:
        self.paths, self.out, self.title = list(paths), out, title
        self.runs: list[LiveRun] = []
        self._watches: dict[Path, claims.Watch] = {}
        self._live: Live | None = None
        self._made: object = None
        self._next = 0.0

    def look(self) -> bool:
        """Bring the report up to date; whether anything goes on."""
        claimed = self._claimed()
        try:
            records = find(self.paths)
        except EpanError:
            # A run that has only begun has no record yet.
            if not all(path.exists() for path in self.paths):
                raise
            records = []
        self.runs = [self._stand(record, claimed) for record in records]
        if records:
            self._show()
        return bool(claimed)

    def _show(self) -> None:
        """A new page if anything is new, but not so often that drawing takes more than a fifth of the time."""
        began = time.monotonic()
        if self.runs != self._made and began >= self._next:
            self._live = Live(secrets.token_hex(8), self.runs)
            build(self.paths, self.out, title=self.title, live=self._live)
            self._made, self._next = self.runs, time.monotonic() + 4 * (time.monotonic() - began)
        if self._live is not None:
            publish(Live(self._live.version, self.runs), self.out)

    def finish(self) -> None:
        """Make the page that stays, if there is anything to show."""
        if self.runs:
            build(self.paths, self.out, title=self.title)

    def _claimed(self) -> set[Path]:
        """The run folders in which a process trains, as far as is known."""
        roots = [path.parent if path.is_file() else path for path in self.paths]
        folders = {place.parent.resolve() for root in roots for place in root.rglob(claims.NAME)}
        for folder in folders:
            self._watches.setdefault(folder, claims.Watch(folder))
        return {folder for folder in folders if self._watches[folder].look().state in ("held", "unknown")}

    def _stand(self, record: Record, claimed: set[Path]) -> LiveRun:
        state = "running" if record.folder.resolve() in claimed else record.status
        written = (record.folder / FILE_NAME).stat().st_mtime
        state = "stopped" if state == "unfinished" else state
        return LiveRun(record.name, state, record.last_step, record.planned_steps or 0, written)


def watch(paths: Sequence[Path], out: Path, title: str | None) -> int:
    """Keep the report up to date until nothing goes on any more; Ctrl-C ends it, too, with the page as it is then."""
    watcher, said, quiet = Watcher(paths, out, title), "", 0
    try:
        while quiet < QUIET:
            quiet = 0 if watcher.look() else quiet + 1
            told = _told(watcher.runs, out)
            if told != said:
                print(told, flush=True)
                said = told
            time.sleep(PAUSE)
    finally:
        watcher.finish()
    if not watcher.runs:
        raise EpanError("No run goes on there, and none has a record", fix="start one, then watch it")
    print("Nothing goes on any more; the page is complete.")
    return 0


def _told(runs: Sequence[LiveRun], out: Path) -> str:
    if not runs:
        return "Waiting for the first record. Ctrl-C ends the watch."
    going = sum(run.going for run in runs)
    alone = "The run goes on" if going else f"The run is {runs[0].state}"
    counted = f"{going} of {len(runs)} runs going on" if len(runs) > 1 else alone
    return f"{counted}. Report: {(out / 'index.html').resolve()}"
