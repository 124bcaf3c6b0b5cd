"""Files of a study's results: tables, and what is said where there is nothing for them or of their seeds."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from epan.errors import EpanError

__all__ = ["nothing_to_show", "replace_text", "seeds_told", "write_table"]


def write_table(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file; floats have six digits, and None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def nothing_to_show(count: int) -> EpanError:
    """The error of tables that none of ``count`` records has anything for."""
    return EpanError(
        "No record has a result for the table",
        found=f"{count} records",
        fix="train and test runs of the study, collect their folders, then make the tables",
    )


def seeds_told(seeds: Iterable[int]) -> str:
    """How many rows a table has, and of how many seeds they are."""
    counts = sorted(Counter(seeds).items())
    said = ", ".join(f"{count} of {number} seed{'s' if number > 1 else ''}" for number, count in counts)
    return f"{sum(count for _, count in counts)} rows: {said}"
