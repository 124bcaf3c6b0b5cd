"""Runs of one process take their first step when all of them are ready."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Ready", "StartingLine"]

#: What a run does when it is ready: waits for the others, or for its argument to say that the runs are to stop.
Ready = Callable[[Callable[[], bool]], None]

# Seconds after which a waiting run looks whether it is to stop.
_LOOK = 0.2

_T = TypeVar("_T")


class StartingLine:
    """Where runs wait for one another.

    A CUDA graph that is replayed while another thread compiles and records has been seen to read what is not its own, so
    that no run steps before all are recorded. They lose nothing: recording needs the process for itself, one after the other.

    Parameters
    ----------
    count: runs that are to come.
    """

    def __init__(self, count: int) -> None:
        self._left, self._lock, self._open = count, threading.Lock(), threading.Event()

    def _arrive(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self._open.set()

    def run(self, work: Callable[[Ready], _T]) -> _T:
        """``work(ready)``; a run that ends, however it does, holds up nobody."""
        arrived = False

        def ready(stopping: Callable[[], bool]) -> None:
            nonlocal arrived
            if not arrived:
                arrived = True
                self._arrive()
            while not (self._open.wait(_LOOK) or stopping()):
                pass

        try:
            return work(ready)
        finally:
            if not arrived:
                self._arrive()
