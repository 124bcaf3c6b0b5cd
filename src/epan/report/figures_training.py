"""Figures over the training step: loss, support, bandwidth per head."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from epan.report.draw import Picture, compact, finish, legend, line_style, panel
from epan.report.records import Record
from epan.report.summary import Setting

__all__ = ["bandwidths", "loss", "training_support"]

BINS = 80
MOST_MEMORIES = 6


def _binned(record: Record, field: str, width: float) -> dict[int, float]:
    """Mean of ``field`` in each window of ``width`` steps, by the number of the window."""
    windows: dict[int, list[float]] = {}
    for line in record.steps:
        value = line.get(field)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and value == value
            and abs(value) != float("inf")
        ):
            windows.setdefault(int(line["step"] / width), []).append(float(value))
    return {window: statistics.fmean(values) for window, values in windows.items()}


def _over_steps(
    setting: Setting, field: str, draw: Callable[[Any, list[float], list[float], list[float], list[float], Any], None]
) -> tuple[Any, Any, int, float]:
    figure, axes = panel()
    last = max((run.last_step for run in setting.runs), default=0)
    width = max(last / BINS, 1.0)
    drawn = 0
    for method in setting.methods:
        curves = [curve for curve in (_binned(run, field, width) for run in method.runs) if curve]
        if not curves:
            continue
        windows = sorted({window for curve in curves for window in curve})
        columns = [[curve[window] for curve in curves if window in curve] for window in windows]
        steps = [(window + 0.5) * width if width > 1 else float(window) for window in windows]
        draw(
            axes,
            steps,
            [statistics.fmean(c) for c in columns],
            [min(c) for c in columns],
            [max(c) for c in columns],
            method,
        )
        drawn += 1
    axes.set_xlim(left=0)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return figure, axes, drawn, width


def _band(
    axes: Any, steps: list[float], means: list[float], lows: list[float], highs: list[float], method: Any
) -> None:
    style = {**line_style(method.look), "markevery": max(len(steps) // 6, 1)}
    axes.plot(steps, means, label=method.name, **style)
    axes.fill_between(steps, lows, highs, color=method.look.colour, alpha=0.15, linewidth=0)


def _plain_logs(axes: Any) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _window_text(width: float) -> str:
    return f"Each point is the mean of {round(width)} steps. " if round(width) > 1 else ""


def loss(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Training loss, mean over seeds with their range."""
    figure, axes, drawn, width = _over_steps(setting, "loss", _band)
    if not drawn:
        return None
    if axes.dataLim.y0 > 0:
        _plain_logs(axes)
    axes.set_ylabel("training loss (nats)")
    legend(axes, drawn)
    caption = f"{_window_text(width)}Line: mean over seeds; band: lowest to highest seed."
    return finish(figure, f"{stem}loss", "Training loss", caption, "Training loss by step for each method", folder)


def training_support(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Mean support size on the training batches."""
    figure, axes, drawn, width = _over_steps(setting, "support", _band)
    if not drawn:
        return None
    if axes.dataLim.y0 > 0:
        _plain_logs(axes)
    axes.set_ylabel("keys with weight per query")
    legend(axes, drawn)
    caption = f"{_window_text(width)}How sparse attention is while the model learns, on training batches."
    return finish(
        figure, f"{stem}training-support", "Support during training", caption, "Support by training step", folder
    )


def _choose(memories: list[str]) -> list[str]:
    if len(memories) <= MOST_MEMORIES:
        return memories
    places = [round(i * (len(memories) - 1) / (MOST_MEMORIES - 1)) for i in range(MOST_MEMORIES)]
    return [memories[place] for place in places]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def bandwidths(setting: Setting, stem: str, folder: Path) -> list[Picture]:
    """One panel per memory: the scale β of every head while training, first seed of each method."""
    firsts = [(method, next((run for run in method.runs if run.bandwidths), None)) for method in setting.methods]
    kept = [(method, run) for method, run in firsts if run is not None]
    names = {
        name
        for _, run in kept
        for line in run.bandwidths
        if isinstance(line.get("values"), dict)
        for name in line["values"]
    }
    memories = _choose(sorted(names, key=_natural))
    pictures = []
    for memory in memories:
        figure, axes = panel()
        drawn = 0
        for method, run in kept:
            rows = [
                (line["step"], line["values"][memory])
                for line in run.bandwidths
                if memory in (line.get("values") or {})
            ]
            rows = [(step, heads if isinstance(heads, list) else [heads]) for step, heads in rows]
            rows = [(step, [float(head) for head in heads]) for step, heads in rows if heads]
            if not rows:
                continue
            for head in range(min(len(heads) for _, heads in rows)):
                style = {**line_style(method.look), "linewidth": 1.1, "marker": "none"}
                label = method.name if head == 0 else None
                axes.plot(
                    [step for step, _ in rows], [heads[head] for _, heads in rows], label=label, alpha=0.85, **style
                )
            drawn += 1
        if not drawn:
            continue
        if axes.dataLim.y0 > 0:
            _plain_logs(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_ylabel("scale β")
        legend(axes, drawn)
        title = _memory_title(memory)
        caption = "One line per head, first seed of each method."
        pictures.append(
            finish(
                figure,
                f"{stem}bandwidth-{memory.replace('.', '-')}",
                title,
                caption,
                f"Scale of each head, {memory}",
                folder,
            )
        )
    return pictures


def _memory_title(memory: str) -> str:
    """``layers.0.contextual`` → ``Layer 1, contextual``."""
    parts = memory.split(".")
    if len(parts) == 3 and parts[0] == "layers" and parts[1].isdigit():
        return f"Layer {int(parts[1]) + 1}, {parts[2]}"
    return memory
