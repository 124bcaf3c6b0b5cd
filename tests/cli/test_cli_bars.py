"""Progress on a narrow terminal: names that differ, a whole bar, a whole counter and a whole ETA."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from epan.cli import bars, demo
from epan.cli.bars import short_names
from epan.cli.sweep import SweepBars
from epan.training import RunState
from epan.training.records import RunSummary


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``screen(columns, lines)``: what is drawn on a terminal of that size."""
    from rich.console import Console

    def screen(columns: int, lines: int = 50) -> io.StringIO:
        drawn = io.StringIO()
        console = Console(file=drawn, force_terminal=True, width=columns, height=lines, color_system=None)
        monkeypatch.setattr(bars, "console", lambda: console)
        # What a busy machine draws once more in between is not looked at.
        monkeypatch.setattr("rich.live._RefreshThread.run", lambda _: None)
        return drawn

    return screen


def _states(seeds: int, status: str = "running") -> list[RunState]:
    found = []
    for config in demo.configs(seeds):
        now = RunSummary(
            step=123, steps=config.steps, loss=4.89113, elapsed=60.0, support=12.3, tokens_per_second=10459.0
        )
        found.append(RunState(config, Path(config.label), status, now))  # type: ignore[arg-type]
    return found


def _drawn(screen: io.StringIO, states: list[RunState]) -> list[str]:
    """The lines of the last drawing."""
    shown = SweepBars()
    shown.on_update(states)
    start = screen.tell()
    shown.close()
    return [
        line.rstrip()
        for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()[start:]).splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("columns", [80, 100, 160])
def test_bar_counter_and_eta_are_whole_and_names_differ(screen: Any, columns: int, seeds: int) -> None:
    rows = _drawn(screen(columns), _states(seeds))
    assert len(rows) == 5 * seeds
    assert len({row.split()[0] for row in rows}) == 5 * seeds
    for row in rows:
        assert len(row) <= columns
        assert re.match(r"[\w-]+ +━{4}╸ {7} 123/300 ETA 1:26  loss 4.8911", row), row
        assert "…" not in row
    if seeds > 1:
        assert all(re.match(r"[\w-]+-seed\d ", row) for row in rows)
    if columns == 160:
        assert all(row.endswith("12.3 keys/query  10,459 tokens/s") for row in rows)


def test_runs_that_wait_give_way_on_a_low_terminal(screen: Any) -> None:
    states = _states(6, "queued")
    states[20].status = "running"
    (row,) = _drawn(screen(100, lines=24), states)
    assert row.startswith("gaussian-adaptive-seed4 ")
    assert len(_drawn(screen(100, lines=50), states)) == 30


def test_names_lose_what_all_have_in_common() -> None:
    assert list(short_names(["copy-a-b-seed0", "copy-a-c-seed0"], 99).values()) == ["b", "c"]
    assert list(short_names(["copy-a-seed0", "copy-a-seed1"], 99).values()) == ["seed0", "seed1"]
    assert list(short_names(["copy-a-seed0"], 99).values()) == ["copy-a-seed0"]
    # One name may begin with, or repeat, all of another.
    assert list(short_names(["a", "a-b"], 99).values()) == ["a", "a-b"]
    assert list(short_names(["a-x-x-b", "a-x-b"], 99).values()) == ["x-b", "b"]
    assert short_names([], 99) == {}


def test_a_long_name_keeps_its_end() -> None:
    labels = [f"a-very-long-name-of-a-run-{kind}-that-goes-on-seed{seed}" for kind in ("x", "y") for seed in (0, 1)]
    names = list(short_names(labels, 14).values())
    assert len(set(names)) == 4
    cut = list(short_names([f"kernel-{'x' * 30}-seed{seed}" for seed in (0, 1)] + ["other"], 16).values())
    assert cut == ["kernel-…xx-seed0", "kernel-…xx-seed1", "other"]
