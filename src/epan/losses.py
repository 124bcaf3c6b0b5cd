r"""Fenchel–Young losses: for each kernel, the loss whose output distribution is that kernel's adaptive weights.

Let p = [z/n − τ]₊ⁿ be the adaptive weights of the scores z (α-entmax, α = 1 + 1/n), and H_n the Tsallis entropy
n²/(n+1) · (1 − Σ p^(1+1/n)). The loss of the target distribution y is

    L(z, y) = H_n(p) − H_n(y) + ⟨p − y, z⟩ ≥ 0,        ∂L/∂z = p − y.

It is convex in z, and zero exactly where p = y: for a single target class if its score leads every other one by the margin n.
Order 1 (Epanechnikov) is the sparsemax loss, order 2 (biweight) the 1.5-entmax loss, and n → ∞ (Gaussian) the
cross-entropy, which has no margin.

Source: Blondel, Martins & Niculae 1901.02324; Peters et al. 1905.05702; Martins & Astudillo 1602.02068.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._checks import as_integer, check_floats, fits, on_device
from ._intern import lookup
from ._modes import is_traced, is_transformed
from .errors import EpanError, UnsupportedError, unknown_name
from .kernels import Kernel, Polynomial
from .kernels import get as get_kernel
from .kernels import names as kernel_names
from .normalizations import Adaptive
from .normalizations._threshold import level_is_log
from .normalizations.base import Rows, usable_maximum
from .ops import attention_weights

__all__ = ["FenchelYoungLoss", "fenchel_young_loss", "output_kernel"]

REDUCTIONS = ("mean", "sum", "none")
# Rows are worked on in pieces of about this many scores, so that float32 copies of a large vocabulary stay small.
CHUNK_ELEMENTS = 1 << 22
NAMES = ("gaussian", "epanechnikov", "biweight", "triweight")
_HINTS = {
    "cross-entropy": "the cross-entropy is the loss of the kernel 'gaussian'",
    "cross_entropy": "the cross-entropy is the loss of the kernel 'gaussian'",
    "softmax": "the loss of softmax, cross-entropy, is that of the kernel 'gaussian'",
    "sparsemax": "the sparsemax loss is that of the kernel 'epanechnikov'",
    "entmax15": "the 1.5-entmax loss is that of the kernel 'biweight'",
    "entmax": "the alpha-entmax loss is that of a polynomial of order 1/(alpha - 1)",
    "tsallis": "the Tsallis loss of exponent alpha is that of a polynomial of order 1/(alpha - 1)",
    "polynomial": "a polynomial needs its order, such as polynomial:order=5 or epan.Polynomial(order=5)",
}

KernelSpec = str | Mapping[str, object] | Kernel


def output_kernel(spec: KernelSpec, kind: str = "loss") -> Kernel:
    """The kernel that ``spec`` stands for, if there is a loss for it; ``kind`` is what the message calls it.

    Raises
    ------
    EpanError: an unknown name. UnsupportedError: a kernel without adaptive weights.
    """
    if isinstance(spec, str) and spec not in kernel_names():
        raise unknown_name(kind, spec, NAMES, _HINTS)
    kernel = get_kernel(spec)
    try:
        Adaptive().check(kernel, None)
    except UnsupportedError as error:
        fix = f"take one of {', '.join(NAMES)}, or a polynomial of any order"
        raise UnsupportedError(f"A {kind} of the kernel {kernel.name!r}", "it has no adaptive weights", fix) from error
    return kernel


def fenchel_young_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kernel: KernelSpec = "biweight",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    r"""The Fenchel–Young loss of ``target`` under the adaptive weights of ``logits``, by the formula of this module.

    Parameters
    ----------
    logits: (..., V) floating point, classes last. A class of score −inf has probability 0 and takes no part.
    target: (...) integers, the classes; or (..., V) floating point, distributions over the classes.
    kernel: a name, mapping or object: "epanechnikov" (sparsemax), "biweight" (1.5-entmax), "triweight" (4/3-entmax),
        ``epan.Polynomial(order=n)`` of any real n ≥ 1 (α = 1 + 1/n), "gaussian" (cross-entropy; with target distributions
        the Kullback–Leibler divergence, which is zero at its minimum). A tensor order broadcasts to (..., 1) and may be learnt.
    weight: (V,), a factor for the loss of each target class; for integer targets.
    ignore_index: rows of this class have loss and gradient 0, whatever their logits, and do not count for the mean.
    reduction: "mean" over the rows (divided by the weights of their targets, if given; NaN without any row), "sum", or
        "none" for one loss per row.

    Returns
    -------
    The loss, in at least float32: a 0-d tensor, or (...). +inf where the target has score −inf.

    Only one number of each row is kept for the backward pass besides ``logits``, and the gradient, p − y, is made in their
    dtype; nothing else of their size lives, forward or backward. Differentiable twice, in ``logits`` and in a tensor order.
    Nothing waits for a GPU, so that the loss may be part of a CUDA graph.

    Raises
    ------
    EpanError: wrong shapes, dtypes or names; on a CPU also a class out of range and a target that is no distribution.
    UnsupportedError: a kernel without adaptive weights.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.5, 0.0], [0.2, 0.1, 0.0]])
    >>> epan.losses.fenchel_young_loss(logits, torch.tensor([0, 0]), kernel="epanechnikov", reduction="none")
    tensor([0.0000, 0.2433])
    """
    chosen = output_kernel(kernel)
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    skipped = as_integer(ignore_index)
    if skipped is None:
        raise EpanError("ignore_index must be an integer", found=repr(ignore_index))
    z, y = _check(logits, target, skipped)
    order = chosen.order
    if isinstance(order, Tensor):
        order = _rows_of(order, logits)
    if is_transformed():
        # Transforms see plain operations only.
        losses = _definition(z, y, Polynomial(order) if isinstance(order, Tensor) else chosen)
    else:
        losses = _loss(z, y, order if isinstance(order, Tensor) else None, chosen.handle)[0]
    counted = (y >= 0).to(losses.dtype) if y.dim() == 1 else torch.ones_like(losses)
    if weight is not None:
        factor = _weight(weight, z, y).to(losses.dtype)
        # A factor of 0 leaves a class out, also where its loss is infinite.
        losses = torch.where(factor == 0, 0.0, losses * factor)
        counted = counted * factor
    if reduction == "none":
        return losses.reshape(logits.shape[:-1])
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum()


class FenchelYoungLoss(nn.Module):
    """:func:`fenchel_young_loss` as a module; its arguments are those of the function."""

    weight: Tensor | None

    def __init__(
        self,
        kernel: KernelSpec = "biweight",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.kernel = output_kernel(kernel)
        if reduction not in REDUCTIONS:
            raise unknown_name("reduction", reduction, REDUCTIONS)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return fenchel_young_loss(
            logits,
            target,
            kernel=self.kernel,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,  # type: ignore[arg-type]
        )

    def extra_repr(self) -> str:
        return f"{self.kernel!r}, reduction={self.reduction!r}"


# ---------------------------------------------------------------------- arguments


def _check(logits: Tensor, target: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Logits (N, V); and targets (N,), −1 where they do not count, or (N, V)."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise EpanError(f"{name} must be a tensor", found=type(value).__name__)
    check_floats(logits, "logits")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise EpanError("logits need classes in their last dimension", found=f"shape {tuple(logits.shape)}")
    target = on_device(target, "target", logits, "logits")
    z, classes = logits.reshape(-1, logits.shape[-1]), logits.shape[-1]
    seen = not is_traced() and logits.device.type == "cpu"
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise EpanError(
                "A target of floating point holds a distribution for each row of logits",
                found=f"target {tuple(target.shape)}, logits {tuple(logits.shape)}",
                allowed="the same shape, or integers without the last dimension",
            )
        y = target.detach().reshape(-1, classes)
        if seen and y.numel():
            total = y.to(torch.promote_types(y.dtype, torch.float32)).sum(-1)
            if not bool((y >= 0).all()) or float((total - 1).abs().max()) > 1e-2:
                raise EpanError(
                    "A row of the target is no distribution",
                    found=f"smallest entry {float(y.min()):.4g}, sums {float(total.min()):.4g} to {float(total.max()):.4g}",
                    allowed="entries of at least 0 that sum to 1",
                )
        return z, y
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise EpanError("target must hold integers or distributions", found=str(target.dtype))
    if target.shape != logits.shape[:-1]:
        raise EpanError(
            "target must have the shape of logits without the classes, which come last",
            found=f"target {tuple(target.shape)}, logits {tuple(logits.shape)}",
            allowed=f"{tuple(logits.shape[:-1])}",
        )
    flat = target.reshape(-1).long()
    counts = flat != ignored
    if seen and flat.numel():
        wrong = flat[counts & ((flat < 0) | (flat >= classes))]
        if wrong.numel():
            raise EpanError(
                "A target is no class", found=int(wrong[0]), allowed=f"0 to {classes - 1}, or {ignored} (ignored)"
            )
    return z, torch.where(counts, flat, -1)


def _rows_of(order: Tensor, logits: Tensor) -> Tensor:
    """A tensor order as (N, 1), one for each row."""
    check_floats(order, "order")
    order = on_device(order, "order", logits, "logits")
    rows = (*logits.shape[:-1], 1)
    if not fits(order, rows):
        raise EpanError(
            "The order of the kernel does not broadcast to one number per row of logits",
            found=f"shape {tuple(order.shape)}",
            allowed=f"broadcastable to {rows}",
        )
    return order.expand(rows).reshape(-1, 1)


def _weight(weight: Tensor, z: Tensor, y: Tensor) -> Tensor:
    if y.dim() == 2:
        raise EpanError("weight belongs to integer targets", fix="multiply the losses of reduction='none'")
    check_floats(weight, "weight")
    weight = on_device(weight, "weight", z, "logits")
    if weight.shape != z.shape[1:]:
        raise EpanError(
            "weight needs one number per class", found=f"shape {tuple(weight.shape)}", allowed=f"({z.shape[1]},)"
        )
    return torch.where(y >= 0, weight.detach()[y.clamp(min=0)], 0.0)


# ---------------------------------------------------------------------- mathematics


def _deficit(p: Tensor, n: float | Tensor) -> Tensor:
    """n Σ p (1 − p^(1/n)) along the last dimension; times n/(n+1) it is the Tsallis entropy, Shannon's for n = ∞."""
    if not isinstance(n, Tensor):
        if math.isinf(n):
            return -torch.special.xlogy(p, p).sum(-1)
        if n == 1.0:
            return (p - p * p).sum(-1)
        if n == 2.0:
            return 2.0 * (p - p * p.sqrt()).sum(-1)
    # At p = 0 the logarithm is −inf and the term 0 · n.
    return (p * (-n * torch.expm1(p.log() / n))).sum(-1)


