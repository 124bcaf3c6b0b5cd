"""Normalizations: how one query's weights are made comparable. One file per rule; the catalogue is one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._options import make
from ..errors import EpanError, unknown_name
from .adaptive import Adaptive
from .anchored import Anchored
from .base import Normalization, Rows, Stats
from .fixed import Fixed
from .nearest import Nearest

__all__ = ["Adaptive", "Anchored", "Fixed", "Nearest", "Normalization", "Rows", "Stats", "get", "names"]

_NAMED: dict[str, Normalization] = {"adaptive": Adaptive(), "anchored": Anchored(), "fixed": Fixed()}
_PARAMETRIC: dict[str, Callable[..., Normalization]] = {"fixed": Fixed, "nearest": Nearest}

_HINTS = {
    "nearest": "nearest needs the number of neighbours: pass epan.Nearest(k=16)",
    "topk": "top-k is normalization=epan.Nearest(k=16) with kernel='gaussian' or 'uniform'",
    "top-k": "top-k is normalization=epan.Nearest(k=16) with kernel='gaussian' or 'uniform'",
    "knn": "k nearest neighbours is normalization=epan.Nearest(k=16)",
    "softmax": 'softmax is kernel="gaussian" with normalization="adaptive"',
    "entmax": 'alpha-entmax is normalization="adaptive" with kernel=epan.Polynomial(order=1/(alpha - 1))',
    "entmax15": '1.5-entmax is normalization="adaptive" with kernel="biweight"',
    "sparsemax": 'sparsemax is normalization="adaptive" with kernel="epanechnikov"',
    "relumax": 'ReLUmax is normalization="anchored" with kernel="epanechnikov"',
    "normrelu": 'normalised ReLU is normalization="fixed" with kernel="epanechnikov", similarity="euclidean"',
    **{
        name: f'that is a kernel: pass kernel="{name}"'
        for name in ("gaussian", "epanechnikov", "biweight", "triweight")
    },
    **{name: f'that is a kernel: pass kernel="{name}"' for name in ("uniform", "cosine")},
    "polynomial": "that is a kernel: pass kernel=epan.Polynomial(order=5)",
}


def names() -> tuple[str, ...]:
    """The normalizations that a bare name stands for."""
    return tuple(_NAMED)


def get(spec: str | Mapping[str, object] | Normalization) -> Normalization:
    """The normalization that ``spec`` stands for.

    Parameters
    ----------
    spec: a name, an instance, or a mapping with ``name`` and parameters, e.g. ``{"name": "nearest", "k": 16}``.

    Raises
    ------
    EpanError: for an unknown name (with a suggestion; familiar names of attention maps get a hint) or parameter.
    """
    if isinstance(spec, Normalization):
        return spec
    if isinstance(spec, str):
        rule = _NAMED.get(spec)
        if rule is None:
            raise unknown_name("normalization", spec, _NAMED, _HINTS)
        return rule
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        parameters = {str(key): value for key, value in spec.items() if key != "name"}
        name = str(spec["name"])
        if not parameters and name in _NAMED:
            return _NAMED[name]
        factory = _PARAMETRIC.get(name)
        if factory is None:
            if name in _NAMED:
                raise EpanError(f"The normalization {name!r} takes no parameters", found=parameters)
            raise unknown_name("normalization", name, {**_NAMED, **_PARAMETRIC}, _HINTS)
        return make("normalization", name, factory, parameters, 'nearest:k=16, or {"name": "nearest", "k": 16}')
    if isinstance(spec, type) and issubclass(spec, Normalization):
        raise EpanError(
            "A normalization class was passed", found=spec.__name__, fix="pass an instance, e.g. epan.Nearest(k=16)"
        )
    raise EpanError(
        "A normalization is a name, an epan.Normalization, or a mapping with 'name'", found=spec, allowed=_NAMED
    )
