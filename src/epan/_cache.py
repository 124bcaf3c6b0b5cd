"""Where this library keeps what it has found out about a machine: files that may be removed at any time."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = ["folder", "tuned_file"]


def folder() -> Path:
    """``$EPAN_CACHE``, else the cache folder of the user; it need not exist."""
    chosen = os.environ.get("EPAN_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "epan"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "epan"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "epan"


def tuned_file(device: str) -> Path:
    """The launch parameters measured on GPUs called ``device``, which stand above those that epan brings.

    One file per kind of GPU, so that machines with different ones can share a home folder:
    ``NVIDIA H100 80GB HBM3`` → ``tuned-nvidia-h100-80gb-hbm3.json``.
    """
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"
    return folder() / f"tuned-{name}.json"
