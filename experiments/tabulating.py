"""Tables and figures of a study, from its records alone: the same records give the same bytes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import identity
from epan._lines import number
from epan.errors import EpanError
from epan.training import RunConfig
from testing import Study

__all__ = ["Line", "Row", "rows_of", "tabulate"]

#: Model and method of a curve, and how the legend calls it.
Line = tuple[str, str, str]

HEADER = ("task", "model", "method", "length", "mean", "min", "max", "seeds")
DIAGNOSED = ("token_accuracy", "loss", "support_size", "density", "empty_rows")
# The colours of the report, in its order: grey for the Gaussian, then Okabe-Ito hues with a contrast of 3:1 on white.
LOOKS = (
    ("#59616b", "o", "-"),
    ("#cc7000", "^", "-"),
    ("#0a6cb5", "s", (0, (5, 2))),
    ("#078a63", "D", (0, (1.2, 1.6))),
    ("#b03a86", "v", (0, (6, 2, 1.2, 2))),
    ("#7a5230", "P", "-"),
)
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
        for test in record["evaluations"] if record is not None else ():
            length = test["length"]
            if (
                test["split"] == "test"
                and length in study.lengths(run)
                and test["sequences"] >= study.sequences(length)
            ):
                found.setdefault((run.task.name, run.model.name, method_of(run), length), {})[run.seed] = test
    rows = []
    for (task, model, method, length), tests in found.items():
        values = [float(test["exact_match"]) for test in tests.values()]
        other = {name: _mean(test.get(name) for test in tests.values()) for name in DIAGNOSED}
        mean = sum(values) / len(values)
        rows.append(Row(task, model, method, length, mean, min(values), max(values), len(values), other))
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.model, row.method) for row in rows))}
    return sorted(rows, key=lambda row: (order[row.task, row.model, row.method], row.length))


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
    of token accuracy, loss (nats), keys with weight per query, their share of the allowed keys, share of empty rows.

    Parameters
    ----------
    panels: title of a panel of each figure: the curves in it, the reference first.

    Raises
    ------
    EpanError: no record has anything for the table.
    """
    rows = rows_of(records, planned, method_of, study)
    if not rows:
        raise EpanError(
            "No record has a result for the table",
            found=f"{len(records)} records",
            fix="train and test runs of the study, collect their folders, then make the tables",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for row in rows:
            shown = [f"{value:.6g}" for value in (row.mean, row.low, row.high)]
            writer.writerow([row.task, row.model, row.method, row.length, *shown, row.seeds])
    with (folder / "diagnostics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*HEADER[:4], *DIAGNOSED, "seeds"])
        for row in rows:
            values = ["" if row.other[name] is None else f"{row.other[name]:.6g}" for name in DIAGNOSED]
            writer.writerow([row.task, row.model, row.method, row.length, *values, row.seeds])
    made = [folder / "table.csv", folder / "diagnostics.csv"]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        trained = next(run.lengths for run in planned if run.task.name == task)
        drawn = draw(of_task, task, panels, trained, folder / f"{task}.png")
        made += [folder / f"{task}.png"] if drawn else []
    seeds = Counter(row.seeds for row in rows)
    said = ", ".join(f"{count} of {number} seed{'s' if number > 1 else ''}" for number, count in sorted(seeds.items()))
    return [*map(str, made), f"{len(rows)} rows: {said}"]


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from epan.report.draw import RC

    by_method: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_method.setdefault((row.model, row.method), []).append(row)
    kept = {title: lines for title, lines in panels.items() if any(line[:2] in by_method for line in lines[1:])}
    kept = kept or {title: lines for title, lines in panels.items() if lines[0][:2] in by_method}
    if not kept:
        return False
    columns = min(COLUMNS, len(kept))
    height = -(-len(kept) // columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(PANEL[0] * columns, 0.45 + PANEL[1] * height), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False).flatten()
        lengths = sorted({row.length for row in rows})
        for place, (axis, (title, lines)) in enumerate(zip(axes, kept.items(), strict=False)):
            _panel(axis, title, lines, by_method)
            _axes(axis, lengths, trained, first=place % columns == 0, last=place + columns >= len(kept))
        for axis in axes[len(kept) :]:
            axis.set_visible(False)
        named = f"{task}: exact match against test length, mean and range of the seeds"
        figure.suptitle(named, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": "epan"})
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
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=7, columnspacing=1.2, borderpad=0.2)


def _axes(axis: Any, lengths: Sequence[int], trained: tuple[int, int] | None, first: bool, last: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from epan.report.draw import percent_axis

    percent_axis(axis)
    axis.set_xscale("log", base=2)
    # Powers of two from the first length on, no more than seven of them.
    ticks = [length for length in lengths if (length / lengths[0]).is_integer() or len(lengths) == 1]
    ticks = ticks[:: -(-len(ticks) // 7)]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    if trained is not None and lengths[0] <= trained[1] <= lengths[-1]:
        axis.axvline(trained[1], color="#98a3b0", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    if first:
        axis.set_ylabel("exact match")
    if last:
        axis.set_xlabel("test length (dotted: longest in training)")


def _short(value: float) -> str:
    whole = round(value)
    return f"{whole // 1024}k" if whole >= 1024 and whole % 1024 == 0 else str(whole)
