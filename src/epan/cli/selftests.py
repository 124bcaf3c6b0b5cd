"""The self-tests of ``epan doctor``; each takes a moment."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epan.errors import EpanError

__all__ = ["CHECKS", "Check", "Outcome", "Skipped"]


@dataclass(frozen=True)
class Check:
    """A self-test: ``measure`` returns an error that must not exceed ``bound``, or words on what went well.

    It raises Skipped where there is nothing to test, anything else where the test fails.
    """

    name: str
    bound: float
    measure: Callable[[], float | str]

    def run(self) -> Outcome:
        """Carry it out."""
        began = time.perf_counter()
        status: Literal["PASS", "FAIL", "SKIP"]
        try:
            found = self.measure()
            if isinstance(found, str):
                status, detail = "PASS", found
            else:
                # An error that is NaN is not below anything.
                status = "PASS" if found <= self.bound else "FAIL"
                detail = f"error {found:.1e}, at most {self.bound:.0e}" if self.bound else f"{found:g} differences"
        except Skipped as reason:
            status, detail = "SKIP", str(reason)
        except Exception as failure:
            status, detail = "FAIL", f"{type(failure).__name__}: {failure}"
        return Outcome(self.name, status, detail, time.perf_counter() - began)


class Skipped(Exception):
    """There is nothing to test; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check; ``seconds`` that it took."""

    name: str
    status: Literal["PASS", "FAIL", "SKIP"]
    detail: str
    seconds: float


def _sparsemax_reference(scores: list[float]) -> list[float]:
    """Sparsemax by sorting, in plain Python."""
    ordered = sorted(scores, reverse=True)
    total, threshold = 0.0, 0.0
    for count, score in enumerate(ordered, start=1):
        total += score
        if score * count > total - 1:
            threshold = (total - 1) / count
    return [max(score - threshold, 0.0) for score in scores]


def _scores() -> list[float]:
    """Twenty-four fixed numbers between -2 and 2, from no random generator."""
    return [((37 * index * index + 11 * index) % 101) / 25.0 - 2.0 for index in range(24)]


def _epanechnikov() -> float:
    import torch

    from epan.ops import attention_weights

    scores = _scores()
    found = attention_weights(
        torch.tensor(scores, dtype=torch.float64), kernel="epanechnikov", normalization="adaptive"
    )
    return max(abs(a - b) for a, b in zip(found.tolist(), _sparsemax_reference(scores), strict=True))


def _sums() -> float:
    import torch

    from epan.ops import attention_weights

    scores = torch.tensor(_scores(), dtype=torch.float64)
    kernels = ("gaussian", "epanechnikov", "biweight", "triweight")
    weights = [
        attention_weights(scores, kernel=kernel, normalization=rule)
        for kernel in kernels
        for rule in ("adaptive", "anchored")
    ]
    return max(abs(float(found.sum()) - 1.0) for found in weights)


def _entmax_equation() -> float:
    """p_j^(1/n) − z_j/n is one constant on the support: what makes the weights of order n an α-entmax, α = 1 + 1/n."""
    import torch

    from epan.ops import attention_weights

    scores = torch.tensor(_scores(), dtype=torch.float64)
    worst = 0.0
    for kernel, order in (("epanechnikov", 1), ("biweight", 2), ("triweight", 3)):
        weights = attention_weights(scores, kernel=kernel, normalization="adaptive")
        inside = weights > 0
        shift = weights[inside] ** (1 / order) - scores[inside] / order
        worst = max(worst, float(shift.max() - shift.min()))
    return worst


def _high_order() -> float:
    import torch

    from epan.kernels import Polynomial
    from epan.ops import attention_weights

    scores = torch.tensor(_scores(), dtype=torch.float64)
    found = attention_weights(scores, kernel=Polynomial(order=1e6), normalization="adaptive")
    return float((found - torch.softmax(scores, -1)).abs().max())


def _backends() -> float:
    """The fast backend against the definition: outputs and gradients of causal attention, float64."""
    import torch

    from epan.ops import attention

    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 70, 16, generator=source, dtype=torch.float64) for _ in range(4)]
    worst = 0.0
    for kernel in ("gaussian", "epanechnikov", "biweight", "triweight"):
        results = []
        for backend in ("eager", "tiled"):
            q, k, v = (tensor.clone().requires_grad_() for tensor in inputs[:3])
            out = attention(q, k, v, is_causal=True, scale=1.0, kernel=kernel, backend=backend)
            results.append([out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])])
        worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(*results, strict=True)))
    return worst


def _triton() -> float:
    """The fused kernels on the GPU in float32 against the definition in float64: outputs and gradients."""
    import torch

    from epan.ops import attention
    from epan.ops.triton.support import machine_obstacle

    found = machine_obstacle(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if found is not None:
        raise Skipped(found.reason)

    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 300, 64, generator=source) for _ in range(4)]
    worst = 0.0
    for kernel, rule, similarity in (
        ("biweight", "adaptive", "dot"),
        ("epanechnikov", "anchored", "dot"),
        ("triweight", "fixed", "euclidean"),
        ("gaussian", "adaptive", "dot"),
    ):
        results = []
        for backend, device, dtype in (("eager", "cpu", torch.float64), ("triton", "cuda", torch.float32)):
            q, k, v, grad = (tensor.to(device, dtype).requires_grad_() for tensor in inputs)
            out = attention(
                q, k, v, is_causal=True, kernel=kernel, normalization=rule, similarity=similarity, backend=backend
            )
            results.append([out, *torch.autograd.grad(out, (q, k, v), grad.detach())])
        worst = max(worst, *(float((a - b.cpu()).abs().max()) for a, b in zip(*results, strict=True)))
    return worst


def _deterministic() -> float:
    """How many numbers of a training step of attention differ when it is done again, where "auto" would do it."""
    import torch

    from epan.ops import attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 300, 32, generator=source) for _ in range(4)]
    results = []
    for _ in range(2):
        q, k, v, grad = (t.to(device, torch.bfloat16 if device == "cuda" else None).requires_grad_() for t in inputs)
        out = attention(q, k, v, is_causal=True)
        results.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad.detach())])
    return float(sum(int((a != b).sum()) for a, b in zip(*results, strict=True)))


def _checkpoint() -> str:
    """A checkpoint comes back as it was written, and a single changed bit in it is found."""
    import torch

    from epan.training import checkpoint as checkpoints

    tensors = {"weight": torch.arange(1000.0), "bias": torch.full((3,), math.pi, dtype=torch.bfloat16)}
    with tempfile.TemporaryDirectory() as place:
        # As little as a checkpoint may say of its run.
        state, facts = {"elapsed": 0.0}, {"config": {}, "model": {}, "config_hash": ""}
        path = checkpoints.save(Path(place), 1, model=tensors, optimizer=tensors, state=state, facts=facts, keep=1)
        found = checkpoints.load(path)
        for name, tensor in tensors.items():
            if not torch.equal(found.model[name], tensor) or not torch.equal(found.optimizer[name], tensor):
                raise RuntimeError(f"{name} came back with other values")
        file = path / checkpoints.MODEL
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(content)
        try:
            checkpoints.verify(path)
        except EpanError:
            return f"in {Path(place).parent}; a changed bit is found"
    raise RuntimeError("a changed bit was not found")


def _compiler() -> str:
    """The compilers that torch.compile needs are there. To carry one out would take longer than all the rest."""
    import torch

    names = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    there = next((name for name in names if name and shutil.which(name)), None)
    if there is None:
        raise Skipped("there is no C++ compiler, such as g++: runs with compile=true would fail")
    if torch.cuda.is_available():
        import triton

        return f"by Triton {triton.__version__} for the GPU, by {there} for the CPU"
    return f"by {there} for the CPU"


CHECKS = (
    Check("Epanechnikov weights are sparsemax", 1e-12, _epanechnikov),
    Check("order n solves the entmax equation", 1e-12, _entmax_equation),
    Check("weights add up to one", 1e-12, _sums),
    Check("order 1e6 is softmax", 1e-5, _high_order),
    Check("tiled backend agrees with eager", 1e-9, _backends),
    Check("triton backend agrees with eager on the GPU", 1e-4, _triton),
    Check("a step done twice gives the same bits", 0.0, _deterministic),
    Check("a checkpoint comes back whole", 0.0, _checkpoint),
    Check("torch.compile finds its compilers", 0.0, _compiler),
)
