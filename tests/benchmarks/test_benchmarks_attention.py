"""``benchmarks/attention.py`` on a CPU: records, resuming, selection, mistakes; goals and documents from records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import attention
from epan.errors import EpanError
from goals import Goal, verdicts
from measure import Clock, Context, measure
from render import NOTHING, render
from rivals import RIVALS

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    "name", "normalization", "kernel", "order", "workload", "M", "B", "H", "N", "d", "dtype", "causal", "forward_ms",
    "forward_backward_ms", "forward_quartiles", "forward_backward_quartiles", "memory_mb", "error", "error_eager",
    "tile_density", "device", "versions", "commit", "run", "group", "time",
}  # fmt: skip
TINY = ("tiny", "--device", "cpu", "--dtype", "float32", "--seconds", "0.01", "--commit", "abc")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the tiny preset."""
    path = tmp_path_factory.mktemp("records") / "folder" / "attention.jsonl"
    assert attention.main([*TINY, "--out", str(path)]) == 0
    return path


def test_records_have_what_a_ratio_needs(tiny: Path) -> None:
    records = attention.load(tiny)
    names = {record["name"] for record in records}
    assert {"epan_tiled", "eager", "sdpa"} <= names
    assert names.isdisjoint({"epan", "fa2", "fa4", "adasplash2"})
    for record in records:
        assert set(record) >= FIELDS, FIELDS - set(record)
        low, high = record["forward_backward_quartiles"]
        assert 0 < low <= record["forward_backward_ms"] <= high
        assert 0 < record["tile_density"] <= 1
        assert record["commit"] == "abc"
        assert record["memory_mb"] is None
        assert record["error"].keys() == record["error_eager"].keys()
    assert len({record["run"] for record in records}) == 1
    assert [len({r["group"] for r in records if r["purpose"] == name}) for name in ("main", "sink")] == [1, 1]
    assert tiny.stat().st_size < 2000 * len(records)


