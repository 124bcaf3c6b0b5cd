"""Ctrl-C, SIGTERM and SIGUSR1 as a wish that the run ends at the next safe place."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["SIGNALS", "Interruption"]

#: Ctrl-C, what a machine sends that is shut down, and what batch systems send some time before they take it away.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interruption:
    """While active, the first of :data:`SIGNALS` sets ``signal``; the second one raises KeyboardInterrupt at once.

    Signals reach the main thread alone: elsewhere nothing is installed and ``signal`` stays None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def wanted(self) -> bool:
        return self.signal is not None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # A handler that was not installed from Python reads as None and cannot be put back.
            if handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]
