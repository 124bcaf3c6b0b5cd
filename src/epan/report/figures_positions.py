"""Figures over the position in a sequence: what is learnt from the tokens before it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from epan.report.draw import Picture, compact, finish, legend, line_style, panel, value_axis
from epan.report.records import number
from epan.report.summary import Method, Setting, Spread, spread

__all__ = ["distance"]


def distance(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Total variation distance from the exact distribution by position, at the training length or else the longest one."""
    known = [length for length in setting.lengths if any(_by_position(m, length) for m in setting.methods)]
    if not known:
        return None
    length = setting.reference if setting.reference in known else known[-1]
    figure, axes = panel()
    said, firsts = [], set()
    for method in setting.methods:
        points = sorted(_by_position(method, length).items())
        if not points:
            continue
        # A range of positions stands at its middle on the logarithmic axis.
        places = [math.sqrt(first * (last + 1)) for (first, last), _ in points]
        spreads = [value for _, value in points]
        axes.plot(places, [value.mean for value in spreads], label=method.name, **line_style(method.look))
        lows, highs = ([getattr(value, part) for value in spreads] for part in ("low", "high"))
        axes.fill_between(places, lows, highs, color=method.look.colour, alpha=0.15, linewidth=0)
        said.append(f"{method.name} {spreads[0].mean:.3g} to {spreads[-1].mean:.3g}")
        firsts |= {first for (first, _), _ in points}
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(firsts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(round(value))))
    value_axis(axes, lambda value: f"{value:,.4g}")
    axes.set_xlabel("position of the token")
    axes.set_ylabel("total variation distance")
    legend(axes)
    caption = (
        "How far predictions are from the exact distribution of the next token, by how many tokens came before: means over "
        "ranges of positions, each twice as long as the one before; the band spans the seeds."
    )
    title = f"Distance by position, length {compact(length)}"
    return finish(figure, f"{stem}distance-by-position", title, caption, f"{title}: " + "; ".join(said), folder)


def _by_position(method: Method, length: int) -> dict[tuple[int, int], Spread]:
    """The spread over seeds of the distance in each range of positions that the records have."""
    values: dict[tuple[int, int], list[Any]] = {}
    for line in method.evals(length):
        ranges = line.get("by_position")
        for row in ranges if isinstance(ranges, list) else ():
            if isinstance(row, dict) and (first := number(row.get("first"))) and (last := number(row.get("last"))):
                values.setdefault((int(first), int(last)), []).append(row.get("tvd"))
    return {place: found for place, rows in values.items() if (found := spread(rows)) is not None}
