"""What the records of all benchmarks share: how they are kept, and which versions they tell."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import epan

__all__ = ["append", "versions"]


def versions(*packages: str) -> dict[str, str]:
    """The versions of epan, torch, Triton and further ``packages``, as far as they are installed."""
    found = {"epan": epan.__version__, "torch": str(torch.__version__)}
    for package in ("triton", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def append(records: Iterable[Mapping[str, Any]], file: str | Path) -> None:
    """Add records to a file, one JSON object a line; "-" keeps none."""
    if str(file) == "-":
        return
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
