"""Table and figures of the temperature study: exact match with β multiplied, and with what validation would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import TEMPERED, identity
from drawing import Board, length_axis, percent_axis, titled
from epan.training import RunConfig
from tempering import Ladder
from writing import write_table

__all__ = ["Tempered", "rows_of", "tabulate"]

HEADER = ("task", "model", "method", "temperature", "chosen", "length", "mean", "min", "max", "seeds")
# From blue (wider) over grey (as trained) to orange (narrower).
COLOURS = ("#08519c", "#6baed6", "#59616b", "#fdae6b", "#f16913", "#a63603", "#4d1a00")
# The choices that are drawn, of those in the table.
DRAWN = {"power": ("#078a63", (0, (1.2, 1.2)))}
COLUMNS, PANEL = 4, (2.9, 2.35)


@dataclass(frozen=True)
class Tempered:
    """Exact match of a method at one length with one temperature: mean, lowest and highest seed, number of seeds.

    ``temperature`` is a factor of β, or the name of a choice; ``chosen`` what it chose for each seed.
    """

    task: str
    model: str
    method: str
    temperature: str
    chosen: tuple[float, ...]
    length: int
    mean: float
    low: float
    high: float
    seeds: int


def rows_of(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    ladder: Ladder,
) -> list[Tempered]:
    """The rows of all finished runs that were tested so, in the order of the plan."""
    known = {record["identity"]: record for record in records if record["status"] == "finished"}
    groups: dict[tuple[str, str, str], list[tuple[RunConfig, dict[Any, Any]]]] = {}
    for run in planned:
        rows = known.get(identity(run), {}).get("temperatures", ())
        tests = (dict(zip(TEMPERED, row, strict=True)) for row in rows)
        done = {
            (test["split"], test["length"], test["factor"]): test
            for test in tests
            if test["sequences"] >= ladder.sequences(test["length"])
        }
        if done:
            groups.setdefault((run.task.name, run.model.name, method_of(run)), []).append((run, done))
    found = []
    for key, runs in groups.items():
        lengths = sorted({length for run, _ in runs for length in ladder.lengths(run)})
        for factor in ladder.factors:
            for length in lengths:
                found += _row(key, f"{factor:g}", (), length, [done.get(("test", length, factor)) for _, done in runs])
        for name, (growth, decide) in ladder.choices().items():
            numbers = [ladder.chosen(growth, decide, done) for _, done in runs]
            chosen = tuple(number for number in numbers if number is not None)
            for length in lengths:
                tests = [
                    done.get(("test", length, ladder.factor(growth, number, length)))
                    for (_, done), number in zip(runs, numbers, strict=True)
                    if number is not None
                ]
                found += _row(key, name, chosen, length, tests)
    return found


def _row(
    key: tuple[str, str, str], name: str, chosen: tuple[float, ...], length: int, tests: Sequence[Any]
) -> list[Tempered]:
    values = [float(test["exact_match"]) for test in tests if test is not None]
    if not values:
        return []
    mean = sum(values) / len(values)
    return [Tempered(*key, name, chosen, length, mean, min(values), max(values), len(values))]


def tabulate(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    ladder: Ladder,
    folder: Path,
) -> list[Path]:
    """Write ``temperature.csv`` and a ``TASK-temperature.png`` for each task that has rows; returns what was made."""
    rows = rows_of(records, planned, method_of, ladder)
    if not rows:
        return []
    lines = []
    for row in rows:
        chosen = " ".join(f"{number:g}" for number in row.chosen)
        of = (row.task, row.model, row.method, row.temperature, chosen, row.length)
        lines.append([*of, row.mean, row.low, row.high, row.seeds])
    made = [write_table(folder / "temperature.csv", HEADER, lines)]
    for task in dict.fromkeys(row.task for row in rows):
        made.append(draw([row for row in rows if row.task == task], task, ladder, folder / f"{task}-temperature.png"))
    return made


def draw(rows: Sequence[Tempered], task: str, ladder: Ladder, path: Path) -> Path:
    """A panel per method: exact match against length, one line per factor of β, and what validation chose."""
    methods = list(dict.fromkeys((row.model, row.method) for row in rows))
    lengths = sorted({row.length for row in rows})
    drawn = {name: DRAWN[growth] for name, (growth, _) in ladder.choices().items() if growth in DRAWN}
    handles: dict[str, Any] = {}
    with Board(len(methods), COLUMNS, PANEL, head=0.75) as board:
        for place, (axis, (model, method)) in enumerate(zip(board.axes, methods, strict=True)):
            axis.set_title(titled(model, method, 32), fontsize=8)
            of_method = [row for row in rows if (row.model, row.method) == (model, method)]
            for factor, colour in zip(ladder.factors, COLOURS, strict=False):
                curve = [(row.length, row.mean) for row in of_method if row.temperature == f"{factor:g}"]
                width = 2.4 if factor == 1 else 1.1
                handles |= _line(
                    axis, curve, f"β × {factor:g}", color=colour, linewidth=width, zorder=3 + (factor == 1)
                )
            for name, (colour, dash) in drawn.items():
                curve = [(row.length, row.mean) for row in of_method if row.temperature == name]
                look = {"color": colour, "linestyle": dash, "linewidth": 1.8, "zorder": 5}
                handles |= _line(axis, curve, f"β × (L/{ladder.trained})^γ, γ chosen {name.partition(', ')[2]}", **look)
            length_axis(axis, lengths, ladder.trained, "test length" if board.is_last(place) else None)
            percent_axis(axis, board.is_first(place))
            # The panels beside and below have the same numbers.
            axis.tick_params(labelleft=board.is_first(place), labelbottom=board.is_last(place))
        board.figure.legend(
            handles.values(), handles.keys(), loc="outside lower left", ncols=4, fontsize=7.5, columnspacing=1.4
        )
        return board.save(f"{task}: exact match with β multiplied at test time (mean of the seeds)", path)


def _line(axis: Any, curve: Sequence[tuple[int, float]], label: str, **look: Any) -> dict[str, Any]:
    if not curve:
        return {}
    (line,) = axis.plot([length for length, _ in curve], [mean for _, mean in curve], label=label, **look)
    return {label: line}
