"""Figures of the mathematics: kernel profiles, and the weights that each method gives to the same scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epan.report.draw import Picture, finish, legend, line_style, panel
from epan.report.look import INK, describe, looks, method_name
from epan.report.summary import Setting

__all__ = ["profiles", "weights"]

TWINS = {
    "epanechnikov": "2-entmax (sparsemax)",
    "biweight": "1.5-entmax",
    "triweight": "4/3-entmax",
    "gaussian": "softmax",
}
# Below zero, as scores from distances are: the fixed normalization takes no others.
SCORES = tuple(round(-0.35 * index, 4) for index in range(1, 17))

# More entries of a legend than this would hide the curves.
MOST_INSIDE = 7


def profiles(settings: Sequence[Setting], folder: Path) -> Picture:
    """φ over u = d/h: (1 − u²)ⁿ; the Gaussian, which has no edge, with the curvature of the biweight."""
    import torch

    from epan import kernels
    from epan.errors import EpanError

    figure, axes = panel()
    place = torch.linspace(0.0, 1.35, 271, dtype=torch.float64)
    pairs = [(kernel, rule) for kernel, rule in _pairs(settings) if rule == "adaptive"]
    for (spec, _), look in zip(pairs, looks(pairs), strict=True):
        try:
            kernel = kernels.get(spec)
        except EpanError:
            continue
        # A profile takes x = −βd²/2, which is −support·u²; order 2 lends the Gaussian its unit of length.
        support = float(kernel.support)
        values = kernel.profile(-(2.0 if math.isinf(support) else support) * place.square())
        style = {**line_style(look), "marker": "none"}
        if math.isinf(support):
            style["dashes"] = (4, 2)
        twin = TWINS.get(str(spec))
        axes.plot(place.tolist(), values.tolist(), label=f"{describe(spec)}" + (f" = {twin}" if twin else ""), **style)
    axes.axvline(1.0, color=INK["line"][0], linewidth=0.8)
    axes.text(1.015, 0.93, "edge d = h", color=INK["muted"][0], fontsize=7.5)
    axes.set_xlim(0, 1.35)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("distance / support radius, u = d/h")
    axes.set_ylabel("profile φ")
    legend(axes)
    caption = (
        "With the adaptive normalization each compact kernel is an α-entmax, its twin in the legend. "
        "The Gaussian never reaches zero; it is drawn with the curvature of the biweight."
    )
    alt = "Profiles: Epanechnikov, biweight and triweight reach zero at d = h, the Gaussian never does"
    return finish(figure, "kernels", "Kernel shapes and their entmax twins", caption, alt, folder)


def _pairs(settings: Sequence[Setting]) -> list[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = [
        (name, "adaptive") for name in ("gaussian", "epanechnikov", "biweight", "triweight")
    ]
    for setting in settings:
        for method in setting.methods:
            if (method.kernel, method.normalization) not in pairs:
                pairs.append((method.kernel, method.normalization))
    return pairs


def weights(settings: Sequence[Setting], folder: Path) -> tuple[Picture, list[str]]:
    """The weights that each method gives to sixteen equally spaced scores, and the methods that cannot be drawn."""
    import torch

    from epan import kernels, normalizations
    from epan.errors import EpanError

    figure, axes = panel()
    scores = torch.tensor(SCORES, dtype=torch.float64)
    pairs = _pairs(settings)
    missing, said = [], []
    for (kernel, normalization), look in zip(pairs, looks(pairs), strict=True):
        try:
            shape, rule = kernels.get(kernel), normalizations.get(normalization)
            rule.check(shape, None)
            found, _ = rule.weights(scores, None, shape)
        except EpanError:
            missing.append(f"{describe(kernel)} with {describe(normalization)}")
            continue
        keys = int((found > 0).sum())
        name = method_name(kernel, normalization)
        axes.plot(scores.tolist(), found.tolist(), label=f"{name}: {keys} of {len(SCORES)}", **line_style(look))
        said.append(f"{name} weighs {keys} of {len(SCORES)} keys")
    axes.invert_xaxis()
    axes.set_xlabel("score z of a key (best key left)")
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=-0.01)
    if len(said) > MOST_INSIDE:
        legend(axes)
    else:
        axes.legend(loc="upper right", title="keys with weight", title_fontsize=7.8, alignment="left")
    caption = (
        f"{len(SCORES)} keys with the same scores for every method. Compact kernels give what is out of their reach a "
        "weight of exactly zero; the legend counts the keys with weight."
    )
    return finish(figure, "weights", "Weights on the same scores", caption, "; ".join(said), folder), missing
