"""The methods that are timed beside each other: one small class each, and whether it can run here and on this problem.

A method is *exact* for one kernel and normalization, which its error is measured against. To add a rival: a subclass of
:class:`Rival` and a line in :data:`RIVALS`.
"""

from __future__ import annotations

import importlib.util
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import epan
from accuracy import TILE, thresholds, tile_map
from epan.ops.attention import BACKENDS
from problem import Problem
from workloads import Inputs

__all__ = ["RIVALS", "Rival"]

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
GIB = 2**30


class Rival(ABC):
    """A way to compute attention.

    Attributes
    ----------
    name: in the records. title: for people. package: whose version is recorded, None for torch.
    dense: computes the Gaussian whatever kernel the problem asks for, and is measured against the Gaussian.
    longest: longest N; lengths: the only N. tuning_s: seconds that it spends on itself at every new (N, d).
    graphs: whether its launches may be captured in a CUDA graph. gradients: whether its gradients are those of its method.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    package: ClassVar[str | None] = None
    dense: ClassVar[bool] = False
    needs_gpu: ClassVar[bool] = True
    longest: ClassVar[int | None] = None
    lengths: ClassVar[tuple[int, ...] | None] = None
    tuning_s: ClassVar[float] = 0.0
    graphs: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def missing(self, device: torch.device) -> str | None:
        """Why this method cannot run on ``device``; None if it can."""
        if self.needs_gpu and device.type != "cuda":
            return "needs an NVIDIA GPU"
        if self.package is not None and importlib.util.find_spec(self.module()) is None:
            return f"not installed: pip install {self.package}"
        return None

    def refuses(self, problem: Problem) -> str | None:
        """Why this method is not timed on ``problem``; None if it is."""
        if self.longest is not None and self.longest < problem.shape.N:
            return f"memory grows with N²: up to N = {self.longest}"
        if self.lengths is not None and problem.shape.N not in self.lengths:
            return f"it tunes for minutes at every length: only N = {', '.join(map(str, self.lengths))}"
        if not self.dense and not self.takes(problem):
            return f"does not compute {problem.kernel}, {problem.normalization}"
        return None

    def takes(self, problem: Problem) -> bool:
        """Whether the method computes this kernel with this normalization."""
        return True

    def module(self) -> str:
        return (self.package or "torch").replace("-", "_")

    def version(self) -> str | None:
        """The version of the package, None if it is torch's own."""
        if self.package is None:
            return None
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "unknown"

    @abstractmethod
    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        """The function of q, k, v; what is done here is not timed."""


@dataclass(frozen=True)
class Epan(Rival):
    """One backend of this library; ``short``: see ``epan.ops.triton.short``."""

    backend: str
    short: str = "auto"

    needs_gpu = False

    @property
    def name(self) -> str:  # type: ignore[override]
        if self.short == "never":
            return "epan_long"
        return {"triton": "epan", "tiled": "epan_tiled", "eager": "eager"}[self.backend]

    @property
    def title(self) -> str:  # type: ignore[override]
        if self.short == "never":
            return "epan, kernels for long sequences"
        return {"triton": "epan", "tiled": "epan, tiled backend", "eager": "epan, eager backend"}[self.backend]

    @property
    def longest(self) -> int | None:  # type: ignore[override]
        return 2048 if self.backend == "eager" else None

    @property
    def graphs(self) -> bool:  # type: ignore[override]
        return self.backend == "triton"

    def missing(self, device: torch.device) -> str | None:
        if self.backend not in BACKENDS:
            return f"epan {epan.__version__} has no backend {self.backend!r}"
        return "needs an NVIDIA GPU" if self.backend == "triton" and device.type != "cuda" else None

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        options = problem.options()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with epan.ops.triton.short(self.short):
                return epan.attention(q, k, v, **options, backend=self.backend)

        return attend


class Flash2(Rival):
    """FlashAttention-2, the flash backend of torch's scaled_dot_product_attention."""

    name, title, dense = "fa2", "FlashAttention-2 (torch)", True
    backend: ClassVar[Any] = SDPBackend.FLASH_ATTENTION

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(self.backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)

        return attend


class Cudnn(Flash2):
    """The cuDNN backend of torch's scaled_dot_product_attention."""

    name, title = "cudnn", "cuDNN (torch)"
    backend = SDPBackend.CUDNN_ATTENTION


class Sdpa(Rival):
    """torch's scaled_dot_product_attention with the backend that it chooses; the dense baseline of a CPU."""

    name, title, dense, needs_gpu = "sdpa", "torch SDPA", True, False

    def missing(self, device: torch.device) -> str | None:
        return "on a GPU its backends are timed one by one" if device.type == "cuda" else None

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)


class Flash4(Rival):
    """FlashAttention-4 on CuTe DSL; its layout is (B, N, H, d), so views are transposed."""

    name, title, package, dense = "fa4", "FlashAttention-4", "flash-attn-4", True

    def module(self) -> str:
        return "flash_attn"

    def missing(self, device: torch.device) -> str | None:
        reason = super().missing(device)
        if reason is None and importlib.util.find_spec("flash_attn.cute") is None:
            return "the flash_attn that is installed has no flash_attn.cute"
        return reason

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        from flash_attn.cute import flash_attn_func

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            found = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=problem.causal)
            return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

        return attend


