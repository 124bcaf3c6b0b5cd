"""Small texts, and a cache folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prose import prose

from epan.data import sources


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tokens are kept; nothing is written elsewhere."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EPAN_CACHE", str(folder))
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    """Shards of few bytes, so that little text has many."""
    monkeypatch.setattr(sources, "LEAST_SHARD", 2000)
    return 2000


@pytest.fixture
def books(tmp_path: Path) -> Callable[..., Path]:
    """A folder of so many books, the longer the later."""

    def make(count: int = 12, words: int = 60, name: str = "books") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            (folder / f"book{number:02d}.txt").write_text(prose(number, words + 10 * number), "utf-8", newline="")
        return folder

    return make
