"""``epan report --watch``: a page that follows runs that go on, and is left complete at their end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from epan.cli.main import run
from epan.cli.watch import Watcher
from epan.errors import EpanError
from epan.report.live import SIGNAL, Live, LiveRun, overview
from epan.report.live import signal as live_signal
from epan.training import claims, records


def _write(folder: Path, name: str, step: int, status: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with records.RecordWriter(folder) as writer:
        if not step:
            task, model = {"name": "copy"}, {"name": "memory_mosaic", "kernel": "biweight", "normalization": "adaptive"}
            writer.write("run", name=name, seed=0, task=task, model=model, training={"steps": 40})
            return
        writer.write(
            "step", step=step, loss=1.0 / step, learning_rate=0.1, gradient_norm=1.0, tokens_per_second=9.0,
            elapsed=1.0 * step, support=2.0,
        )  # fmt: skip
        if status:
            writer.write("end", status=status, elapsed=1.0 * step, step=step, message="")


def _page(out: Path) -> str:
    return (out / "index.html").read_text(encoding="utf-8")


def _shown(out: Path) -> str:
    """What an open page shows of where the runs stand, as text."""
    version, section = json.loads("[" + (out / SIGNAL).read_text().removeprefix("epanLive(").strip().rstrip(";)") + "]")
    assert f"const version = {json.dumps(version)}" in _page(out)
    return " ".join(re.sub(r"<[^>]+>", " ", section).split())


def test_the_page_follows_the_runs_and_is_complete_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "report"
    (tmp_path / "a").mkdir()
    watcher = Watcher([tmp_path], out, None)
    claim = claims.take(tmp_path / "a")
    assert claim is not None
    assert watcher.look()
    assert not out.exists()
    _write(tmp_path / "a", "first", 0)
    _write(tmp_path / "a", "first", 10)
    _write(tmp_path / "b", "second", 0)
    _write(tmp_path / "b", "second", 20)
    assert watcher.look()
    shown = _shown(out)
    assert shown.startswith("1 of 2 runs going on first running, step 10 of 40, last line ")
    assert "second stopped, step 20 of 40, last line " in shown
    before = _page(out)
    # Where runs stand is told at once, the figures are drawn again when there has been time for it.
    _write(tmp_path / "a", "first", 30)
    assert watcher.look()
    assert "first running, step 30 of 40" in _shown(out)
    assert _page(out) == before
    watcher._next = 0.0
    watcher.look()
    assert _page(out) != before
    # Nothing new: the same page.
    before, watcher._next = _page(out), 0.0
    watcher.look()
    assert _page(out) == before
    _write(tmp_path / "a", "first", 40, "finished")
    claim.release()
    assert not watcher.look()
    assert "0 of 2 runs going on second stopped, step 20 of 40" in _shown(out)
    assert _shown(out).endswith("1 finished.")
    watcher.finish()
    assert "<script" not in _page(out)
    assert 'class="card live"' not in _page(out)
    assert not (out / SIGNAL).exists()


def test_names_are_text_and_not_markup() -> None:
    runs = [LiveRun("</script><b>", "running", 1, 0, time.time())]
    assert "<b>" not in overview(runs)
    assert "step 1, last line" in overview(runs)
    assert "<b>" not in live_signal(Live("1", runs))


def test_a_page_of_runs_that_have_ended_is_made_once(trained: Any, tmp_path: Path, capsys: Any) -> None:
    folder, _ = trained
    assert run(["report", str(folder), "--out", str(tmp_path / "page"), "--watch"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("The run is finished. Report: ")
    assert said[1] == "Nothing goes on any more; the page is complete."
    assert "<script" not in _page(tmp_path / "page")


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EpanError, match="No such folder"):
        Watcher([tmp_path / "nowhere"], tmp_path / "out", None).look()
    assert run(["report", str(tmp_path), "--watch"]) == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_the_page_as_it_is_then(tmp_path: Path, surroundings: dict[str, str]) -> None:
    _write(tmp_path / "a", "first", 0)
    _write(tmp_path / "a", "first", 10)
    claim = claims.take(tmp_path / "a")
    assert claim is not None
    command = [sys.executable, "-m", "epan", "report", str(tmp_path), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
    out, deadline = tmp_path / "report", time.monotonic() + 120
    while not (out / SIGNAL).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "running, step 10 of 40" in _shown(out)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    claim.release()
    assert (process.returncode, complaint) == (130, "epan: interrupted\n")
    assert said.startswith("The run goes on. Report: ")
    assert "<script" not in _page(out)
    assert not (out / SIGNAL).exists()