def _powers(p: Tensor, n: float | Tensor) -> Tensor:
    """Σ p^(1+1/n) along the last dimension."""
    if isinstance(n, Tensor):
        return (p * (p.log() / n).exp()).sum(-1)
    if n in (1.0, 2.0):
        return (p * (p if n == 1.0 else p.sqrt())).sum(-1)
    return p.pow(1.0 + 1.0 / n).sum(-1)


def _class_loss(p: Tensor, target: Tensor, gap: Tensor, n: float | Tensor) -> Tensor:
    """The losses (R,) of classes ``target`` (R,), from ``gap`` = s − x_y = n(1 − b_y); overwrites ``p``.

    n/(n+1) · ([b_y]₊^(n+1) − 1 + (n+1)(1 − b_y) + Σ_{j≠y} p_j b_j), a sum of two terms that are at least zero, so that a
    small loss has its digits.
    """
    if not isinstance(n, Tensor) and math.isinf(n):
        return gap
    order = n.squeeze(-1) if isinstance(n, Tensor) else n
    distance = gap / order
    below = ((order + 1.0) * torch.log1p(-distance.clamp(max=1.0))).expm1() + (order + 1.0) * distance
    others = _powers(p.masked_fill_(_is_target(target, p), 0.0), n)
    return (below.clamp(min=0.0) + others) * (order / (order + 1.0))


