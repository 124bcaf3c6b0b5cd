"""Records of tasks whose tokens are drawn from known distributions: accuracy takes the place of exact match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epan.report import build
from epan.report.figures_positions import distance
from epan.report.findings import remarks
from epan.report.records import find
from epan.report.summary import ACCURACY, EXACT, summarise
from epan.report.tables import headline, headline_markdown


def evaluation(accuracy: float, tvd: float) -> dict[str, Any]:
    exact = dict.fromkeys(("exact_match", "exact_match_low", "exact_match_high"))
    ranges = [
        {"first": first, "last": 2 * first - 1, "tokens": 9, "accuracy": accuracy, "tvd": tvd + 0.4 / first, "kl": 1.0}
        for first in (1, 2, 4)
    ]
    return {**exact, "accuracy": accuracy, "tvd": tvd, "kl": 2 * tvd, "by_position": ranges}


def runs(folder: Path, make_run: Any, gaussian: tuple[float, ...], biweight: tuple[float, ...]) -> Path:
    for kernel, values in (("gaussian", gaussian), ("biweight", biweight)):
        for seed, accuracy in enumerate(values):
            told = evaluation(accuracy, 1 - accuracy)
            make_run(folder / f"{kernel}{seed}", kernel=kernel, seed=seed, accuracies={16: 0.5}, evaluation=told)
    return folder


def test_the_page_shows_accuracy_and_distance(make_run: Any, tmp_path: Path) -> None:
    found = runs(tmp_path / "runs", make_run, (0.90, 0.92), (0.93, 0.95))
    page = build(found, tmp_path / "out").read_text("utf-8")
    (setting,) = summarise(find(found)).settings
    assert setting.measure is ACCURACY
    columns, rows = headline(setting)
    assert columns[:3] == ["method", "16 (1×)", "TVD at 16"]
    assert [row[1:3] for row in rows] == [["91.0 (90.0–92.0)", "0.09"], ["94.0 (93.0–95.0)", "0.06"]]
    assert ": accuracy in %" in headline_markdown(summarise(find(found)))
    for text in ("Accuracy in %: mean over seeds", "TVD<small>at 16</small>", "Distance by position"):
        assert text in page
    assert "exact match" not in page.lower()
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"accuracy.png", "heat-map.png", "distance-by-position.png"} <= figures
    table = (tmp_path / "out" / "table.csv").read_text().splitlines()
    values = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert (values["exact_match"], values["accuracy"], values["tvd_max"], values["kl"]) == ("", "0.91", "0.1", "0.18")


def test_what_is_said_rests_on_the_seeds(make_run: Any, tmp_path: Path) -> None:
    def said(name: str, *values: tuple[float, ...]) -> str:
        (setting,) = summarise(find(runs(tmp_path / name, make_run, *values))).settings
        return " ".join(remarks(setting))

    apart = said("apart", (0.90, 0.92), (0.93, 0.95))
    assert "every seed of all 2 methods has an accuracy of 90.0% to 95.0%" in apart
    assert "distance of 0.05 to 0.1 from the exact distribution" in apart
    assert "Biweight (94.0%) lies above Softmax (Gaussian) (91.0%) by more than seeds explain" in apart
    together = said("together", (0.90, 0.94), (0.93, 0.95))
    assert "differ by no more than the seed spread (means 92.0% to 94.0%)" in together
    # One seed says nothing of how far seeds are apart, and 95 % is no mark of having learnt a language.
    single = said("single", (0.90,), (0.95,))
    assert "all 2 methods have an accuracy" in single
    assert "above" not in single
    assert "not learnt" not in single


def test_exact_match_stays_where_there_is_one(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (setting,) = summarise(find(tmp_path / "run")).settings
    assert setting.measure is EXACT
    columns, _ = headline(setting)
    assert not any("TVD" in column for column in columns)
    assert distance(setting, "", tmp_path) is None


def test_damaged_ranges_are_left_out(make_run: Any, tmp_path: Path) -> None:
    for place, ranges in enumerate(([{"first": None, "last": 3}, 7, {"first": 1, "last": 1, "tvd": "x"}], "x", None)):
        told = {**evaluation(0.9, 0.1), "by_position": ranges}
        (setting,) = summarise(find(make_run(tmp_path / str(place), accuracies={16: 0.5}, evaluation=told))).settings
        assert distance(setting, "", tmp_path) is None
