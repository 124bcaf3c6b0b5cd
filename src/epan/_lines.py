"""What a line of a run record is, and which lines a resumed run overtook: the same for training and for the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["FILE_NAME", "Entry", "number", "parse", "without_overtaken"]

FILE_NAME = "record.jsonl"

Entry = dict[str, Any]


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def parse(line: bytes) -> Entry | None:
    """The JSON object of a line, None for anything else than an object with a ``kind``."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("kind"), str) else None


def without_overtaken(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` without what a run wrote beyond the checkpoint from which it was resumed, and without its end before.

    Both belong to a past that did not come about: the resumed run writes these steps again.
    """
    kept: list[Entry] = []
    for entry in entries:
        resumed = number(entry.get("step")) if entry["kind"] == "event" and entry.get("event") == "resumed" else None
        if resumed is not None:
            kept = [old for old in kept if old["kind"] != "end" and (number(old.get("step")) or 0) <= resumed]
        kept.append(entry)
    return kept