def _adasplash() -> Any:
    """The package; what it finds out about its launch parameters is kept for the next process."""
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    import adasplash

    return adasplash


class AdaSplash2(Rival):
    """AdaSplash-2: causal 1.5-entmax, lengths that are powers of two."""

    name, title, package = "adasplash2", "AdaSplash-2", "adasplash"
    lengths, tuning_s = (4096, 16384, 65536), 270.0

    def takes(self, problem: Problem) -> bool:
        return problem.causal and (problem.kernel, problem.normalization) == ("biweight", "adaptive")

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        return lambda q, k, v: _adasplash().adasplash_v2(q, k, v, niter=1)


class AdaSplash1(Rival):
    """AdaSplash: α-entmax with a block mask; it waits for the device inside, so there is no graph of it."""

    name, title, package = "adasplash1", "AdaSplash", "adasplash"
    lengths, tuning_s, graphs = (4096, 16384, 65536), 270.0, False

    def takes(self, problem: Problem) -> bool:
        return problem.normalization == "adaptive" and problem.kernel in ("epanechnikov", "biweight", "triweight")

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        alpha = 1 + 1 / problem.order
        return lambda q, k, v: _adasplash().adasplash_v1(q, k, v, alpha=alpha, is_causal=problem.causal, niter=5)


class Flex(Rival):
    """torch's flex attention, compiled, with a causal block mask: dense softmax."""

    name, title, dense = "flex", "flex attention", True

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        return self._compiled(problem, None, None)

    @staticmethod
    def _compiled(problem: Problem, tiles: Tensor | None, score_mod: Callable[..., Tensor] | None) -> Function:
        """Flex attention over ``tiles`` (B, H, T, T) boolean, or all that are not above the diagonal."""
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        # Every shape is compiled for itself; without a reset the compiler gives up on the ninth.
        torch._dynamo.reset()
        count = -(-problem.shape.N // TILE)
        if tiles is None:
            tiles = torch.ones(1, 1, count, count, dtype=torch.bool, device=problem.device)
        below = torch.ones(count, count, dtype=torch.bool, device=problem.device).tril()
        if problem.causal:
            tiles = tiles & below
        partial = tiles & torch.eye(count, dtype=torch.bool, device=problem.device) if problem.causal else tiles & False
        full = tiles & ~partial

        def listed(mask: Tensor) -> tuple[Tensor, Tensor]:
            order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
            return mask.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()

        mask = BlockMask.from_kv_blocks(
            *listed(partial),
            *listed(full),
            BLOCK_SIZE=TILE,
            mask_mod=lambda b, h, i, j: i >= j,
            seq_lengths=(problem.shape.N, problem.shape.N),
        )
        attend = torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: attend(q, k, v, score_mod=score_mod, block_mask=mask)


class FlexThreshold(Flex):
    """Flex attention as the sparse phase alone: softmax of n·log[z − τ]₊ over the tiles with weight, both given.

    Weights u^n/Σu^n are the softmax of n log u. Threshold and tiles come from outside and are not timed, and no gradient
    passes through the threshold, so this is a bound of what a general attention compiler can reach, not a method.
    """

    name, title, dense, gradients = "flex_threshold", "flex attention, threshold given", False, False

    def takes(self, problem: Problem) -> bool:
        return problem.normalization == "adaptive" and problem.kernel in ("epanechnikov", "biweight", "triweight")

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        order, threshold = problem.order, thresholds(problem, inputs)

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            u = (score - threshold[b, h, i]) / order
            inside = u > 0
            return torch.where(inside, order * torch.log(torch.where(inside, u, 1.0)), -math.inf)

        return self._compiled(problem, tile_map(problem, inputs, threshold), score_mod)


class Entmax(Rival):
    """Dense attention through the entmax package, as it is used without a fused kernel."""

    name, title, package, needs_gpu, longest = "entmax", "entmax (dense)", "entmax", False, 2048
    graphs = False

    def takes(self, problem: Problem) -> bool:
        return problem.normalization == "adaptive" and problem.kernel in ("epanechnikov", "biweight", "triweight")

    def prepare(self, problem: Problem, inputs: Inputs) -> Function:
        from entmax import entmax15, entmax_bisect, sparsemax

        weights = {
            "epanechnikov": lambda z: sparsemax(z, dim=-1),
            "biweight": lambda z: entmax15(z, dim=-1),
            "triweight": lambda z: entmax_bisect(z, 4 / 3, dim=-1),
        }[problem.kernel]
        length, device = problem.shape.N, problem.device
        hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        if not problem.causal:
            hidden = hidden & False

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = (q @ k.transpose(-2, -1)).float() * problem.beta
            return weights(scores.masked_fill(hidden, -math.inf)).to(v.dtype) @ v

        return attend


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Epan("triton"), Epan("triton", "never"), Epan("tiled"), Epan("eager"), Flash2(), Cudnn(), Sdpa(), Flash4(),
        AdaSplash2(), AdaSplash1(), Flex(), FlexThreshold(), Entmax(),
    )
}  # fmt: skip
