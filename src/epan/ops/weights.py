"""Attention weights from scores: the generalised entmax."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import as_integer, check_floats, fits, on_device
from ..errors import EpanError
from ..kernels import Kernel, Polynomial
from ..kernels import get as get_kernel
from ..masks import split_mask
from ..normalizations import Normalization
from ..normalizations import get as get_normalization
from ..normalizations.base import where_allowed

__all__ = ["attention_weights"]


def attention_weights(
    scores: Tensor,
    *,
    kernel: str | Kernel = "biweight",
    normalization: str | Normalization = "adaptive",
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Weights w ≥ 0 with Σw = 1 along ``dim``, from scores z: softmax, entmax of any order, ReLUmax, NormReLU, top-k.

    Parameters
    ----------
    scores: floating-point tensor of any shape. For ``normalization="fixed"`` they are relative to distance zero,
        :math:`z = -\beta d^2/2`.
    kernel: a name ("gaussian", "epanechnikov", "biweight", "triweight", "uniform", "cosine") or an ``epan.Kernel``. A
        tensor order of ``epan.Polynomial`` broadcasts to the scores, with size 1 along ``dim``.
    normalization: "adaptive", "anchored", "fixed" or an object such as ``epan.Nearest(k=16)``.
    mask: boolean (True = takes part) or floating point (added; −inf = masked), broadcastable to the scores.
    dim: the dimension of the keys.

    Returns
    -------
    Weights of the shape and dtype of ``scores``, computed in at least float32. A masked key has weight exactly 0, a
    fully masked row is all 0. Differentiable twice, in forward mode, and under vmap.

    Raises
    ------
    EpanError: for an unknown name, a wrong dtype, shape or dimension.
    UnsupportedError: for a combination without meaning, with reason and fix.

    Examples
    --------
    >>> epan.attention_weights(torch.tensor([1.0, 0.5, -3.0]), kernel="epanechnikov")  # sparsemax
    tensor([0.7500, 0.2500, 0.0000])

    Source: Santos et al. 2601.22766; Peters et al. 1905.05702.
    """
    kernel, normalization = get_kernel(kernel), get_normalization(normalization)
    normalization.check(kernel, None)
    if not isinstance(scores, Tensor):
        raise EpanError(
            "scores must be a floating-point tensor",
            found=type(scores).__name__,
            fix="use torch.as_tensor(scores).float()",
        )
    check_floats(scores, "scores")
    dim = _check_dim(dim, scores)
    kernel = _check_order(kernel, scores, dim)
    dtype = scores.dtype
    z = scores.to(torch.promote_types(dtype, torch.float32))
    allowed = None
    if mask is not None:
        if type(mask).__name__ == "CausalBias":
            raise EpanError(
                "mask of attention_weights must be a tensor",
                found="a causal bias",
                fix="pass torch.ones(L, L).tril().bool()",
            )
        mask = split_mask(mask, 0, 0)[0]
        assert mask is not None
        mask = on_device(mask, "mask", scores, "scores")
        if not fits(mask, scores.shape):
            raise EpanError(
                "mask does not broadcast to the scores", found=f"{tuple(mask.shape)} against {tuple(scores.shape)}"
            )
        if mask.dtype == torch.bool:
            allowed = mask
        else:
            allowed = mask != float("-inf")
            z = z + torch.where(allowed, mask, 0.0).to(z.dtype)
        allowed = allowed.expand(scores.shape).movedim(dim, -1)
    weights, _ = normalization.weights(z.movedim(dim, -1), allowed, kernel)
    # A NaN score makes every weight of its row NaN, but not those of masked keys.
    weights = where_allowed(weights, allowed)
    return weights.movedim(-1, dim).to(dtype)


def _check_dim(dim: int, scores: Tensor) -> int:
    """``dim``, counted from the front."""
    number = as_integer(dim)
    if number is None:
        raise EpanError("dim must be an integer", found=repr(dim), allowed=f"a dimension of {tuple(scores.shape)}")
    if not -scores.dim() <= number < scores.dim():
        raise EpanError(f"dim={dim} is not a dimension of the scores", found=f"shape {tuple(scores.shape)}")
    return number % scores.dim()


def _check_order(kernel: Kernel, scores: Tensor, dim: int) -> Kernel:
    """The kernel with a tensor order laid out like the scores once their keys are the last dimension."""
    order = kernel.order
    if not isinstance(order, Tensor):
        return kernel
    check_floats(order, "order")
    order = on_device(order, "order", scores, "scores")
    rows = [*scores.shape[:dim], 1, *scores.shape[dim + 1 :]]
    if not fits(order, rows):
        raise EpanError(
            "The order of the kernel does not broadcast to one number per row of scores",
            found=f"shape {tuple(order.shape)}",
            allowed=f"broadcastable to {tuple(rows)}",
        )
    if order.dim() > 0 and dim != scores.dim() - 1:
        order = order.reshape(*[1] * (scores.dim() - order.dim()), *order.shape).movedim(dim, -1)
    return Polynomial(order) if isinstance(kernel, Polynomial) and order is not kernel.order else kernel
