"""What ``epan demo --out`` finds in its place: only what epan made is moved, all else is refused and left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epan.cli import demo
from epan.cli.main import run
from epan.cli.room import make_room
from epan.errors import EpanError

PLANNED = demo.configs(quick=True)


def _run(folder: Path, config_hash: str) -> None:
    folder.mkdir(parents=True)
    (folder / "record.jsonl").write_text(json.dumps({"kind": "run", "config_hash": config_hash}) + "\n")


def _everything(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def _documents(place: Path) -> None:
    (place / "letters").mkdir(parents=True)
    (place / "letters" / "aunt.txt").write_text("Dear aunt")


def _photo_beside_runs(place: Path) -> None:
    _run(place / "old-run", "another")
    (place / "photo.jpg").write_text("me")


def _own_report(place: Path) -> None:
    (place / "report").mkdir(parents=True)
    (place / "report" / "index.html").write_text("yearly report")


def _file_named_report(place: Path) -> None:
    _run(place / "old-run", "another")
    (place / "report").write_text("mine")


def _record_beside(place: Path) -> None:
    _run(place, "another")


FOREIGN = [_documents, _photo_beside_runs, _own_report, _file_named_report, _record_beside]


@pytest.mark.parametrize("fill", FOREIGN)
def test_a_folder_of_the_user_is_refused_and_left_as_it_is(
    fill: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "mine")  # type: ignore[operator]
    before = _everything(tmp_path)
    assert run(["demo", "--quick", "--out", str(tmp_path / "mine")]) == 2
    said = capsys.readouterr()
    assert "something that epan did not make" in said.err
    assert "--out" in said.err
    assert said.out == ""
    assert _everything(tmp_path) == before


@pytest.mark.parametrize("out", [".", "..", "letters/.."])
def test_the_folder_that_one_is_in_is_refused_if_it_is_not_empty(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    monkeypatch.chdir(tmp_path / "letters" if out == ".." else tmp_path)
    assert run(["demo", "--quick", "--out", out]) == 2
    assert "something that epan did not make" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["letters"]


def test_a_file_is_refused_and_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert run(["demo", "--quick", "--out", str(tmp_path / "thesis.tex")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert _everything(tmp_path) == {"thesis.tex": "precious"}


def test_another_demo_is_moved_aside_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    _run(out / PLANNED[0].label, "another")
    for name in ("report", ".sweep"):
        (out / name).mkdir()
    (out / ".DS_Store").write_text("")
    (tmp_path / "demo-1").mkdir()
    before = _everything(out)
    make_room(out, PLANNED)
    assert not out.exists()
    assert _everything(tmp_path / "demo-2") == before
    assert "held another demo" in capsys.readouterr().out


def test_another_demo_in_the_folder_that_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    _run(out / "old-run", "another")
    monkeypatch.chdir(out)
    for place in (Path("."), out, Path("../demo")):
        with pytest.raises(EpanError, match="that you are in"):
            make_room(place, PLANNED)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_same_demo_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = PLANNED[:2]
    _run(tmp_path / first.label, first.hash())
    (tmp_path / second.label).mkdir()
    (tmp_path / "report").mkdir()
    before = _everything(tmp_path)
    make_room(tmp_path, PLANNED)
    assert "Going on with the demo" in capsys.readouterr().out
    assert _everything(tmp_path) == before


def test_an_empty_or_new_folder_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_room(tmp_path, PLANNED)
    make_room(tmp_path / "new", PLANNED)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
