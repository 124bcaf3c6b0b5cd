"""Kernels: how weight falls with distance. One file per kernel; the catalogue below is one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._options import make
from ..errors import EpanError, unknown_name
from .base import Kernel, RectifiedPolynomial
from .biweight import Biweight
from .cosine import Cosine
from .epanechnikov import Epanechnikov
from .gaussian import Gaussian
from .polynomial import Polynomial
from .triweight import Triweight
from .uniform import Uniform

__all__ = [
    "Biweight",
    "Cosine",
    "Epanechnikov",
    "Gaussian",
    "Kernel",
    "Polynomial",
    "RectifiedPolynomial",
    "Triweight",
    "Uniform",
    "get",
    "names",
]

# Kernels that a bare name makes, and those whose name needs parameters.
_NAMED: dict[str, Kernel] = {
    "gaussian": Gaussian(),
    "epanechnikov": Epanechnikov(),
    "biweight": Biweight(),
    "triweight": Triweight(),
    "uniform": Uniform(),
    "cosine": Cosine(),
}
_PARAMETRIC: dict[str, Callable[..., Kernel]] = {"polynomial": Polynomial, "uniform": Uniform}

_HINTS = {
    "softmax": 'softmax is kernel="gaussian" (normalization="adaptive")',
    "sparsemax": 'sparsemax is kernel="epanechnikov", normalization="adaptive"',
    "entmax": 'alpha-entmax is kernel=epan.Polynomial(order=1/(alpha - 1)), normalization="adaptive"',
    "entmax15": '1.5-entmax is kernel="biweight", normalization="adaptive"',
    "1.5-entmax": '1.5-entmax is kernel="biweight", normalization="adaptive"',
    "entmax_bisect": 'alpha-entmax is kernel=epan.Polynomial(order=1/(alpha - 1)), normalization="adaptive"',
    "relumax": 'ReLUmax is kernel="epanechnikov", normalization="anchored"',
    "relu": 'normalised ReLU is kernel="epanechnikov", normalization="fixed", similarity="euclidean"',
    "normrelu": 'normalised ReLU is kernel="epanechnikov", normalization="fixed", similarity="euclidean"',
    "topk": 'top-k is kernel="gaussian" or "uniform" with normalization=epan.Nearest(k=16)',
    "top-k": 'top-k is kernel="gaussian" or "uniform" with normalization=epan.Nearest(k=16)',
    "rbf": 'the RBF kernel is kernel="gaussian"',
    "quartic": 'the quartic kernel is kernel="biweight"',
    "boxcar": 'the boxcar is kernel="uniform"',
    "tophat": 'the top-hat kernel is kernel="uniform"',
    "adaptive": 'that is a normalization: pass normalization="adaptive"',
    "anchored": 'that is a normalization: pass normalization="anchored"',
    "fixed": 'that is a normalization: pass normalization="fixed"',
    "nearest": "that is a normalization: pass normalization=epan.Nearest(k=16)",
    "polynomial": "a polynomial needs its order: pass epan.Polynomial(order=5)",
}


def names() -> tuple[str, ...]:
    """The kernels that a bare name stands for."""
    return tuple(_NAMED)


def get(spec: str | Mapping[str, object] | Kernel) -> Kernel:
    """The kernel that ``spec`` stands for.

    Parameters
    ----------
    spec: a name, an instance, or a mapping with ``name`` and parameters, e.g. ``{"name": "polynomial", "order": 5}``.

    Raises
    ------
    EpanError: for an unknown name (with a suggestion; familiar names of attention maps get a hint) or parameter.
    """
    if isinstance(spec, Kernel):
        return spec
    if isinstance(spec, str):
        kernel = _NAMED.get(spec)
        if kernel is None:
            raise unknown_name("kernel", spec, _NAMED, _HINTS)
        return kernel
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        parameters = {str(key): value for key, value in spec.items() if key != "name"}
        name = str(spec["name"])
        if not parameters and name in _NAMED:
            return _NAMED[name]
        factory = _PARAMETRIC.get(name)
        if factory is None:
            if name in _NAMED:
                raise EpanError(f"The kernel {name!r} takes no parameters", found=parameters)
            raise unknown_name("kernel", name, {**_NAMED, **_PARAMETRIC}, _HINTS)
        return make("kernel", name, factory, parameters, 'polynomial:order=5, or {"name": "polynomial", "order": 5}')
    if isinstance(spec, type) and issubclass(spec, Kernel):
        raise EpanError("A kernel class was passed", found=spec.__name__, fix="pass an instance, e.g. epan.Biweight()")
    raise EpanError("A kernel is a name, an epan.Kernel, or a mapping with 'name'", found=spec, allowed=_NAMED)
