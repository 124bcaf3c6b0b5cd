"""What belongs to the whole process is used by one of its runs at a time."""

from __future__ import annotations

import threading

__all__ = ["exclusive"]

#: Held while a run draws weights, sets up accelerate, measures its memory, looks for the culprit of a number that is not
#: finite, or records a CUDA graph: all of them change the random state of the process, or its memory, or forbid others to.
exclusive = threading.RLock()
