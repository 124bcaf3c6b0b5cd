"""The report folder: everything there, nothing from elsewhere, honest about gaps."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.report import build

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


class _Checker(HTMLParser):
    """Collects text, addresses and tags; fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        for key, value in attrs:
            if key in ("src", "srcset", "href", "data", "action"):
                self.addresses.append(str(value))
            if key == "id":
                self.ids.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.stack == []
    return checker


@pytest.fixture(scope="module")
def report(make_sweep: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_sweep(tmp_path_factory.mktemp("sweep"))
    return build(root, root / "report", command="epan demo --out <here> & more")


def test_the_page_loads_nothing_from_elsewhere(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    checker = _check(page)
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert all(address.startswith(("data:image/", "#")) for address in checker.addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page


def test_every_link_of_the_page_has_its_target(report: Path) -> None:
    checker = _check(report.read_text(encoding="utf-8"))
    anchors = {address[1:] for address in checker.addresses if address.startswith("#")}
    assert anchors
    assert anchors <= set(checker.ids)


def test_the_page_shows_all_that_was_promised(report: Path) -> None:
    text = " ".join(_check(report.read_text(encoding="utf-8")).text)
    for part in (
        "In short", "Results", "Length generalisation", "Support size against length", "Density against length",
        "Training loss", "Bandwidth of each head", "Layer 2, persistent", "entmax twins", "Weights on the same scores",
        "Environment", "Invented CPU", "0123abc", "feedbeef", "How the runs differ", "model.kernel", "Repeat it",
        "epan demo --out <here> & more", "epan train --kernel gaussian --seed 1", "123,456", "Softmax (Gaussian)",
        "ReLUmax",
    ):  # fmt: skip
        assert part in text, part


def test_figures_refer_to_nothing_else(report: Path) -> None:
    found = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", report.read_text(encoding="utf-8"))
    assert found
    for data in found:
        svg = base64.b64decode(data).decode()
        links = set(re.findall(r"https?://[^\s\"']+", svg))
        assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]+)"', svg))


def test_figures_come_in_light_and_dark_and_as_png(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    pictures = re.findall(r"<picture>.*?</picture>", page, flags=re.DOTALL)
    assert len(pictures) >= 12
    assert all("prefers-color-scheme: dark" in picture for picture in pictures)
    pngs = sorted((report.parent / "figures").glob("*.png"))
    assert len(pngs) == len(pictures)
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)


def test_the_tables_hold_the_numbers(report: Path) -> None:
    with (report.parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 4
    first = next(row for row in rows if row["method"] == "Softmax (Gaussian)" and row["length"] == "16")
    assert (float(first["exact_match"]), first["seeds"], first["sequences"]) == (1.0, "2", "1000")
    assert first["times_training_length"] == "1"
    markdown = (report.parent / "table.md").read_text(encoding="utf-8")
    assert "| method | 16 (1×) | 32 (2×) | 64 (4×) | 128 (8×) |" in markdown
    assert markdown.count("\n| ") == 6


def test_the_same_records_give_the_same_page(report: Path, tmp_path: Path) -> None:
    import shutil

    sweep = tmp_path / "sweep"
    shutil.copytree(report.parent.parent, sweep)
    again = build(sweep, sweep / "report", command="epan demo --out <here> & more")
    assert again.read_text(encoding="utf-8").replace(str(sweep), "X") == report.read_text(encoding="utf-8").replace(
        str(report.parent.parent), "X"
    )


def test_partial_records_are_drawn_and_the_gaps_named(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", kernel="gaussian", accuracies={})
    make_run(tmp_path / "b", until=150, status=None, extra='{"kind": "st')
    make_run(tmp_path / "c", kernel={"name": "polynomial", "order": 5}, status="interrupted")
    make_run(tmp_path / "d", kernel="epanechnikov", normalization="fixed", empty_rows=0.1, seed=1)
    text = " ".join(_check(build(tmp_path, tmp_path / "out").read_text(encoding="utf-8")).text)
    for part in (
        "What is missing",
        "no evaluation yet",
        "has no end yet",
        "was interrupted",
        "damaged line",
        "Empty rows",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        ({16: 0.0, 32: 0.0005, 64: 0.0, 128: 0.0}, "below 0.1% at every length"),
        ({16: 0.25, 32: 0.0005}, "25.0% at 16, below 0.1% at 32"),
        ({}, None),
    ],
)
def test_the_overlap_of_test_and_training_is_shown(
    make_run: Any, tmp_path: Path, overlap: dict[int, float], said: str | None
) -> None:
    make_run(tmp_path / "run", overlap=overlap)
    text = _check(build(tmp_path, tmp_path / "out").read_text(encoding="utf-8")).text
    assert ("test sequences seen in training" in text) == (said is not None)
    assert said is None or said in text


def test_a_header_alone_is_enough_for_a_page(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text('{"kind": "run", "name": "just started"}\n')
    text = " ".join(_check(build(tmp_path, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "just started: no evaluation yet." in text
    assert "No training steps have been recorded." in text


def test_a_record_cannot_put_markup_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text(
        '{"kind": "run", "name": "<script>alert(1)</script>", "command": "</pre><b>", "method": "<i>",'
        ' "task": {"name": "<u>", "train_lengths": "x"}, "model": {"kernel": "<s>"}, "environment": {"<k>": "<v>"}}\n'
        '{"kind": "eval", "step": 1, "length": 8, "exact_match": 0.5}\n'
    )
    checker = _check(build(tmp_path, tmp_path / "out").read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "u", "s", "k", "v"} & set(checker.tags)


def test_a_folder_that_cannot_be_written_is_a_clear_error(make_run: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EpanError, match=r"cannot be written.*--out"):
        build(run, tmp_path / "file")
