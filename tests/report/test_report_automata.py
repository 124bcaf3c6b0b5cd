"""Pictures of an automaton and of predictions: what is in them, and what cannot be drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from epan.errors import EpanError
from epan.report.figures_automata import automaton, prediction

MACHINE = [{"a": 1, "b": 0}, {"a": 0, "c": 2, "d": 2}, {"b": 2, "e": 1}]


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_an_automaton_has_a_ring_for_each_state_and_letters_on_each_arrow(tmp_path: Path) -> None:
    picture = automaton(MACHINE, tmp_path, name="three")
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    found = texts(picture.light)
    # Letters of edges between the same two states share an arrow.
    assert sorted(found) == sorted(["0", "1", "2", "a", "b", "a", "c, d", "b", "e"])
    assert "1 c, d 2" in picture.alt
    assert automaton([{"a": 0}], tmp_path).title == "Automaton of 1 state"
    same = automaton(MACHINE, tmp_path, name="three")
    assert same.light == picture.light


def test_what_is_no_automaton_is_refused(tmp_path: Path) -> None:
    for wrong in ([], [{"a": 1}], [{"a": -1}]):
        with pytest.raises(EpanError, match="no automaton"):
            automaton(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_prediction_counts_what_may_come(tmp_path: Path) -> None:
    letters = ["a", "b", None, "a"] * 40
    predicted = [[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.1, 0.9]] * 40
    legal: list[list[int]] = [[0], [1], [], [0, 1]] * 40
    picture = prediction(letters, predicted, legal, ["a", "b"], tmp_path, first=7)
    assert picture.alt.endswith("80 of 120 most probable letters may come")
    found = texts(picture.light)
    # Three bands of at most 70 tokens.
    assert [text for text in found if text.startswith("from token")] == [
        f"from token {7 + 70 * band}" for band in (0, 1, 2)
    ]
    assert found.count("|") == 40
    with pytest.raises(EpanError, match="a row for each token"):
        prediction(letters, predicted[:-1], legal, ["a", "b"], tmp_path)
    with pytest.raises(EpanError, match="a row for each token"):
        prediction([], [], [], ["a", "b"], tmp_path)
