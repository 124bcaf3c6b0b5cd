"""Pictures of an automaton, and of predictions along one of its sequences against the letters that may come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import ListedColormap
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from epan.errors import EpanError
from epan.report.draw import RC, Picture, finish, panel
from epan.report.look import HEAT, INK

__all__ = ["automaton", "prediction"]

# Of the automaton, in units of the circle on which the states stand.
NODE, BEND, LOOP = 0.15, 0.18, 0.32
# Where on an arrow its letters may stand, the best first: far from states and other letters.
SHARES = (0.5, 0.42, 0.58, 0.35, 0.65, 0.28, 0.72)
# Width of a column of the heat map in inches, and columns of one row of it.
CELL, MOST_COLUMNS = 0.17, 70
_Point = tuple[float, float]
EDGE_COLOUR, LEGAL, WRONG = "#59616b", "#cc7000", "#b23b3b"


def automaton(
    machine: Sequence[Mapping[str, int]], folder: Path, *, name: str = "automaton", title: str = ""
) -> Picture:
    """States on a circle, the start (double ring) at the top, and an arrow for each edge with its letters.

    Parameters
    ----------
    machine: for each state {letter: target}, state 0 is the start.
    folder: gets ``name.png``.

    Raises
    ------
    EpanError: no state, or a target that is none.
    """
    count = len(machine)
    strange = [target for edges in machine for target in edges.values() if not 0 <= target < count]
    if not count or strange:
        raise EpanError("This is no automaton", found=strange or "no state", allowed=f"targets from 0 to {count - 1}")
    with matplotlib.rc_context(RC):
        figure, axes = panel(4.7, 4.7)
        places = [
            (math.sin(2 * math.pi * state / count), math.cos(2 * math.pi * state / count)) for state in range(count)
        ]
        node = min(NODE, 2.2 / max(count, 4) * 0.4)
        arrows = {}
        for state, edges in enumerate(machine):
            # Letters that lead to the same state share an arrow.
            for target in dict.fromkeys(edges.values()):
                arrows[state, target] = ", ".join(letter for letter, other in edges.items() if other == target)
        taken = list(places)
        for (state, target), letters in arrows.items():
            taken.append(_arrow(axes, places[state], places[target], letters, node, taken))
        said = [f"{state} {letters} {target}" for (state, target), letters in arrows.items()]
        for state, (x, y) in enumerate(places):
            for radius in (node, 0.8 * node) if state == 0 else (node,):
                axes.add_patch(
                    Circle((x, y), radius, facecolor=HEAT[2][0], edgecolor=INK["text"][0], linewidth=1.1, zorder=3)
                )
            axes.text(x, y, str(state), ha="center", va="center", fontsize=9, zorder=4)
        reach = 1 + LOOP + node
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.axis("off")
        caption = "Words begin in state 0 (double ring); from each state the letters on its arrows are equally likely."
        shown = title or f"Automaton of {count} state{'s' if count > 1 else ''}"
        return finish(figure, name, shown, caption, f"{shown}: " + "; ".join(said), folder)


def _arrow(axes: Any, start: _Point, end: _Point, letters: str, node: float, taken: Sequence[_Point]) -> _Point:
    """An arrow bent to its left, so that the two directions of a pair stay apart; returns where its letters stand."""
    style: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 9,
        "color": EDGE_COLOUR,
        "linewidth": 1.1,
        "zorder": 1,
    }
    if start == end:
        # Out of the circle of states and back.
        angle = math.atan2(start[1], start[0])
        rim = [
            (start[0] + node * math.cos(angle + turn), start[1] + node * math.sin(angle + turn)) for turn in (-0.6, 0.6)
        ]
        arc = f"arc3,rad={LOOP / (node * math.sin(0.6))}"
        axes.add_patch(FancyArrowPatch(*rim, connectionstyle=arc, shrinkA=0, shrinkB=0, **style))
        out = node * math.cos(0.6) + LOOP
        place = (start[0] + out * math.cos(angle), start[1] + out * math.sin(angle))
    else:
        dx, dy = end[0] - start[0], end[1] - start[1]
        # The control point of the quadratic curve that matplotlib draws.
        control = ((start[0] + end[0]) / 2 + BEND * dy, (start[1] + end[1]) / 2 - BEND * dx)
        shrink = node * _points_per_unit(axes)
        arc = f"arc3,rad={BEND}"
        axes.add_patch(FancyArrowPatch(start, end, connectionstyle=arc, shrinkA=shrink, shrinkB=shrink, **style))
        along = [_on_curve(start, control, end, share) for share in SHARES]
        room = [min(math.dist(place, other) for other in taken) for place in along]
        place = along[next((index for index, space in enumerate(room) if space > node + 0.06), room.index(max(room)))]
    box = {"facecolor": INK["surface"][0], "edgecolor": "none", "pad": 0.8}
    axes.text(*place, letters, ha="center", va="center", fontsize=8.5, fontweight="bold", bbox=box, zorder=2)
    return place


def _on_curve(start: _Point, control: _Point, end: _Point, share: float) -> _Point:
    """A point of a quadratic Bézier curve."""
    weights = ((1 - share) ** 2, 2 * share * (1 - share), share**2)
    x, y = (sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True)) for axis in (0, 1))
    return x, y


def _points_per_unit(axes: Any) -> float:
    figure = axes.get_figure(root=True)
    return 72 * 0.94 * min(figure.get_size_inches()) / (2 * (1 + LOOP + NODE))


def prediction(
    letters: Sequence[str | None],
    predicted: Sequence[Sequence[float]],
    legal: Sequence[Sequence[int]],
    alphabet: Sequence[str],
    folder: Path,
    *,
    first: int = 0,
    name: str = "prediction",
    title: str = "Prediction along a sequence",
) -> Picture:
    """A column for each token, a row for each letter: shade is the predicted probability, a frame says that it may come.

    A dot marks a most probable letter that may not come. The letters that came stand below the columns.

    Parameters
    ----------
    letters: T letters, None between words.
    predicted: T rows of probabilities, one for each letter of ``alphabet``.
    legal: for each token the places in ``alphabet`` of the letters that may come; empty where none is predicted.
    first: position of the first column in its sequence.
    folder: gets ``name.png``.

    Raises
    ------
    EpanError: nothing to draw, or lists of different lengths.
    """
    count = len(letters)
    if not count or not len(predicted) == len(legal) == count:
        raise EpanError(
            "A prediction needs a row for each token", found=f"{count}, {len(predicted)}, {len(legal)} tokens"
        )
    rows = len(alphabet)
    bands = -(-count // MOST_COLUMNS)
    with matplotlib.rc_context({**RC, "axes.grid": False}):
        shown = min(count, MOST_COLUMNS)
        figure, axis = panel(max(4.7, CELL * shown + 0.9), bands * (CELL * rows + 0.55) + 0.3)
        axis.remove()
        missed = 0
        colours = ListedColormap([colour for colour, _ in HEAT])
        for band in range(bands):
            axes = figure.add_subplot(bands, 1, band + 1)
            here = range(band * MOST_COLUMNS, min(count, (band + 1) * MOST_COLUMNS))
            table = [
                [float(predicted[t][row]) if letters[t] is not None else math.nan for t in here] for row in range(rows)
            ]
            axes.imshow(table, cmap=colours, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            for column, t in enumerate(here):
                if letters[t] is None:
                    axes.axvline(column, color=INK["line"][0], linewidth=1)
                    continue
                for row in legal[t]:
                    axes.add_patch(
                        Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor=LEGAL, linewidth=1)
                    )
                best = max(range(rows), key=lambda row, t=t: predicted[t][row])  # type: ignore[misc]
                if legal[t] and best not in legal[t]:
                    missed += 1
                    axes.plot(column, best, marker="o", markersize=2.6, color=WRONG)
            axes.set_xlim(-0.5, shown - 0.5)
            axes.set_yticks(range(rows), alphabet, fontsize=7)
            axes.set_xticks(range(len(here)), [letters[t] or "|" for t in here], fontsize=7)
            axes.tick_params(length=0)
            axes.set_ylabel(f"from token {first + here[0]}", fontsize=7)
            for spine in axes.spines.values():
                spine.set_visible(False)
        caption = (
            "Shade: predicted probability, from 0 (light) to 1 (dark). Frame: the letter may come. Dot: the most probable "
            "letter, where it may not come. Below: the letters that came; the separator is left out of the prediction."
        )
        scored = sum(bool(place) for place in legal)
        alt = f"{title}: {scored - missed} of {scored} most probable letters may come"
        return finish(figure, name, title, caption, alt, folder, wide=True)