def _entropy(p: Tensor, n: float | Tensor) -> Tensor:
    if not isinstance(n, Tensor):
        return _deficit(p, n) * (1.0 if math.isinf(n) else n / (n + 1.0))
    return _deficit(p, n) * (n / (n + 1.0)).squeeze(-1)


def _excess(p: Tensor, n: float | Tensor) -> Tensor | float:
    """n Σ p (1 − b)/(n+1), which the Gaussian lacks."""
    if isinstance(n, Tensor):
        return _deficit(p, n) / (n.squeeze(-1) + 1.0)
    return 0.0 if math.isinf(n) else _deficit(p, n) / (n + 1.0)


def _entropy_slope(p: Tensor, n: Tensor) -> Tensor:
    """∂H_n(p)/∂n = n(n+2)/(n+1)² Σ p(1 − b) + Σ p b ln p / (n+1), with b = p^(1/n)."""
    log = torch.where(p > 0, p, 1.0).log()
    b = torch.where(p > 0, (log / n).exp(), 0.0)
    first = (p * -torch.expm1(log / n)).sum(-1)
    second = (p * b * log).sum(-1)
    m = n.squeeze(-1)
    return m * (m + 2.0) / (m + 1.0) ** 2 * first + second / (m + 1.0)


def _one_hot(y: Tensor, z: Tensor) -> Tensor:
    if y.dim() == 2:
        return y.to(z.dtype)
    return _is_target(y, z).to(z.dtype)


