"""Figures over the test length: heat map, exact match, support size, density, empty rows."""

from __future__ import annotations

from pathlib import Path

from matplotlib.patches import Rectangle

from epan._text import percent
from epan.report.draw import (
    RC,
    Picture,
    compact,
    finish,
    legend,
    length_axis,
    line_style,
    panel,
    percent_axis,
    text_width,
    value_axis,
    wrapped,
)
from epan.report.look import HEAT, INK
from epan.report.summary import EXACT, Setting

__all__ = ["accuracy", "density", "empty_rows", "heat_map", "support"]

# Of the heat map: width of a cell in inches, and of the longest line of a method's name in points.
CELL, MOST_NAME = 0.8, 150.0
# A heat map of more inches than this takes a row of the page for itself, or its text would become too small.
WIDE = 6.5


def _dodge(index: int, count: int) -> float:
    """A small factor that keeps points of several methods at one length apart on the logarithmic axis."""
    return float(2 ** (0.06 * (index - (count - 1) / 2)))


def _labels(setting: Setting) -> list[str]:
    return [setting.times(length) if setting.reference else "" for length in setting.lengths]


def heat_map(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """What counts, methods × test length / training length; the range over seeds stands in the cell."""
    lengths, methods = setting.lengths, [method for method in setting.methods if method.lengths()]
    if not lengths or not methods:
        return None
    names = [wrapped(method.name, MOST_NAME, RC["font.size"]) for method in methods]
    heights = [max(0.5, 0.16 * (name.count("\n") + 1) + 0.1) for name in names]
    tops = [sum(heights[:row]) for row in range(len(methods) + 1)]
    left = max(text_width(name, RC["font.size"]) for name in names) / 72 + 0.2
    width = max(4.7, left + CELL * len(lengths) + 0.1)
    figure, axes = panel(width, 0.75 + tops[-1])
    for row, method in enumerate(methods):
        top, middle = tops[row], tops[row] + heights[row] / 2
        for column, length in enumerate(lengths):
            value = setting.at(method, length)
            if value is None:
                axes.text(column + 0.5, middle, "–", ha="center", va="center", color=INK["muted"][0])
                continue
            level = min(max(value.mean, 0.0), 1.0)
            colour = HEAT[round(level * (len(HEAT) - 1))][0]
            axes.add_patch(
                Rectangle((column + 0.03, top + 0.02), 0.94, heights[row] - 0.04, facecolor=colour, linewidth=0)
            )
            ink = INK["on_cell"][0] if level > 0.57 else INK["text"][0]
            seeds = value.count > 1
            axes.text(
                column + 0.5,
                middle - (0.06 if seeds else 0),
                percent(level),
                ha="center",
                va="center",
                color=ink,
                fontsize=9.5,
            )
            if seeds:
                low, high = percent(value.low), percent(value.high)
                text = "all seeds" if low == high else f"{low}–{high}"
                axes.text(column + 0.5, middle + 0.11, text, ha="center", va="center", color=ink, fontsize=7)
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(tops[-1], 0)
    axes.set_yticks([top + height / 2 for top, height in zip(tops, heights, strict=False)], names)
    axes.set_xticks(
        [column + 0.5 for column in range(len(lengths))],
        [f"{compact(length)}\n{times}" for length, times in zip(lengths, _labels(setting), strict=True)],
    )
    axes.tick_params(length=0, labelcolor=INK["text"][0])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(_length_label(setting))
    caption = f"Share of {setting.measure.share}: mean over seeds, below it the lowest and highest seed."
    return finish(figure, f"{stem}heat-map", "Length generalisation", caption, _alt(setting), folder, wide=width > WIDE)


def _length_label(setting: Setting) -> str:
    if not setting.reference:
        return "test length"
    return "test length (× training length)" if setting.reference_known else "test length (× shortest one)"


def _alt(setting: Setting) -> str:
    rows = []
    for method in setting.methods:
        values = [(length, setting.at(method, length)) for length in method.lengths()]
        rows.append(f"{method.name}: " + ", ".join(f"{percent(v.mean)}% at {length}" for length, v in values if v))
    return f"{_title(setting)} by length. " + "; ".join(rows)


def _title(setting: Setting) -> str:
    return setting.measure.name.capitalize()


def accuracy(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """What counts, against length, with the interval of each point."""
    methods = [method for method in setting.methods if method.lengths()]
    if not methods:
        return None
    figure, axes = panel()
    for index, method in enumerate(methods):
        points = [(n, setting.at(method, n), setting.interval(method, n)) for n in method.lengths()]
        kept = [(length, value, interval) for length, value, interval in points if value and interval]
        places = [length * _dodge(index, len(methods)) for length, _, _ in kept]
        axes.plot(places, [value.mean for _, value, _ in kept], label=method.name, **line_style(method.look))
        axes.vlines(
            places,
            [i[0] for *_, i in kept],
            [i[1] for *_, i in kept],
            color=method.look.colour,
            linewidth=1.0,
            alpha=0.75,
        )
    percent_axis(axes)
    length_axis(axes, setting.lengths, _labels(setting))
    axes.set_xlabel("test length")
    axes.set_ylabel(setting.measure.name)
    legend(axes)
    spans = "the seeds"
    if setting.measure is EXACT:
        spans += " and the 95% binomial interval of the test sequences, whichever reaches further"
    caption = (
        f"The same numbers as curves. A bar spans {spans}; points are set side by side so that equal ones stay visible."
    )
    name, title = setting.measure.name.replace(" ", "-"), f"{_title(setting)} against length"
    return finish(figure, f"{stem}{name}", title, caption, _alt(setting), folder)


def _curves(
    setting: Setting, stem: str, folder: Path, field: str, name: str, title: str, ylabel: str, caption: str, share: bool
) -> Picture | None:
    figure, axes = panel()
    said = []
    for method in setting.methods:
        points = [(length, method.at(length, field)) for length in method.lengths()]
        kept = [(length, value) for length, value in points if value is not None]
        if not kept:
            continue
        places = [length for length, _ in kept]
        means, lows, highs = ([getattr(v, part) for _, v in kept] for part in ("mean", "low", "high"))
        axes.plot(places, means, label=method.name, **line_style(method.look))
        axes.fill_between(places, lows, highs, color=method.look.colour, alpha=0.15, linewidth=0)
        said.append(f"{method.name} {means[0]:.3g} to {means[-1]:.3g}")
    if not said:
        return None
    value_axis(axes, lambda value: f"{100 * value:.3g}%" if share else f"{value:,.4g}")
    length_axis(axes, setting.lengths, _labels(setting))
    axes.set_xlabel("test length")
    axes.set_ylabel(ylabel)
    legend(axes)
    return finish(figure, f"{stem}{name}", title, caption, f"{title}: " + "; ".join(said), folder)


def loss(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Loss against length, of what has no exact match."""
    caption = "Mean loss of a token of the held-out text, in nats; lower is better. The band spans the seeds."
    return _curves(setting, stem, folder, "loss", "test-loss", "Loss against length", "nats a token", caption, False)


def support(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Mean number of keys with weight per query."""
    caption = "Mean number of keys that get weight, per query, at evaluation; the band spans the seeds."
    if any(method.kernel == "gaussian" and method.normalization == "adaptive" for method in setting.methods):
        caption += " The Gaussian weighs every key that the mask allows, so it is the upper line."
    return _curves(
        setting,
        stem,
        folder,
        "support_size",
        "support",
        "Support size against length",
        "keys with weight per query",
        caption,
        False,
    )


def density(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Mean share of the allowed keys that get weight."""
    caption = (
        "Mean share of the allowed keys that get weight. A sparse kernel may skip what lies below 100%, and stay exact."
    )
    return _curves(
        setting, stem, folder, "density", "density", "Density against length", "share of allowed keys", caption, True
    )


def empty_rows(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Share of queries without any key in reach; drawn only where there are some."""
    values = [method.at(length, "empty_rows") for method in setting.methods for length in method.lengths()]
    if not any(value and value.high > 0 for value in values):
        return None
    caption = (
        "Share of queries that have keys, none of them within the bandwidth (only the fixed normalization has such)."
    )
    return _curves(
        setting,
        stem,
        folder,
        "empty_rows",
        "empty-rows",
        "Empty rows against length",
        "share of queries",
        caption,
        True,
    )
