"""What is computed in a benchmark: shape, dtype, kernel and normalization, and the arguments of epan for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

import epan
from workloads import Shape, fixed_scale

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Attention of one kernel and normalization on inputs of one shape."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    kernel: str = "biweight"
    normalization: str = "adaptive"
    causal: bool = True

    @property
    def order(self) -> float:
        """n of the kernel; inf for the Gaussian."""
        return float(epan.kernels.get(self.kernel).order)

    @property
    def beta(self) -> float:
        """Inverse temperature: 1/√d, and for the fixed rule that of :func:`workloads.fixed_scale`."""
        d = self.shape.d
        return fixed_scale(self.order, d) if self.normalization == "fixed" else 1 / math.sqrt(d)

    @property
    def similarity(self) -> str:
        return "euclidean" if self.normalization == "fixed" else "dot"

    def options(self) -> dict[str, Any]:
        """Arguments of :func:`epan.attention`."""
        return {
            "is_causal": self.causal, "scale": self.beta, "kernel": self.kernel,
            "normalization": self.normalization, "similarity": self.similarity,
        }  # fmt: skip

    def gaussian(self) -> Problem:
        """The same problem with softmax weights, which is what the dense methods compute."""
        return replace(self, kernel="gaussian", normalization="adaptive")