def test_a_run_goes_on_where_it_stopped(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.jsonl"
    lines = tiny.read_text("utf-8").splitlines(keepends=True)
    sink = [line for line in lines if '"sink"' in line]
    path.write_text("".join(line for line in lines if line not in sink), "utf-8")
    before = path.read_text("utf-8")
    assert attention.main([*TINY, "--out", str(path), "--run", "last"]) == 0
    after = attention.load(path)
    assert path.read_text("utf-8").startswith(before)
    assert len(after) == len(lines)
    assert len({record["run"] for record in after}) == 1
    again = path.read_bytes()
    assert attention.main([*TINY, "--out", str(path), "--run", "last"]) == 0
    assert path.read_bytes() == again
    assert "left out, fa2: needs an NVIDIA GPU" in capsys.readouterr().out


def test_the_budget_stops_before_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.jsonl"
    assert attention.main([*TINY, "--out", str(path), "--budget", "1"]) == 0
    assert not path.exists()
    assert "2 groups are left for want of time: go on with --run " in capsys.readouterr().out


MISTAKES = {
    "no gpu": (["targets"], ["no NVIDIA GPU", "tiny --device cpu"]),
    "peer": ([*TINY, "--peers", "fa3"], ["Unknown method 'fa3'", "did you mean 'fa"]),
    "field": ([*TINY, "--only", "D=64"], ["--only takes field=value", "workload"]),
    "nothing": ([*TINY, "--only", "d=7"], ["leaves nothing"]),
    "no last run": ([*TINY, "--run", "last"], ["no last run"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, expected = MISTAKES[name]
    assert attention.main([*arguments, "--out", str(tmp_path / "none.jsonl")]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    for part in expected:
        assert part in said
    assert not list(tmp_path.iterdir())


def test_only_and_peers_choose(tmp_path: Path) -> None:
    groups = attention.select(attention.PRESETS["targets"], ["d=128", "M=4,16", "rival=epan,fa2"])
    assert {(group.shape.d, entry.M) for group in groups for entry in group.entries} == {(128, 4), (128, 16)}
    assert {entry.rival for group in groups for entry in group.entries} == {"epan", "fa2"}


def test_a_method_that_fails_is_recorded_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(type(RIVALS["sdpa"]), "prepare", broken)
    common = {"run": "r", "commit": None, "device": "cpu", "versions": {}}
    context = Context(torch.device("cpu"), torch.float32, Clock(None), common, 0.01, say=lambda text: None)
    group = attention.PRESETS["tiny"][0]
    entries = [entry for entry in group.entries if entry.rival in ("sdpa", "eager")]
    found = {record["name"]: record for record in measure(group, entries, context)}
    assert found["sdpa"]["failed"] == "RuntimeError: no such kernel"
    assert "forward_ms" not in found["sdpa"]
    assert found["eager"]["forward_ms"] > 0


def test_a_failure_while_timing_leaves_no_record_that_looks_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("measure.alternate", out_of_memory)
    common = {"run": "r", "commit": None, "device": "cpu", "versions": {}}
    context = Context(torch.device("cpu"), torch.float32, Clock(None), common, 0.01, say=lambda text: None)
    group = attention.PRESETS["tiny"][1]
    found = measure(group, list(group.entries), context)
    assert [record["failed"] for record in found] == ["MemoryError: no room"] * 2


def record(name: str, group: int, ms: float, **other: Any) -> dict[str, Any]:
    dense = name in ("fa2", "cudnn", "fa4")
    made = {
        "name": name, "kernel": "gaussian" if dense else "biweight", "normalization": "adaptive", "order": 2.0,
        "workload": "segments", "M": 4, "B": 1, "H": 16, "N": 16384, "d": 64, "dtype": "bfloat16", "causal": True,
        "purpose": "main", "group": float(group), "time": f"2026-01-{group:02d}T00:00:00Z", "run": "r", "commit": "c" * 40,
        "device": "NVIDIA H100", "versions": {"epan": "0", "torch": "0"}, "forward_ms": ms / 4, "forward_backward_ms": ms,
        "tile_density": 1.0 if dense else 0.25, "memory_mb": 100.0,
        "error": dict.fromkeys(("out", "dq", "dk", "dv"), 2e-3), "error_eager": dict.fromkeys(("out", "dq", "dk", "dv"), 1e-3),
    }  # fmt: skip
    return {**made, **other}


def only(records: Sequence[dict[str, Any]], goal: Goal) -> float | None:
    return verdicts(records, [goal])[0].ratio


def test_ratios_are_taken_within_the_newest_group_that_has_both() -> None:
    goal = Goal("", "", 2.0, {"name": "epan"}, {"name": "fa2"}, {"M": 4})
    old = [record("epan", 1, 3.0), record("fa2", 1, 6.0)]
    assert verdicts(old, [goal])[0].reached
    newer = [record("epan", 2, 4.0), record("fa2", 2, 6.0)]
    assert only(old + newer, goal) == 1.5
    assert not verdicts(newer + old, [goal])[0].reached
    # Faster, but nothing ran beside it; another M; a failure.
    alone = [record("epan", 3, 1.0), record("fa2", 4, 9.0)]
    other = [record("epan", 5, 1.0, M=1), record("fa2", 5, 9.0, M=1)]
    failed = [record("epan", 6, 1.0), {**record("fa2", 6, 9.0), "forward_backward_ms": None}]
    assert only(old + newer + alone + other + failed, goal) == 1.5
    assert verdicts([], [goal])[0].reached is None


def test_every_goal_can_be_reached_and_missed() -> None:
    from goals import GOALS

    for goal in GOALS:
        memory = callable(goal.quantity)
        for ours, expected in ((1e-3, True), (1e3, False)):
            mine = {**record("epan", 1, ours), **goal.both, **goal.ours, "memory_mb": ours * 1e6 if memory else None}
            theirs = {**record("fa2", 1, 1.0), **goal.both, **goal.other}
            assert verdicts([mine, theirs], [goal])[0].reached is expected, goal


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the documents."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/gpu.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_documents_are_what_the_records_give(tree: Path) -> None:
    render(attention.load(attention.RECORDS), tree)
    for name in ("README.md", "docs/gpu.md"):
        fix = f"{name} is not what its records give: python benchmarks/attention.py render"
        assert (tree / name).read_text("utf-8") == (ROOT / name).read_text("utf-8"), fix


def test_tables_and_figures_come_from_the_records(tree: Path) -> None:
    records = [
        record("epan", 1, 2.0), record("fa2", 1, 7.0), record("cudnn", 1, 1.0), record("fa4", 1, 3.0),
        record("epan", 2, 4.0, purpose="lengths", M=16, N=32768), record("fa2", 2, 8.0, purpose="lengths", M=16, N=32768),
        {**record("epan", 3, 0.5), "device": "cpu"}, {"failed": "it did", **record("adasplash2", 1, 9.0)},
    ]  # fmt: skip
    written = render(records, tree)
    page, readme = ((tree / name).read_text("utf-8") for name in ("docs/gpu.md", "README.md"))
    row = "| 64 | 4 | 25 % | **2** | 7 (3.50×) | 1 (0.50×) | 3 (1.50×) | – |"
    assert row in page
    assert row in readme
    assert "| segments, M = 4, biweight, adaptive | N = 16,384, d = 64 | cuDNN | 0.50 |" in page
    assert "2.0e-03 (2.00×)" in page
    assert "NVIDIA H100; bfloat16" in readme
    figures = [path for path in written if path.suffix == ".svg"]
    assert len(figures) == 3
    for path in figures:
        assert path.stat().st_size < 200_000
        assert f"](figures/{path.name})" in page
        assert "FlashAttention-2" in path.read_text("utf-8")
    before = {path: path.read_bytes() for path in written}
    render(records, tree)
    assert {path: path.read_bytes() for path in written} == before


def test_without_records_the_documents_say_so_and_keep_their_text(tree: Path) -> None:
    assert [path.suffix for path in render([record("epan", 1, 1.0, device="cpu")], tree)] == [".md", ".md"]
    page = (tree / "docs/gpu.md").read_text("utf-8")
    assert page.count(NOTHING) == page.count("<!-- table ")
    assert "## How the kernels work" in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<!-- table speed -->\n", "has no end"), ("<!-- table sped -->\n<!-- end sped -->\n", "unknown table")],
)
def test_a_wrong_marker_is_an_error(tree: Path, text: str, expected: str) -> None:
    (tree / "README.md").write_text(text, "utf-8")
    with pytest.raises(EpanError, match=expected):
        render([record("epan", 1, 1.0)], tree)


def test_a_torn_last_line_is_left_out_and_another_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(record("epan", 1, 1.0))
    path.write_text(f"{good}\n" + good[:40], "utf-8")
    assert len(attention.load(path)) == 1
    path.write_text(good[:40] + f"\n{good}\n", "utf-8")
    with pytest.raises(EpanError, match="Line 1"):
        attention.load(path)
