"""The figures of docs/gpu.md, as SVG, from records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goals import EPAN, Record, groups_of

__all__ = ["FIGURES"]

# Name in the records → (label, colour, marker, dash); ours is the one strong line.
LOOKS: dict[str, tuple[str, str, str, tuple[float, ...]]] = {
    "epan": ("epan, biweight", "#0a6cb5", "s", ()),
    "fa2": ("FlashAttention-2", "#59616b", "o", ()),
    "cudnn": ("cuDNN", "#8a8300", "v", ()),
    "fa4": ("FlashAttention-4", "#cc7000", "^", ()),
    "adasplash2": ("AdaSplash-2", "#b03a86", "D", ()),
    "flex": ("flex attention", "#6a4fb3", "P", (4, 2)),
    "entmax": ("entmax, dense", "#b23b3b", "X", (4, 2)),
    "eager": ("epan, eager", "#078a63", "*", (4, 2)),
}
TEXT, MUTED, GRID = "#1b2026", "#5c6672", "#e6e9ed"


@contextmanager
def _figure(path: Path, panels: int) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with that many panels side by side, saved to ``path`` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Text stays text, and neither a date nor a random id gets into the file.
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "epan", "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": MUTED, "text.color": TEXT, "axes.labelcolor": TEXT,
        "xtick.color": MUTED, "ytick.color": MUTED, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(1, panels, figsize=(4.6 * panels + 2.0, 4.2), squeeze=False, sharey=True)
        yield figure, list(axes[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)


def _newest(records: Sequence[Record]) -> dict[tuple[str, int], Record]:
    """(method, N) → the newest record on segments, M = 16, 16 heads of 64; of epan the adaptive biweight alone.

    Whatever it was measured for: what a run has a record of it does not measure again.
    """
    wanted = {"workload": "segments", "M": 16, "H": 16, "d": 64}
    found: dict[tuple[str, int], Record] = {}
    for group in groups_of(records):
        for record in group:
            if record["name"] == "epan" and any(record[name] != value for name, value in EPAN.items()):
                continue
            if all(record[name] == value for name, value in wanted.items()):
                found.setdefault((record["name"], record["N"]), record)
    return found


def _lines(axis: Any, points: dict[str, list[tuple[float, float]]]) -> None:
    """One line per method; the legend is in the order of the last points, top to bottom."""
    order = sorted(points, key=lambda name: max(points[name])[1], reverse=True)
    for name in order:
        label, colour, marker, dash = LOOKS[name]
        places = sorted(points[name])
        width = 2.4 if name == "epan" else 1.4
        (line,) = axis.plot(
            *zip(*places, strict=True), color=colour, marker=marker, markersize=5, linewidth=width, label=label
        )
        line.set_zorder(5 if name == "epan" else 3)
        if dash:
            line.set_dashes(dash)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)


def _by_length(axis: Any, points: dict[str, list[tuple[float, float]]], label: str) -> None:
    _lines(axis, points)
    lengths = sorted({x for places in points.values() for x, _ in places})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(lengths, [f"{x / 1024:g}k" for x in lengths])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlabel("tokens")
    axis.set_ylabel(label)


def time_by_length(records: Sequence[Record], path: Path) -> bool:
    """Forward + backward of one sequence of 16 heads by its length; False if there is nothing to draw."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, N), record in _newest(records).items():
        if name in LOOKS and record.get("forward_backward_ms"):
            points.setdefault(name, []).append((N, record["forward_backward_ms"] / record["B"]))
    if not points:
        return False
    with _figure(path, 1) as (_, (axis,)):
        _by_length(axis, points, "ms per sequence, forward + backward")
        axis.set_title("Causal, 16 heads of 64, segments with M = 16", fontsize=10, loc="left")
    return True


def memory_by_length(records: Sequence[Record], path: Path) -> bool:
    """Peak memory beyond the inputs of one sequence of 16 heads by its length."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, N), record in _newest(records).items():
        if name in LOOKS and record.get("memory_mb"):
            points.setdefault(name, []).append((N, record["memory_mb"] / record["B"]))
    if not points:
        return False
    with _figure(path, 1) as (_, (axis,)):
        _by_length(axis, points, "MiB per sequence beyond the inputs")
        axis.set_title("Peak memory, forward + backward, 16 heads of 64", fontsize=10, loc="left")
    return True


def speed_by_density(records: Sequence[Record], path: Path) -> bool:
    """Time of each rival over ours by the share of tiles with weight, at N = 16,384."""
    found: dict[int, dict[str, dict[tuple[str, int], tuple[float, float]]]] = {}
    for group in groups_of(records):
        for other in group:
            if other["name"] not in ("fa2", "cudnn", "fa4", "adasplash2") or other["N"] != 16384:
                continue
            wanted = {**EPAN, "workload": other["workload"], "M": other["M"]}
            ours = next((r for r in group if all(r.get(name) == value for name, value in wanted.items())), None)
            if ours is None or not (ours.get("forward_backward_ms") and other.get("forward_backward_ms")):
                continue
            place = (other["workload"], other["M"])
            point = (100 * ours["tile_density"], other["forward_backward_ms"] / ours["forward_backward_ms"])
            found.setdefault(ours["d"], {}).setdefault(other["name"], {}).setdefault(place, point)
    if not found:
        return False
    with _figure(path, len(found)) as (_, axes):
        for axis, d in zip(axes, sorted(found), strict=True):
            points = {
                name: [point for (workload, _), point in places.items() if workload == "segments"]
                for name, places in found[d].items()
            }
            _lines(axis, {name: places for name, places in points.items() if places})
            for name, places in found[d].items():
                # Hollow: inputs of another kind than the line.
                others = [point for (workload, _), point in places.items() if workload != "segments"]
                _, colour, marker, _ = LOOKS[name]
                for x, y in others:
                    axis.plot(
                        x, y, marker=marker, markersize=6, markerfacecolor="white", color=colour, linestyle="none"
                    )
            axis.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=":")
            axis.set_xscale("log")
            axis.set_yscale("log")
            ticks = (3, 5, 10, 20, 50, 100)
            axis.set_xticks(ticks, [f"{tick} %" for tick in ticks])
            axis.set_xticks([], minor=True)
            heights = (0.25, 0.5, 1, 2, 4, 8)
            axis.set_yticks(heights, [f"{height:g}×" for height in heights])
            axis.set_yticks([], minor=True)
            axis.set_xlabel("tiles with weight")
            axis.set_title(f"d = {d}, N = 16,384", fontsize=10, loc="left")
            if axis is not axes[-1]:
                axis.get_legend().remove()
        axes[0].set_ylabel("time of the other over epan's, forward + backward")
    return True


FIGURES: dict[str, Callable[[Sequence[Record], Path], bool]] = {
    "time-by-length": time_by_length,
    "speed-by-density": speed_by_density,
    "memory-by-length": memory_by_length,
}
