"""epan: exact sparse attention from compact kernels.

Attention is a Nadaraya–Watson estimator. Three independent axes make its weights: the ``kernel`` (how weight falls with
distance), the ``normalization`` (how one query's weights are made comparable) and the ``backend`` (how it is computed).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import (
        cli,
        data,
        errors,
        kernels,
        losses,
        metrics,
        models,
        nn,
        normalizations,
        ops,
        report,
        tasks,
        testing,
        training,
    )
    from .errors import EpanError, UnsupportedError
    from .kernels import (
        Biweight,
        Cosine,
        Epanechnikov,
        Gaussian,
        Kernel,
        Polynomial,
        RectifiedPolynomial,
        Triweight,
        Uniform,
    )
    from .models.generation import generate
    from .normalizations import Adaptive, Anchored, Fixed, Nearest, Normalization, Stats
    from .ops import attention, attention_varlen, attention_weights, reorder_probe
    from .training.loading import load

# Where each public name lives; loaded at first use (PEP 562), so that `import epan` is instant and needs only torch.
_HOME = {
    "EpanError": "errors",
    "UnsupportedError": "errors",
    "Biweight": "kernels",
    "Cosine": "kernels",
    "Epanechnikov": "kernels",
    "Gaussian": "kernels",
    "Kernel": "kernels",
    "Polynomial": "kernels",
    "RectifiedPolynomial": "kernels",
    "Triweight": "kernels",
    "Uniform": "kernels",
    "Adaptive": "normalizations",
    "Anchored": "normalizations",
    "Fixed": "normalizations",
    "Nearest": "normalizations",
    "Normalization": "normalizations",
    "Stats": "normalizations",
    "attention": "ops",
    "attention_varlen": "ops",
    "attention_weights": "ops",
    "reorder_probe": "ops",
    "generate": "models.generation",
    "load": "training.loading",
}
_MODULES = (
    "cli",
    "data",
    "errors",
    "kernels",
    "losses",
    "metrics",
    "models",
    "nn",
    "normalizations",
    "ops",
    "report",
    "tasks",
    "testing",
    "training",
)

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'epan' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
