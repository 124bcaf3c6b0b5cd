"""Tables and figures of a study, from its records alone: the same records give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import identity
from drawing import LOOKS, Board, Line, legend_above, length_axis, percent_axis, with_curves
from epan._lines import number
from epan.training import RunConfig
from testing import Study
from writing import nothing_to_show, seeds_told, write_table

__all__ = ["Row", "rows_of", "tabulate"]

HEADER = ("task", "model", "method", "length", "mean", "min", "max", "seeds")
DIAGNOSED = ("token_accuracy", "loss", "support_size", "density", "empty_rows")
HEADS = ("entropy", "bandwidth")
COLUMNS, PANEL = 3, (3.7, 3.0)


@dataclass(frozen=True)
class Row:
    """Exact match of one method at one length: mean, lowest and highest seed, number of seeds; other means."""

    task: str
    model: str
    method: str
    length: int
    mean: float
    low: float
    high: float
    seeds: int
    other: Mapping[str, float | None]


def rows_of(
    records: Iterable[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    study: Study,
) -> list[Row]:
    """One row for each planned method and length that has a finished run with a whole test; in the order of the plan."""
    known = {record["identity"]: record for record in records if record["status"] == "finished"}
    found: dict[tuple[str, str, str, int], dict[int, Mapping[str, Any]]] = {}
    for run in planned:
        record = known.get(identity(run))
        if record is None:
            continue
        for test in record["evaluations"]:
            length = test["length"]
            if (
                test["split"] == "test"
                and length in study.lengths(run)
                and test["sequences"] >= study.wanted("test", length, record["evaluations"])
            ):
                key = (run.task.name, run.model.name, method_of(run), length)
                found.setdefault(key, {})[run.seed] = {**test, **_of_heads(record, length)}
    rows = []
    for (task, model, method, length), tests in found.items():
        values = [float(test["exact_match"]) for test in tests.values()]
        other = {name: _mean(test.get(name) for test in tests.values()) for name in (*DIAGNOSED, *HEADS)}
        mean = sum(values) / len(values)
        rows.append(Row(task, model, method, length, mean, min(values), max(values), len(values), other))
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.model, row.method) for row in rows))}
    return sorted(rows, key=lambda row: (order[row.task, row.model, row.method], row.length))


def _of_heads(record: Mapping[str, Any], length: int) -> dict[str, float | None]:
    """Means over the heads of all layers that read the sequence, where ``diagnose`` looked at this length."""
    layers = [
        layer for line in record.get("attention", ()) if line["length"] == length for layer in line["layers"].values()
    ]
    return {name: _mean(value for layer in layers for value in layer.get(name, ())) for name in HEADS}


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for item in values if (value := number(item)) is not None]
    return sum(known) / len(known) if known else None


def tabulate(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    study: Study,
    panels: Mapping[str, Sequence[Line]],
    folder: Path,
) -> list[str]:
    """Write ``table.csv``, ``diagnostics.csv`` and ``TASK.png`` into ``folder``; returns what is to be said about it.

    table.csv: exact match as a fraction, mean, lowest and highest seed, number of seeds. diagnostics.csv: means over the seeds
    of token accuracy, loss (nats), keys with weight per query, their share of the allowed keys, share of empty rows, and, of the
    queries that predict the target, entropy of the weights (nats) and bandwidth h_i, where ``diagnose`` looked.

    Parameters
    ----------
    panels: title of a panel of each figure: the curves in it, the reference first.

    Raises
    ------
    EpanError: no record has anything for the table.
    """
    rows = rows_of(records, planned, method_of, study)
    if not rows:
        raise nothing_to_show(len(records))
    folder.mkdir(parents=True, exist_ok=True)
    named = [(row.task, row.model, row.method, row.length) for row in rows]
    scores = [[*name, row.mean, row.low, row.high, row.seeds] for name, row in zip(named, rows, strict=True)]
    others = (*DIAGNOSED, *HEADS)
    diagnosed = [
        [*name, *(row.other[other] for other in others), row.seeds] for name, row in zip(named, rows, strict=True)
    ]
    made = [
        write_table(folder / "table.csv", HEADER, scores),
        write_table(folder / "diagnostics.csv", [*HEADER[:4], *others, "seeds"], diagnosed),
    ]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        trained = next(run.lengths for run in planned if run.task.name == task)
        drawn = draw(of_task, task, panels, trained, folder / f"{task}.png")
        made += [folder / f"{task}.png"] if drawn else []
    return [*map(str, made), seeds_told(row.seeds for row in rows)]


def draw(
    rows: Sequence[Row],
    task: str,
    panels: Mapping[str, Sequence[Line]],
    trained: tuple[int, int] | None,
    path: Path,
) -> bool:
    """Exact match against length in one panel per family: mean over the seeds, the bar from the lowest to the highest.

    Returns whether there was anything to draw; panels with nothing but their reference are left out.
    """
    by_method: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_method.setdefault((row.model, row.method), []).append(row)
    kept = with_curves(panels, by_method)
    if not kept:
        return False
    lengths = sorted({row.length for row in rows})
    with Board(len(kept), COLUMNS, PANEL) as board:
        for place, (axis, (title, lines)) in enumerate(zip(board.axes, kept.items(), strict=True)):
            _panel(axis, title, lines, by_method)
            label = "test length (dotted: longest in training)" if board.is_last(place) else None
            length_axis(axis, lengths, None if trained is None else trained[1], label)
            percent_axis(axis, board.is_first(place))
        board.save(f"{task}: exact match against test length, mean and range of the seeds", path)
    return True


def _panel(axis: Any, title: str, lines: Sequence[Line], found: Mapping[tuple[str, str], list[Row]]) -> None:
    # Above the legend, which has two lines.
    axis.set_title(title, fontsize=9, pad=27)
    for place, line in enumerate(lines):
        rows = found.get(line[:2])
        if not rows:
            continue
        colour, marker, dash = LOOKS[place % len(LOOKS)]
        # Side by side, so that equal ones stay visible.
        shift = 2 ** (0.07 * (place - (len(lines) - 1) / 2))
        places = [row.length * shift for row in rows]
        axis.vlines(places, [row.low for row in rows], [row.high for row in rows], color=colour, linewidth=1.1)
        means = [row.mean for row in rows]
        axis.plot(places, means, color=colour, marker=marker, linestyle=dash, linewidth=1.4, label=line[2])
    legend_above(axis)
