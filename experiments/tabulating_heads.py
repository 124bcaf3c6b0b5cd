"""Table and figures of what the heads look at: the mass of weight on the right key, by layer and head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import identity
from drawing import Board, short, titled
from epan.training import RunConfig
from writing import write_table

__all__ = ["Recall", "recall_of", "tabulate"]

HEADER = ("task", "model", "method", "layer", "offset", "length", "mean", "min", "max", "seeds")
COLUMNS = 5


@dataclass(frozen=True)
class Recall:
    """Mass on the right key of one layer of a method.

    Attributes
    ----------
    mass: {length: one row of heads for each seed}; the heads of a seed in the order of their mass at the shortest length,
        each at the offset at which it has most there. offsets: those of the best heads, one for each seed.
    """

    task: str
    model: str
    method: str
    layer: str
    offsets: tuple[int, ...]
    mass: Mapping[int, Sequence[Sequence[float]]]


def recall_of(
    records: Sequence[Mapping[str, Any]], planned: Sequence[RunConfig], method_of: Callable[[RunConfig], str]
) -> list[Recall]:
    """What ``diagnose`` found in the finished runs, in the order of the plan."""
    known = {record["identity"]: record for record in records if record["status"] == "finished"}
    groups: dict[tuple[str, str, str], list[Mapping[int, Mapping[str, Any]]]] = {}
    for run in planned:
        lines = known.get(identity(run), {}).get("attention", ())
        if lines:
            by_length = {line["length"]: line["layers"] for line in lines}
            groups.setdefault((run.task.name, run.model.name, method_of(run)), []).append(by_length)
    found = []
    for key, seeds in groups.items():
        lengths = sorted(set.intersection(*(set(seed) for seed in seeds)))
        for layer in seeds[0][lengths[0]] if lengths else ():
            mass: dict[int, list[list[float]]] = {length: [] for length in lengths}
            offsets = []
            for seed in seeds:
                first = seed[lengths[0]][layer]["recall"]
                heads = range(len(next(iter(first.values()))))
                peak = {head: max(first, key=lambda offset, head=head: first[offset][head]) for head in heads}
                order = sorted(heads, key=lambda head: -first[peak[head]][head])
                offsets.append(int(peak[order[0]]))
                for length in lengths:
                    mass[length].append([seed[length][layer]["recall"][peak[head]][head] for head in order])
            found.append(Recall(*key, layer, tuple(offsets), mass))
    return found


def tabulate(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    folder: Path,
) -> list[Path]:
    """Write ``recall.csv``, the best head of each layer, and a ``TASK-recall.png`` for each task; returns what was made."""
    found = recall_of(records, planned, method_of)
    if not found:
        return []
    lines = []
    for part in found:
        for length, seeds in part.mass.items():
            best = [heads[0] for heads in seeds]
            values = [f"{value:.4g}" for value in (sum(best) / len(best), min(best), max(best))]
            offsets = " ".join(map(str, part.offsets))
            lines.append([part.task, part.model, part.method, part.layer, offsets, length, *values, len(best)])
    made = [write_table(folder / "recall.csv", HEADER, lines)]
    for task in dict.fromkeys(part.task for part in found):
        made.append(draw([part for part in found if part.task == task], task, folder / f"{task}-recall.png"))
    return made


def draw(parts: Sequence[Recall], task: str, path: Path) -> Path:
    """A heat map per method: layers and their heads down, the best first, test lengths across."""
    methods = list(dict.fromkeys((part.model, part.method) for part in parts))
    most = max(len(part.mass) for part in parts)
    rows = max(
        Counter(
            (p.model, p.method) for p in parts for seeds in [next(iter(p.mass.values()))] for _ in seeds[0]
        ).values()
    )
    with Board(len(methods), COLUMNS, (0.95 + 0.33 * most, 0.75 + 0.15 * rows), head=0.5) as board:
        image = None
        for place, (axis, (model, method)) in enumerate(zip(board.axes, methods, strict=True)):
            of_method = [part for part in parts if (part.model, part.method) == (model, method)]
            lengths = list(of_method[0].mass)
            grid, names, edges = [], [], []
            for number, part in enumerate(of_method, start=1):
                heads = len(part.mass[lengths[0]][0])
                for head in range(heads):
                    grid.append([_mean(seed[head] for seed in part.mass[length]) for length in lengths])
                offset = Counter(part.offsets).most_common(1)[0][0]
                names.append(
                    (len(grid) - heads, f"layer {number}\n({offset:+d})" if offset else f"layer {number}\n(0)")
                )
                edges.append(len(grid) - 0.5)
            image = axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
            for row, values in enumerate(grid):
                for column, value in enumerate(values):
                    # The numbers that matter; the rest is pale enough.
                    if value >= 0.095:
                        colour = "white" if value > 0.55 else "#20262e"
                        shown = axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6)
                        # Inside the panel, so the layout need not measure it.
                        shown.set(color=colour, in_layout=False)
            for edge in edges[:-1]:
                axis.axhline(edge, color="#20262e", linewidth=0.8)
            axis.set_title(titled(model, method, 26), fontsize=7.5)
            axis.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=7)
            axis.set_yticks([row for row, _ in names], [name for _, name in names], fontsize=7, va="top")
            axis.tick_params(length=0, labelbottom=board.is_last(place))
            axis.grid(visible=False)
            if board.is_last(place):
                axis.set_xlabel("test length", fontsize=7.5)
        board.figure.colorbar(image, ax=board.axes, shrink=0.35, aspect=25, pad=0.01, format=lambda v, _: f"{v:.0%}")
        said = (
            "weight on the right key in %, heads in order of it (mean of the seeds; in brackets the offset of the best)"
        )
        return board.save(f"{task}: {said}", path)


def _mean(values: Any) -> float:
    known = list(values)
    return float(sum(known) / len(known))
