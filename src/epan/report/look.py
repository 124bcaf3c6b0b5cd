"""How a method is called and drawn: one name, one colour, one dash and one marker in every table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "HEAT", "INK", "METHOD_ORDER", "Look", "describe", "looks", "method_name"]

# Colours of the page and the figures: (light, dark). Figures are drawn in the light ones and mapped to the dark ones.
INK = {
    "text": ("#1b2026", "#e7eaee"),
    "muted": ("#5c6672", "#98a3b0"),
    "line": ("#c3cad2", "#434c57"),
    "grid": ("#e6e9ed", "#2a3038"),
    "surface": ("#fffffe", "#171b20"),
    "on_cell": ("#fdfefe", "#0a0d11"),
}

# Okabe-Ito hues, darkened on white and lightened on black until each has a contrast of 3:1 or more.
_KNOWN: dict[tuple[str, str], tuple[str, str, str]] = {
    ("gaussian", "adaptive"): ("#59616b", "#b3bcc7", "o"),
    ("epanechnikov", "adaptive"): ("#cc7000", "#f5a742", "^"),
    ("biweight", "adaptive"): ("#0a6cb5", "#5fb4f2", "s"),
    ("triweight", "adaptive"): ("#078a63", "#41cfa2", "D"),
    ("epanechnikov", "anchored"): ("#b03a86", "#ea8cc9", "v"),
}
_SPARE = (
    ("#7a5230", "#c99a70", "P"),
    ("#6a4fb3", "#ab96f2", "X"),
    ("#8a8300", "#d3ca45", "<"),
    ("#b23b3b", "#f08c8c", ">"),
    ("#2f7f86", "#72cdd4", "h"),
    ("#8b5fa8", "#cfa6e8", "p"),
    ("#4d7a1f", "#a3d46e", "*"),
    ("#9c4a12", "#eba06a", "d"),
)
_DASHES: dict[str, tuple[float, ...]] = {
    "adaptive": (),
    "anchored": (5.0, 2.0),
    "fixed": (1.2, 1.6),
    "nearest": (6.0, 2.0, 1.2, 2.0),
}

# A ramp of 21 steps from the page's colour to a deep blue (light) or a bright one (dark).
_RAMP_ENDS = (("#eef1f4", "#0b3c6d"), ("#20262d", "#8ecbff"))
_MIDDLE = ("#7fb0d8", "#2c6ba3")


def _blend(start: str, stop: str, share: float) -> str:
    pairs = zip(bytes.fromhex(start[1:]), bytes.fromhex(stop[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _ramp(low: str, middle: str, high: str, steps: int = 21) -> tuple[str, ...]:
    places = [index / (steps - 1) for index in range(steps)]
    return tuple(_blend(low, middle, 2 * p) if p <= 0.5 else _blend(middle, high, 2 * p - 1) for p in places)


HEAT: tuple[tuple[str, str], ...] = tuple(
    zip(
        _ramp(_RAMP_ENDS[0][0], _MIDDLE[0], _RAMP_ENDS[0][1]),
        _ramp(_RAMP_ENDS[1][0], _MIDDLE[1], _RAMP_ENDS[1][1]),
        strict=True,
    )
)

DARK: dict[str, str] = {
    **dict(INK.values()),
    **{light: dark for light, dark, _ in (*_KNOWN.values(), *_SPARE)},
    **dict(HEAT),
}

METHOD_ORDER = tuple(_KNOWN)

_NAMES = {
    ("gaussian", "adaptive"): "Softmax (Gaussian)",
    ("epanechnikov", "adaptive"): "Epanechnikov",
    ("biweight", "adaptive"): "Biweight",
    ("triweight", "adaptive"): "Triweight",
    ("epanechnikov", "anchored"): "ReLUmax",
    ("epanechnikov", "fixed"): "NormReLU",
    ("uniform", "nearest"): "Top-k uniform",
    ("gaussian", "nearest"): "Top-k softmax",
}


@dataclass(frozen=True)
class Look:
    """Colours on light and dark ground, dash pattern (points on, points off, …; empty: solid) and marker."""

    colour: str
    dark: str
    dash: tuple[float, ...]
    marker: str


def describe(value: Any) -> str:
    """A kernel or normalization of a config as text: ``{"name": "nearest", "k": 16}`` → ``nearest(k=16)``."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{key}={value[key]}" for key in value if key != "name")
        return f"{value.get('name', '?')}({options})" if options else str(value.get("name", "?"))
    return str(value)


def _bare(value: Any) -> str:
    return str(value.get("name", "?")) if isinstance(value, Mapping) else str(value)


def method_name(kernel: Any, normalization: Any) -> str:
    """A name for people: ``("epanechnikov", "anchored")`` → ``ReLUmax``; what has no common name is spelt out."""
    known = _NAMES.get((_bare(kernel), _bare(normalization)))
    if known is None:
        name = describe(kernel)
        rule = describe(normalization)
        return f"{name[:1].upper()}{name[1:]}" + ("" if rule == "adaptive" else f", {rule}")
    options = [
        f"{key}={item}"
        for value in (kernel, normalization)
        if isinstance(value, Mapping)
        for key, item in value.items()
        if key != "name"
    ]
    return f"{known} ({', '.join(options)})" if options else known


def looks(methods: Sequence[tuple[Any, Any]]) -> list[Look]:
    """One look for each (kernel, normalization): the known ones keep theirs, the others take spare colours in order."""
    taken: set[tuple[str, str]] = set()
    spare = 0
    result = []
    for kernel, normalization in methods:
        key = (_bare(kernel), _bare(normalization))
        if key in _KNOWN and key not in taken:
            colour, dark, marker = _KNOWN[key]
            taken.add(key)
        else:
            colour, dark, marker = _SPARE[spare % len(_SPARE)]
            spare += 1
        result.append(Look(colour, dark, _DASHES.get(key[1], ()), marker))
    return result
