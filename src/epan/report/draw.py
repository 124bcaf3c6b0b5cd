"""The drawing board: small panels in one style, each saved as PNG and as SVG for light and dark pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from epan.report.look import DARK, INK, Look

__all__ = [
    "RC",
    "Picture",
    "compact",
    "finish",
    "legend",
    "length_axis",
    "line_style",
    "panel",
    "percent_axis",
    "step_axis",
    "text_width",
    "value_axis",
    "wrapped",
]

WIDTH, HEIGHT = 4.7, 3.15
# Points between two tick labels.
_APART = 5.0
_PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

RC: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK["text"][0],
    "axes.labelcolor": INK["muted"][0],
    "axes.edgecolor": INK["line"][0],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": INK["grid"][0],
    "grid.linewidth": 0.7,
    "xtick.color": INK["line"][0],
    "ytick.color": INK["line"][0],
    "xtick.labelcolor": INK["muted"][0],
    "ytick.labelcolor": INK["muted"][0],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7.8,
    "legend.handlelength": 2.0,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.2,
    "mathtext.default": "regular",
    # Text stays text, so that it takes the font of the page and stays sharp and small.
    "svg.fonttype": "none",
    # The same records give the same bytes.
    "svg.hashsalt": "epan",
}


@dataclass(frozen=True)
class Picture:
    """One finished figure: PNG file name, title, caption, text for screen readers, SVG for light and dark pages."""

    name: str
    title: str
    caption: str
    alt: str
    light: bytes
    dark: bytes
    wide: bool = False


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty panel; call it inside ``matplotlib.rc_context(RC)``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _to_dark(svg: str) -> str:
    pattern = re.compile("|".join(re.escape(light) for light in DARK), re.IGNORECASE)
    return pattern.sub(lambda match: DARK[match.group(0).lower()], svg)


def finish(figure: Figure, name: str, title: str, caption: str, alt: str, folder: Path, wide: bool = False) -> Picture:
    """Save ``folder/name.png`` (with the title in the picture) and return the picture with its two SVGs."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": "epan"})
    svg = buffer.getvalue()
    # Licence and schema addresses are no links, but a page without any address is easier to trust.
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).strip()
    svg = svg.replace("'DejaVu Sans'", _PAGE_FONT).replace('"', '"')
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK["text"][0])
    figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white", metadata={"Software": "epan"})
    return Picture(name, title, caption, alt, svg.encode(), _to_dark(svg).encode(), wide)


def line_style(look: Look) -> dict[str, Any]:
    """Colour, dash and marker of a method as arguments of ``Axes.plot``."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "dashes": look.dash or (None, None),
        "markeredgecolor": INK["surface"][0],
        "markeredgewidth": 0.6,
    }


def text_width(text: str, size: float) -> float:
    """Width in points of the widest line of ``text`` in the font of the figures."""
    font = FontProperties(family=RC["font.family"], size=size)
    return max(float(text_to_path.get_text_width_height_descent(line, font, False)[0]) for line in text.split("\n"))


def wrapped(text: str, room: float, size: float) -> str:
    """``text`` in lines of at most ``room`` points: broken at spaces, a longer word after ``=``, ``_``, ``,`` or ``-``."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, size) <= room:
            lines[-1] = joined
            continue
        pieces = [word] if text_width(word, size) <= room else re.findall(r"[^=_,-]+[=_,-]*|[=_,-]+", word)
        lines.append("")
        for piece in pieces:
            if lines[-1] and text_width(lines[-1] + piece, size) > room:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line for line in lines if line)


