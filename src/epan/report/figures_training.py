"""Figures over the training step: loss, support, bandwidth per head."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from epan.report.configs import CROSS_ENTROPY, loss_of
from epan.report.draw import Picture, finish, legend, line_style, panel, step_axis, value_axis
from epan.report.look import method_name
from epan.report.records import Record, number
from epan.report.summary import Method, Setting

__all__ = ["bandwidth_note", "bandwidths", "loss", "training_support"]

BINS = 80
MOST_MEMORIES = 6


@dataclass(frozen=True)
class _Curve:
    """One method over the training steps: mean, lowest and highest seed of every point; logged steps in each point."""

    steps: list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]
    sizes: list[int]


def _parts(steps: Sequence[float]) -> list[Sequence[float]]:
    """Each step by itself, or ``BINS`` runs of neighbouring steps where there are more."""
    count = min(len(steps), BINS)
    cuts = [index * len(steps) // count for index in range(count + 1)] if count else []
    return [steps[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]


def _curve(runs: Sequence[Record], field: str) -> _Curve | None:
    """The mean of ``field`` over ``runs`` where every run that came so far has logged it."""
    logged = [{line["step"]: v for line in run.steps if (v := number(line.get(field))) is not None} for run in runs]
    logged = [values for values in logged if values]
    if not logged:
        return None
    every = sorted(set().union(*logged))
    common = [step for step in every if all(step in values or step > max(values) for values in logged)]
    parts = _parts(common or every)
    columns = [
        [statistics.fmean(kept) for values in logged if (kept := [values[step] for step in part if step in values])]
        for part in parts
    ]
    return _Curve(
        [statistics.fmean(part) for part in parts],
        [statistics.fmean(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
        [len(part) for part in parts],
    )


def _over_steps(
    setting: Setting, field: str, name: str, title: str, ylabel: str, caption: str, folder: Path
) -> Picture | None:
    figure, axes = panel()
    sizes: set[int] = set()
    for method in setting.methods:
        curve = _curve(method.trained(), field)
        if curve is None:
            continue
        style = {**line_style(method.look), "markevery": max(len(curve.steps) // 6, 1)}
        axes.plot(curve.steps, curve.means, label=method.name, **style)
        axes.fill_between(curve.steps, curve.lows, curve.highs, color=method.look.colour, alpha=0.15, linewidth=0)
        sizes |= set(curve.sizes)
    if not sizes:
        return None
    step_axis(axes)
    value_axis(axes, lambda value: f"{value:,.4g}")
    axes.set_ylabel(ylabel)
    legend(axes)
    if any(method.seeds > 1 for method in setting.methods):
        caption += " Line: mean over seeds; band: lowest to highest seed."
    return finish(figure, name, title, f"{caption} {_point(sizes)}", f"{title} by step for each method", folder)


def _point(sizes: set[int]) -> str:
    """What a point is; a logged step holds the value of that step alone."""
    low, high = min(sizes), max(sizes)
    if high == 1:
        return "Each point is one logged step."
    return f"Each point is the mean of {high if low == high else f'{low} to {high}'} logged steps."


def loss(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Training loss, mean over seeds with their range."""
    caption = "The loss on the training batch of a step."
    kinds = {loss_of(run) for run in setting.runs}
    label = "training loss (nats)" if kinds == {CROSS_ENTROPY} else "training loss"
    if len(kinds) > 1:
        caption += " The methods have different losses, whose sizes say nothing about each other."
    return _over_steps(setting, "loss", f"{stem}loss", "Training loss", label, caption, folder)


def training_support(setting: Setting, stem: str, folder: Path) -> Picture | None:
    """Mean support size on the training batches."""
    caption = "How sparse attention is while the model learns, on training batches."
    name, title = f"{stem}training-support", "Support during training"
    return _over_steps(setting, "support", name, title, "keys with weight per query", caption, folder)


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
            # A value that was not finite is null in the record, and a gap in the line.
            rows = [(step, [math.nan if (v := number(head)) is None else v for head in heads]) for step, heads in rows]
            for head in range(min((len(heads) for _, heads in rows), default=0)):
                style = {**line_style(method.look), "linewidth": 1.1, "marker": "none"}
                label = method.name if head == 0 else None
                axes.plot(
                    [step for step, _ in rows], [heads[head] for _, heads in rows], label=label, alpha=0.85, **style
                )
            drawn += 1
        if not drawn:
            continue
        step_axis(axes)
        value_axis(axes, lambda value: f"{value:,.4g}")
        axes.set_ylabel("scale β")
        legend(axes)
        title = _memory_title(memory)
        caption = f"One line per head, first seed of each method.{_persistent(memory, kept)}"
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


def _persistent(memory: str, runs: Sequence[tuple[Method, Record]]) -> str:
    """Which kernels a persistent memory has: its own, not those that the colours stand for."""
    if not memory.endswith("persistent"):
        return ""
    colours = " Colours stand for the method of the contextual memory"
    kinds = {method.name: _persistent_method(run) for method, run in runs}
    different = sorted({kind for kind in kinds.values() if kind is not None})
    if None in kinds.values() or not different:
        return f"{colours}; which kernel the persistent memory has is not recorded."
    if all(kinds[method.name] == method_name(method.kernel, method.normalization) for method, _ in runs):
        return ""
    if len(different) == 1:
        return f"{colours}; the persistent memory is {different[0]} in every run."
    return f"{colours}; the persistent memory is {', '.join(f'{kinds[name]} with {name}' for name in kinds)}."


def _persistent_method(run: Record) -> str | None:
    model = run.run.get("model")
    if not isinstance(model, Mapping) or model.get("persistent_kernel") is None:
        return None
    return method_name(model["persistent_kernel"], model.get("persistent_normalization") or "adaptive")


# How far the support reaches under each normalization, d being the distance of the nearest key.
_REACH = {
    "fixed": "fixed: up to h = √(2n/β), the same for every query",
    "anchored": "anchored: up to h = √(d² + 2n/β)",
    "adaptive": "adaptive: as far as makes the weights sum to one, which is never beyond √(d² + 2n/β)",
    "nearest": "nearest: up to the k-th key, whatever β is",
}


def bandwidth_note(setting: Setting) -> str:
    """What the scale means for the rules of this setting."""
    used = [method.normalization for method in setting.methods]
    for run in setting.runs:
        model = run.run.get("model")
        used.append(model.get("persistent_normalization") if isinstance(model, Mapping) else None)
    names = {str(rule.get("name")) if isinstance(rule, Mapping) else str(rule) for rule in used}
    reach = "; ".join(text for rule, text in _REACH.items() if rule in names)
    where = "; d is the distance of the nearest key" if "d²" in reach else ""
    return (
        "The scale β is an inverse squared length: a larger β is a narrower kernel. "
        + (f"Support of order n, for keys of one norm or scores from distances – {reach}{where}. " if reach else "")
        + "The Gaussian has no edge; its standard deviation is 1/√β."
    )


def _memory_title(memory: str) -> str:
    """``layers.0.contextual`` → ``Layer 1, contextual``."""
    parts = memory.split(".")
    if len(parts) == 3 and parts[0] == "layers" and parts[1].isdigit():
        return f"Layer {int(parts[1]) + 1}, {parts[2]}"
    return memory
