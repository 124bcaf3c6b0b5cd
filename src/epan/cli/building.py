"""What is shown while the tokens of a text are built: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from epan.cli.bars import Bars
from epan.cli.output import is_terminal

if TYPE_CHECKING:
    from epan.data.building import Tell
    from epan.training import RunConfig

__all__ = ["show", "telling"]

# Seconds between two lines, and before the first one: what is quicker needs none.
SECONDS = 5.0


def show(config: RunConfig) -> None:
    """Build the tokens of a run that learns from text, if they are not there; nothing for a run of a task."""
    if config.task.name != "text":
        return
    from epan.data.text import Text
    from epan.training.loading import find_task

    task = find_task(config.task)
    assert isinstance(task, Text)
    with telling() as tell:
        task.build(tell)


@contextmanager
def telling() -> Iterator[Tell]:
    """What :func:`epan.data.build` is to call as it goes on."""
    bars: list[Bars] = []
    told = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        # Bytes in units that fit a line; documents, whose number may be unknown, as they are.
        notes = [] if what == "reading" else ["MB of text"]
        counts = (done, total) if what == "reading" else (done // 10**6, -(-total // 10**6))
        if is_terminal():
            if not bars:
                bars.append(Bars())
            bars[0].update(what, counts[0], max(counts), notes)
        elif time.monotonic() - told >= SECONDS:
            told = time.monotonic()
            print(
                f"{what} {counts[0]:,}"
                + (f" of {counts[1]:,}" if counts[1] else "")
                + "".join(f" {note}" for note in notes),
                flush=True,
            )

    try:
        yield tell
    finally:
        for bar in bars:
            bar.close()
