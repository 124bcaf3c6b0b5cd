"""Every kernel × normalization × similarity, and whether theory gives it a meaning.

Kernels and normalizations that have a name are found by it, so a new one is tested without a new test file; those with
parameters are represented by examples. Legality is written here a second time, from the theory, and not asked of the
code that enforces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .. import kernels as kernel_catalogue
from .. import normalizations as normalization_catalogue
from ..kernels import Kernel, Polynomial, RectifiedPolynomial, Uniform
from ..normalizations import Fixed, Nearest, Normalization
from ..ops.attention import BACKENDS
from ..ops.triton.support import machine_obstacle
from .execution import device_of
from .inputs import Case

__all__ = [
    "SIMILARITIES",
    "Entry",
    "backends",
    "entries",
    "fused_backends",
    "illegal",
    "kernels",
    "legal",
    "normalizations",
]

SIMILARITIES = ("dot", "euclidean")


def backends() -> tuple[str, ...]:
    """Every backend that can be asked for by name and takes every legal combination, in float64, on the CPU."""
    return tuple(name for name in BACKENDS if name not in ("auto", "triton"))


def fused_backends() -> tuple[str, ...]:
    """The backends of fused kernels that can run here: triton where there is a GPU and Triton, or in its interpreter.

    They take half and single precision, and the combinations that :attr:`Entry.is_fused` says.
    """
    return () if machine_obstacle(torch.device(device_of("triton"))) else ("triton",)


@dataclass(frozen=True)
class Entry:
    """One combination.

    Attributes
    ----------
    kernel_id, normalization_id: for test ids.
    order: orders per head if the kernel's order is a tensor, else None.
    reason: None if legal, else a word that the error message must contain.
    """

    kernel_id: str
    kernel: Kernel
    normalization_id: str
    normalization: Normalization
    similarity: str
    order: tuple[float, ...] | None = None
    reason: str | None = None

    @property
    def is_legal(self) -> bool:
        return self.reason is None

    @property
    def is_fused(self) -> bool:
        """Whether there are fused kernels for it: not for orders that are tensors, nor for a radius that is a distance."""
        return self.is_legal and self.order is None and self.kernel_id != "uniform-radius"

    def __str__(self) -> str:
        return f"{self.kernel_id}-{self.normalization_id}-{self.similarity}"

    def case(self, **changes: Any) -> Case:
        """A case of this combination."""
        fields: dict[str, Any] = {
            "kernel": self.kernel,
            "normalization": self.normalization,
            "similarity": self.similarity,
            "order": self.order,
        }
        return Case(**{**fields, **changes})


def kernels() -> dict[str, Kernel]:
    """Named kernels, and examples of those with parameters."""
    named = {name: kernel_catalogue.get(name) for name in kernel_catalogue.names()}
    examples: dict[str, Kernel] = {
        "uniform-radius": Uniform(radius=3.5),
        "polynomial-1.5": Polynomial(1.5),
        "polynomial-5": Polynomial(5.0),
        "polynomial-40": Polynomial(40.0),
    }
    return {**named, **examples}


def normalizations() -> dict[str, Normalization]:
    """Named normalizations, and examples of those with parameters."""
    named = {name: normalization_catalogue.get(name) for name in normalization_catalogue.names()}
    examples: dict[str, Normalization] = {
        "fixed-zero": Fixed(empty="zero"),
        "fixed-uniform": Fixed(empty="uniform"),
        "nearest-3": Nearest(k=3),
    }
    return {**named, **examples}


def _reason(kernel: Kernel, normalization: Normalization, similarity: str) -> str | None:
    """Why the combination has no meaning (a word of the message), or None."""
    rule = normalization.name
    boxcar = kernel.name == "uniform"
    radius = kernel.radius if isinstance(kernel, Uniform) else None
    smooth = kernel.name == "gaussian"
    if rule == "fixed" and similarity == "dot":
        return "distances"
    if rule == "fixed" and boxcar and radius is None:
        return "radius"
    if rule == "anchored" and boxcar:
        return "radius"
    if rule == "adaptive" and not (smooth or isinstance(kernel, RectifiedPolynomial)):
        return "polynomials"
    if rule == "nearest" and radius is not None:
        return "neighbour"
    if rule == "nearest" and not (smooth or boxcar):
        return "uniform or Gaussian"
    return None


def entries() -> Iterator[Entry]:
    """Every combination, legal or not."""
    for rule_id, rule in normalizations().items():
        for similarity in SIMILARITIES:
            for kernel_id, kernel in kernels().items():
                yield Entry(kernel_id, kernel, rule_id, rule, similarity, None, _reason(kernel, rule, similarity))
            # Orders on both sides of the change of formula, one per head.
            learnt = Polynomial(2.0)
            yield Entry(
                "polynomial-learnt", learnt, rule_id, rule, similarity, (1.5, 24.0), _reason(learnt, rule, similarity)
            )


def legal() -> list[Entry]:
    """The combinations with a meaning; each runs on every backend."""
    return [entry for entry in entries() if entry.is_legal]


def illegal() -> list[Entry]:
    """The combinations without; each raises an error with reason and fix on every backend."""
    return [entry for entry in entries() if not entry.is_legal]
