"""``epan doctor``: what is installed, what it can do, and whether the mathematics comes out right here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

from epan._version import __version__
from epan.cli.output import cores
from epan.errors import LAB

__all__ = ["CHECKS", "GPU_CHECKS", "Check", "doctor"]

EXTRAS = {
    "lab": LAB,
    "dev": ("entmax", "hypothesis", "mypy", "pytest", "ruff"),
}
OLDEST, NEWEST = (3, 11), (3, 14)


@dataclass(frozen=True)
class Check:
    """A self-test: ``measure`` returns an error that must not exceed ``bound``."""

    name: str
    bound: float
    measure: Callable[[], float]


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


CHECKS = (
    Check("Epanechnikov weights are sparsemax", 1e-12, _epanechnikov),
    Check("order n solves the entmax equation", 1e-12, _entmax_equation),
    Check("weights add up to one", 1e-12, _sums),
    Check("order 1e6 is softmax", 1e-5, _high_order),
    Check("tiled backend agrees with eager", 1e-9, _backends),
)

# Only where there is a GPU that can run it.
GPU_CHECKS = (Check("triton backend agrees with eager on the GPU", 1e-4, _triton),)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment() -> bool:
    """Print versions and extras; whether Python fits."""
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    print(f"  epan      {__version__}")
    print(f"  python    {platform.python_version()}" + ("" if fits else f"  (supported: {span})"))
    print(f"  platform  {platform.platform()}, {cores()} CPU cores")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        fix = f'pip install ".[{extra}]" in a checkout of epan'
        print(f"  [{extra}]     " + (f"incomplete, no {', '.join(missing)}: {fix}" if missing else "installed"))
    triton = _version("triton")
    print(f"  triton    {triton or 'not installed (only needed on an NVIDIA GPU, with CUDA builds of torch)'}")
    return fits


def _device() -> tuple[bool, bool]:
    """Print what torch finds: whether torch is there, and whether a GPU runs the fused kernels."""
    try:
        import torch
    except Exception as error:
        print(f"  torch     cannot be imported ({type(error).__name__}: {error}): pip install torch")
        return False, False
    from epan.ops.attention import choose_backend

    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        device = f"cuda, {torch.cuda.get_device_name()}, compute capability {capability}"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = f"cpu, {torch.get_num_threads()} threads"
    print(f"  torch     {torch.__version__}")
    print(f"  device    {device}")
    taken = []
    for place in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        # What a call with the defaults would look like there.
        backend, reason = choose_backend(torch.empty((1, 1, 1, 64), device=place, dtype=torch.bfloat16))
        print(f'  backend   "auto" takes {backend} on {place}: {reason}')
        taken.append(backend)
    return True, "triton" in taken


def doctor() -> int:
    """Check this installation: versions, device, backends, extras, and self-tests of the mathematics.

    The exit code is 0 if everything passes and 1 if something fails.
    """
    print("Environment")
    good = _environment()
    there, fused = _device()
    if not there:
        return 1
    print("Self-tests")
    for check in (*CHECKS, *(GPU_CHECKS if fused else ())):
        try:
            error = check.measure()
            passed = error <= check.bound
            detail = f"error {error:.1e}, at most {check.bound:.0e}"
        except Exception as failure:
            passed, detail = False, f"{type(failure).__name__}: {failure}"
        good = good and passed
        print(f"  {'PASS' if passed else 'FAIL'}  {check.name} ({detail})")
    print("Everything is in order." if good else "Something is wrong; see above.")
    return 0 if good else 1