def legend(axes: Axes, beside: float = 62.0) -> None:
    """The legend above the axes, in as many columns as fit; the figure grows with every line after the second.

    Parameters
    ----------
    axes: with its labelled lines.
    beside: points that the axis labels left of the axes take from the width of the figure.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    figure, size = axes.get_figure(root=True), RC["legend.fontsize"]
    assert figure is not None
    room = 72 * figure.get_figwidth() - beside
    # Handle, its padding, and the space between columns; in units of the font size, as matplotlib has them.
    handle, gap = (RC["legend.handlelength"] + 0.8) * size, 1.2 * size
    labels = [wrapped(label, room - handle, size) for label in labels]

    def width(columns: int) -> float:
        parts = _columns(labels, columns)
        return sum(handle + max(text_width(label, size) for label in part) for part in parts) + gap * (len(parts) - 1)

    columns = next((count for count in (3, 2) if count <= len(labels) and width(count) <= room), 1)
    parts = _columns(labels, columns)
    lines = max(sum(label.count("\n") + 1 for label in part) for part in parts)
    figure.set_figheight(figure.get_figheight() + max(0, lines - 2) * 1.5 * size / 72)
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        columnspacing=1.2,
        borderpad=0.2,
        borderaxespad=0.2,
    )


def _columns(labels: Sequence[str], count: int) -> list[Sequence[str]]:
    """The labels as matplotlib deals them out: down the columns, the first ones take what is left over."""
    rows, longer = divmod(len(labels), count)
    starts = [index * rows + min(index, longer) for index in range(count + 1)]
    return [labels[start:stop] for start, stop in zip(starts, starts[1:], strict=False) if stop > start]


def compact(value: float) -> str:
    """1024 → ``1,024``, 65536 → ``64k``, 0.5 → ``0.5``."""
    if value >= 10_000 and value % 1024 == 0:
        return f"{int(value) // 1024}k"
    if value >= 10_000 and value % 1000 == 0:
        return f"{int(value) // 1000}k"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.3g}"


def spaced(places: Sequence[float], widths: Sequence[float], order: Sequence[int]) -> list[int]:
    """The labels, by index, that stay apart from one another when those first in ``order`` are kept first."""
    kept: list[int] = []
    for index in order:
        if all(abs(places[index] - places[k]) >= (widths[index] + widths[k]) / 2 + _APART for k in kept):
            kept.append(index)
    return sorted(kept)


def length_axis(axes: Axes, lengths: Sequence[int], times: Sequence[str], beside: float = 62.0) -> None:
    """A logarithmic axis with a tick at the test lengths, each also as a multiple of the training length.

    Where labels would run into each other, the ends keep theirs, then the training length (1×) and whole multiples.
    """
    axes.set_xscale("log", base=2)
    figure = axes.get_figure(root=True)
    assert figure is not None
    texts = [f"{compact(length)}\n{text}".strip() for length, text in zip(lengths, times, strict=True)]
    # Nine tenths of the axis: the margins take the rest.
    unit = 0.9 * (72 * figure.get_figwidth() - beside) / max(math.log2(lengths[-1] / lengths[0]), 1e-9)
    places = [unit * math.log2(length / lengths[0]) for length in lengths]
    first = (0, len(lengths) - 1)
    order = sorted(range(len(lengths)), key=lambda i: (i not in first, times[i] != "1×", "." in times[i], i))
    shown = spaced(places, [text_width(text, RC["font.size"]) for text in texts], order)
    labels = {float(lengths[index]): texts[index] for index in shown}
    axes.xaxis.set_major_locator(FixedLocator(list(labels)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(float(round(value)), "")))
    axes.grid(axis="x", visible=False)


def step_axis(axes: Axes) -> None:
    """The axis of training steps, from 0."""
    axes.set_xlim(left=0)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def value_axis(axes: Axes, text: Callable[[float], str]) -> None:
    """A logarithmic y axis with three ticks or more; a linear one where values reach 0 or span too little for that."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    if not axes.dataLim.y0 > 0:
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [part * 10.0**decade for decade in decades for part in parts]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            axes.yaxis.set_major_locator(FixedLocator(ticks))
            axes.yaxis.set_minor_locator(NullLocator())
            # A new scale comes with formatters of its own.
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
            return
    axes.set_yscale("linear")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def percent_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1.0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
