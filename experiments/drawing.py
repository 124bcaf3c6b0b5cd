"""Figures of a study: panels side by side in the style of the reports; the same records give the same bytes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "LOOKS",
    "Board",
    "Line",
    "dotted",
    "legend_above",
    "length_axis",
    "percent_axis",
    "short",
    "titled",
    "with_curves",
]

#: Model and method of a curve, and how the legend calls it.
Line = tuple[str, str, str]

# The colours of the report, in its order: grey for the Gaussian, then Okabe-Ito hues with a contrast of 3:1 on white.
LOOKS = (
    ("#59616b", "o", "-"),
    ("#cc7000", "^", "-"),
    ("#0a6cb5", "s", (0, (5, 2))),
    ("#078a63", "D", (0, (1.2, 1.6))),
    ("#b03a86", "v", (0, (6, 2, 1.2, 2))),
    ("#7a5230", "P", "-"),
)


class Board:
    """A figure of ``count`` panels, at most ``columns`` side by side, each of ``panel`` inches.

    Used as a context manager, so that the style holds for all that is drawn; :meth:`save` ends it.

    Attributes
    ----------
    figure: the figure. axes: its panels, as many as asked for.
    """

    def __init__(self, count: int, columns: int, panel: tuple[float, float], head: float = 0.45) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from epan.report.draw import RC

        self.columns = min(columns, count)
        self.count, self._size = count, (panel[0] * self.columns, head + panel[1] * -(-count // self.columns))
        self._context = matplotlib.rc_context(RC)

    def __enter__(self) -> Board:
        from matplotlib.figure import Figure

        self._context.__enter__()
        self.figure: Any = Figure(figsize=self._size, layout="constrained")
        rows = -(-self.count // self.columns)
        panels = self.figure.subplots(rows, self.columns, squeeze=False).flatten()
        for axis in panels[self.count :]:
            axis.set_visible(False)
        self.axes: list[Any] = list(panels[: self.count])
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def is_first(self, place: int) -> bool:
        """Whether nothing stands left of the panel."""
        return place % self.columns == 0

    def is_last(self, place: int) -> bool:
        """Whether nothing stands below the panel."""
        return place + self.columns >= self.count

    def save(self, title: str, path: Path) -> Path:
        """Write the PNG with its title above."""
        self.figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        self.figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": "epan"})
        return path


def with_curves(panels: Mapping[str, Sequence[Line]], found: Container[tuple[str, str]]) -> dict[str, Sequence[Line]]:
    """The panels that have more to show than their reference, or those that have that, if no other has anything."""
    kept = {title: lines for title, lines in panels.items() if any(line[:2] in found for line in lines[1:])}
    return kept or {title: lines for title, lines in panels.items() if lines[0][:2] in found}


def legend_above(axis: Any) -> None:
    """A legend of two columns above the panel."""
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=7, columnspacing=1.2, borderpad=0.2)


def percent_axis(axis: Any, is_labelled: bool) -> None:
    """Exact match from 0 to 100 %."""
    from epan.report.draw import percent_axis as from_0_to_1

    from_0_to_1(axis)
    if is_labelled:
        axis.set_ylabel("exact match")


def length_axis(axis: Any, lengths: Sequence[int], longest: int | None, label: str | None) -> None:
    """A logarithmic axis of test lengths, with a dotted line at the longest length of training."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log", base=2)
    # Powers of two from the first length on, no more than seven of them.
    ticks = [length for length in lengths if (length / lengths[0]).is_integer() or len(lengths) == 1]
    ticks = ticks[:: -(-len(ticks) // 7)]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    if longest is not None and lengths[0] <= longest <= lengths[-1]:
        dotted(axis, longest)
    if label is not None:
        axis.set_xlabel(label)


def dotted(axis: Any, place: float) -> None:
    """A dotted line up the panel, behind the curves."""
    axis.axvline(place, color="#98a3b0", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)


def short(value: float) -> str:
    """A length for an axis: 512, 1k, 64k."""
    whole = round(value)
    return f"{whole // 1024}k" if whole >= 1024 and whole % 1024 == 0 else str(whole)


def titled(model: str, method: str, most: int) -> str:
    """A method as the title of a panel of its own, in lines of at most ``most`` letters where its parts allow that."""
    lines = [""]
    for part in method.replace("adaptive_bandwidth", "β₁nᵃ+β₀").split("+"):
        joined = f"{lines[-1]}+{part}" if lines[-1] else part
        if len(joined) <= most or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(f"+{part}")
    # Most are Memory Mosaics.
    return "\n".join([*lines, *([] if model == "memory_mosaic" else [f"({model})"])])
