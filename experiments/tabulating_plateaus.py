"""Table and figure of the plateau of associative recall: when does a run stop guessing which stored value answers?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from collecting import identity
from drawing import LOOKS, Board, Line, legend_above, with_curves
from epan.tasks.mqmtar import MQMTAR
from epan.training import RunConfig
from epan.training.loading import build_task
from writing import write_table

__all__ = ["BELOW", "escape", "guessing", "tabulate"]

TASK = "mqmtar"
HEADER = ("task", "model", "method", "plateau", "mean", "min", "max", "escaped", "seeds")
# Of the loss of guessing; and so many logged losses make one point of the smoothed curve.
BELOW, SMOOTH = 0.5, 3
COLUMNS, PANEL = 3, (3.7, 2.6)


def guessing(run: RunConfig) -> float | None:
    """Training loss, in nats, of a model that knows all but which of the stored values answers; None for other tasks.

    The first letter of each value is one of P equally likely ones, and tells the second; [q] and <eos> are certain:
    :math:`Q\\,\\overline{\\log P}/(3Q + 1)` for Q queries, over the training lengths.
    """
    task = build_task(run)
    if not isinstance(task, MQMTAR):
        return None
    low, high = run.lengths or task.train_lengths
    mean = math.fsum(math.log(task.pairs(length)) for length in range(low, high + 1)) / (high - low + 1)
    return task.queries * mean / (3 * task.queries + 1)


def escape(losses: Sequence[Sequence[float]], plateau: float) -> int | None:
    """The first logged step at which the median of ``SMOOTH`` losses up to it is below ``BELOW`` of the plateau, or None."""
    for place in range(SMOOTH - 1, len(losses)):
        if statistics.median(loss for _, loss in losses[place - SMOOTH + 1 : place + 1]) < BELOW * plateau:
            return int(losses[place][0])
    return None


def tabulate(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    panels: Mapping[str, Sequence[Line]],
    folder: Path,
) -> list[Path]:
    """Write ``plateau.csv`` and ``mqmtar-plateau.png``, if there are such runs; returns what was made.

    plateau: the loss of guessing. mean, min, max: the step of escape, over the seeds that did; known to the step between two
    points of the loss in the records, at most a hundredth of the run.
    """
    known = {record["identity"]: record for record in records if record["status"] == "finished"}
    groups: dict[tuple[str, str], list[tuple[Sequence[Sequence[float]], int | None]]] = {}
    plateaus: dict[tuple[str, str], float] = {}
    for run in planned:
        record = known.get(identity(run))
        plateau = guessing(run) if record is not None and run.task.name == TASK else None
        if record is None or plateau is None:
            continue
        key = run.model.name, method_of(run)
        plateaus[key] = plateau
        groups.setdefault(key, []).append((record["losses"], escape(record["losses"], plateau)))
    if not groups:
        return []
    lines = []
    for (model, method), runs in groups.items():
        steps = [step for _, step in runs if step is not None]
        values = [sum(steps) / len(steps), min(steps), max(steps)] if steps else ["", "", ""]
        lines.append([TASK, model, method, plateaus[model, method], *values, len(steps), len(runs)])
    made = [write_table(folder / "plateau.csv", HEADER, lines)]
    kept = with_curves(panels, groups)
    if kept:
        made.append(draw(groups, plateaus, kept, folder / f"{TASK}-plateau.png"))
    return made


def draw(
    groups: Mapping[tuple[str, str], Sequence[tuple[Sequence[Sequence[float]], int | None]]],
    plateaus: Mapping[tuple[str, str], float],
    panels: Mapping[str, Sequence[Line]],
    path: Path,
) -> Path:
    """Loss of each seed against the step, in the panels of the other figures, with a mark where it leaves the plateau."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with Board(len(panels), COLUMNS, PANEL) as board:
        for place, (axis, (title, lines)) in enumerate(zip(board.axes, panels.items(), strict=True)):
            axis.set_title(title, fontsize=9, pad=27)
            level = None
            for number, line in enumerate(lines):
                colour, marker, _ = LOOKS[number % len(LOOKS)]
                for seed, (losses, step) in enumerate(groups.get(line[:2], ())):
                    level = plateaus[line[:2]]
                    points = [(at, loss) for at, loss in losses if loss > 0]
                    label = line[2] if seed == 0 else None
                    axis.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, alpha=0.8, label=label)
                    if step is not None:
                        axis.plot([step], [BELOW * level], color=colour, marker=marker, markersize=5, zorder=4)
            if level is not None:
                for height, dash in ((level, (0, (5, 2))), (BELOW * level, (0, (1, 2)))):
                    axis.axhline(height, color="#98a3b0", linewidth=0.9, linestyle=dash, zorder=0)
            axis.set_yscale("log")
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            legend_above(axis)
            if board.is_first(place):
                axis.set_ylabel("training loss (nats)")
            if board.is_last(place):
                axis.set_xlabel("training step")
        said = "training loss of every seed; dashed: guessing which value answers; marked: below half of it"
        return board.save(f"{TASK}: {said}", path)