def _is_target(y: Tensor, z: Tensor) -> Tensor:
    """Where the class of each row is, (N, V) bool: no class of a row that does not count."""
    return torch.arange(z.shape[1], device=z.device) == y[:, None]


def _definition(z: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The losses (N,) in plain torch, by the formula alone; differentiable as often as the weights are."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # A derivative of the entropy at p = 0 would be infinite, times a derivative of p that is zero.
    p, target = attention_weights(z, kernel=kernel), _one_hot(y, z)
    inside = p > 0
    safe = torch.where(inside, p, 1.0)
    n = kernel.order
    assert n is not None
    top = torch.where(z == -math.inf, 0.0, z)
    losses = _entropy(safe, n) - _entropy(target, n) + ((torch.where(inside, p, 0.0) - target) * top).sum(-1)
    losses = torch.where(((target > 0) & (z == -math.inf)).any(-1), math.inf, losses)
    return losses if y.dim() == 2 else torch.where(y >= 0, losses, 0.0)


def _pieces(z: Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // z.shape[1])
    return [slice(first, min(first + rows, z.shape[0])) for first in range(0, z.shape[0], rows)]


def _kernel(order: Tensor | None, handle: int, rows: slice) -> Kernel:
    if order is not None:
        return Polynomial(order[rows])
    kernel = lookup(handle)
    assert isinstance(kernel, Kernel)
    return kernel


@torch.library.custom_op("epan::fenchel_young", mutates_args=())
def _loss(z: Tensor, y: Tensor, order: Tensor | None, handle: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), row states (3, N, 1) of maximum, level and divisor, and ∂L/∂order (N,), or (0,) without.

    With x = z − max z, b = p^(1/n) and s = n(1 − max b), where b_j = 1 − (s − x_j)/n on the support, a row's loss of y is
    s − ⟨y, x⟩ − n Σ p (1 − b)/(n+1) − H_n(y).
    """
    full = torch.promote_types(z.dtype, torch.float32)
    losses = z.new_empty(z.shape[0], dtype=full)
    states = z.new_empty((3, z.shape[0], 1), dtype=full)
    slopes = z.new_empty(0 if order is None else z.shape[0], dtype=full)
    for rows in _pieces(z):
        kernel = _kernel(order, handle, rows)
        n, target = kernel.order, y[rows]
        x = z[rows].to(full, copy=True)
        maximum = usable_maximum(x)
        x -= maximum
        if target.dim() == 1:
            inner = x.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
        else:
            target = target.to(full)
            inner = torch.where(target > 0, target * x, 0.0).sum(-1)
        p, state, _ = Adaptive().solve(x, None, kernel, with_stats=False)
        assert n is not None
        if isinstance(n, Tensor):
            n = n.to(full)
            slopes[rows] = _entropy_slope(p, n) - (_entropy_slope(target, n) if target.dim() == 2 else 0.0)
        gap = _shift(state, kernel) - inner
        if target.dim() == 1:
            losses[rows] = torch.where(target >= 0, _class_loss(p, target, gap, n), 0.0)
        else:
            losses[rows] = (gap - _excess(p, n) - _entropy(target, n)).clamp_(min=0.0)
        for place, value in enumerate((maximum, state.level, state.divisor)):
            states[place, rows] = value
    return losses, states, slopes


def _shift(state: Rows, kernel: Kernel) -> Tensor:
    """s = n(1 − max p^(1/n)) of each row, from the level or, for the Gaussian, the sum."""
    order = kernel.order
    assert order is not None
    if not isinstance(order, Tensor) and math.isinf(order):
        return state.divisor.log().squeeze(-1)
    if level_is_log(order):
        return state.level.squeeze(-1)
    return (order * (1.0 - state.level)).squeeze(-1)


@_loss.register_fake
def _(z: Tensor, y: Tensor, order: Tensor | None, handle: int) -> tuple[Tensor, Tensor, Tensor]:
    full = torch.promote_types(z.dtype, torch.float32)
    number = z.shape[0]
    return (
        z.new_empty(number, dtype=full),
        z.new_empty((3, number, 1), dtype=full),
        z.new_empty(0 if order is None else number, dtype=full),
    )


@torch.library.custom_op("epan::fenchel_young_backward", mutates_args=())
def _gradient(grad: Tensor, z: Tensor, y: Tensor, states: Tensor, order: Tensor | None, handle: int) -> Tensor:
    """grad · (p − y) in the dtype of z, from the row states."""
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    for rows in _pieces(z):
        maximum, level, divisor = states[:, rows].unbind()
        x = z[rows].to(states.dtype, copy=True).sub_(maximum)
        state = Rows(torch.zeros_like(maximum), level, divisor)
        p = Adaptive().apply(x, None, _kernel(order, handle, rows), state)
        target, factor = y[rows], grad[rows, None]
        if target.dim() == 2:
            out[rows] = p.sub_(target).mul_(factor)
            continue
        p = torch.where(_is_target(target, p), p - 1.0, p)
        # Not a product with 0, which would let a NaN through.
        out[rows] = p.mul_(factor).masked_fill_((target < 0)[:, None], 0.0)
    return out


@_gradient.register_fake
def _(grad: Tensor, z: Tensor, y: Tensor, states: Tensor, order: Tensor | None, handle: int) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, y, order, ctx.handle = inputs
    _, states, slopes = output
    ctx.mark_non_differentiable(states, slopes)
    ctx.save_for_backward(z, y, order, states, slopes)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    z, y, order, states, slopes = ctx.saved_tensors
    by_score = by_order = None
    if torch.is_grad_enabled() and not is_traced():
        # A second derivative is wanted: the weights in plain torch, which are differentiable.
        kernel = lookup(ctx.handle) if order is None else Polynomial(order)
        assert isinstance(kernel, Kernel)
        full = z.to(states.dtype)
        p = attention_weights(full, kernel=kernel)
        by_score = (grad[:, None] * (p - _one_hot(y, full))).to(z.dtype)
        if y.dim() == 1:
            by_score = torch.where((y >= 0)[:, None], by_score, 0.0)
        if order is not None:
            slope = _entropy_slope(p, order.to(p.dtype))
            slope = slope - _entropy_slope(y.to(p.dtype), order.to(p.dtype)) if y.dim() == 2 else slope
            by_order = grad * slope
    else:
        if ctx.needs_input_grad[0]:
            by_score = _gradient(grad, z, y, states, order, ctx.handle)
        if order is not None:
            by_order = grad * slopes
    if by_order is not None:
        counted = torch.where(y >= 0, by_order, 0.0) if y.dim() == 1 else by_order
        by_order = counted[:, None].to(order.dtype)
    return by_score, None, by_order, None


_loss.register_autograd(_backward, setup_context=_setup)
