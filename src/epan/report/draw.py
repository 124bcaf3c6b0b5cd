"""The drawing board: small panels in one style, each saved as PNG and as SVG for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from epan.report.look import DARK, INK, Look

__all__ = ["RC", "Picture", "compact", "finish", "legend", "length_axis", "line_style", "panel", "percent_axis"]

WIDTH, HEIGHT = 4.7, 3.15
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


def legend(axes: Axes, entries: int) -> None:
    """The legend above the axes, in as many columns as fit."""
    if entries:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=min(entries, 3),
            columnspacing=1.2,
            borderpad=0.2,
            borderaxespad=0.2,
        )


def compact(value: float) -> str:
    """1024 → ``1,024``, 65536 → ``64k``, 0.5 → ``0.5``."""
    if value >= 10_000 and value % 1024 == 0:
        return f"{int(value) // 1024}k"
    if value >= 10_000 and value % 1000 == 0:
        return f"{int(value) // 1000}k"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.3g}"


def length_axis(axes: Axes, lengths: Sequence[int], times: Sequence[str]) -> None:
    """A logarithmic axis with a tick at the test lengths, each also as a multiple of the training length."""
    axes.set_xscale("log", base=2)
    stride = -(-len(lengths) // 7)
    shown = list(zip(lengths, times, strict=True))[::stride]
    labels = {float(length): f"{compact(length)}\n{times_text}" for length, times_text in shown}
    axes.xaxis.set_major_locator(FixedLocator(list(labels)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(float(round(value)), "")))
    axes.grid(axis="x", visible=False)


def percent_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1.0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
