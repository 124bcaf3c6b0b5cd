"""The leaky average k_T = x_T + e^{−λ_T} k_{T−1} as a scan of linear cost, for constant and for per-step rates."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._modes import is_exported, is_transformed
from ..errors import EpanError
from ..ops.triton.support import machine_obstacle
from ._unit import unit_norm
from .heads import PerHead

__all__ = ["GatedLeakyAverage", "LeakyAverage", "leaky_average", "unit_leaky_average"]

# Within a chunk a triangular matrix acts; between chunks the same scan runs on the chunks' last states.
# Measured on one CPU core, forward and backward: some 16 steps are fastest from 64 to 4,096, one matrix up to 48.
_CHUNK = 16
_DIRECT = 48
# What the GPU kernel takes; float64 stays with plain torch.
_FUSED = (torch.float32, torch.float16, torch.bfloat16)


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None) -> Tensor:
    r""":math:`k_T = x_T + e^{-\lambda_T} k_{T-1}` along the second-to-last dimension.

    The cost is linear in the length and no T×T matrix exists: chunks of fixed size are summed with a small triangular
    matrix of powers :math:`e^{-\lambda (i-j)} \le 1`, and the chunks' last states are averaged by the same function at
    rate λ·chunk. Nothing is ever divided by a decay, so tiny and huge rates are safe at any length. Differentiable to any
    order in ``x``, ``rate`` and ``state``. On an NVIDIA GPU with Triton one fused kernel does it, except in float64, under
    functorch transforms and in an export, where it is plain torch as elsewhere.

    Parameters
    ----------
    x: (B, H, T, D), floating point. 16-bit inputs are averaged in float32.
    rate: λ ≥ 0, shape (H,) for one rate per head, or (B, H, T) for one per step.
    state: (B, H, D), the average before the first step (k_{−1}), or None for zero.

    Returns
    -------
    (B, H, T, D) in the dtype of ``x``; ``result[:, :, -1]`` is the state after the last step.

    Raises
    ------
    EpanError: for shapes that do not fit.

    Source: Zhang et al. 2405.06394 (constant rate), 2507.03285 (rate per step).
    """
    _check(x, rate, state)
    if x.shape[2] == 0:
        return x
    if _is_fused(x, rate, state):
        # Triton is imported only when it is used.
        from ..ops.triton import leaky

        return leaky.leaky_average(x, rate, state)[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    with _full_precision(x):
        x_full, rate_full = x.to(dtype), rate.to(dtype)
        state_full = None if state is None else state.to(dtype)
        if rate.dim() == 1:
            out = _scan_constant(x_full, rate_full, state_full)
        else:
            out = _scan_stepwise(x_full, rate_full, state_full)
    return out.to(x.dtype)


def unit_leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The leaky average made unit vectors, :math:`k_T/\|k_T\|`, and the average itself after the last step.

    One pass on an NVIDIA GPU; see :func:`leaky_average` for the arguments, and :func:`~epan.nn._unit.unit_norm`.

    Returns
    -------
    (B, H, T, D) in the dtype of ``x``, and (B, H, D) in at least float32.
    """
    _check(x, rate, state)
    full = torch.promote_types(x.dtype, torch.float32)
    if x.shape[2] == 0:
        return x, x.new_zeros((*x.shape[:2], x.shape[3]), dtype=full) if state is None else state
    if _is_fused(x, rate, state):
        from ..ops.triton import leaky

        if x.shape[-1] <= leaky.LARGEST_UNIT:
            return leaky.leaky_average(x, rate, state, unit=True)
    mean = leaky_average(x.to(full), rate, state)
    return unit_norm(mean).to(x.dtype), mean[:, :, -1]


def _is_fused(*tensors: Tensor | None) -> bool:
    """Whether the GPU kernel takes these tensors, and nothing is active to which it is opaque."""
    there = [tensor for tensor in tensors if tensor is not None]
    if machine_obstacle(there[0].device) is not None or any(tensor.dtype not in _FUSED for tensor in there):
        return False
    if torch.compiler.is_compiling():
        return not is_exported()
    return not is_transformed()


def _check(x: Tensor, rate: Tensor, state: Tensor | None) -> None:
    if x.dim() != 4:
        raise EpanError("leaky_average takes x of shape (B, H, T, D)", found=f"shape {tuple(x.shape)}")
    b, h, t, d = x.shape
    if tuple(rate.shape) not in ((h,), (b, h, t)):
        raise EpanError(
            "The rate of leaky_average has the wrong shape",
            found=f"rate {tuple(rate.shape)} with x {tuple(x.shape)}",
            allowed=f"({h},) for a rate per head or ({b}, {h}, {t}) for a rate per step",
        )
    if state is not None and tuple(state.shape) != (b, h, d):
        raise EpanError(
            "The state of leaky_average has the wrong shape",
            found=f"state {tuple(state.shape)} with x {tuple(x.shape)}",
            allowed=f"({b}, {h}, {d})",
        )


def _full_precision(x: Tensor) -> contextlib.AbstractContextManager[None]:
    # Autocast would run the matrix products in 16 bits, and an average over thousands of steps loses its small terms.
    device = x.device.type
    if (device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _scan_constant(x: Tensor, rate: Tensor, state: Tensor | None) -> Tensor:
    """The scan at one rate per head: one matrix product per head, its columns the chunks of all sequences."""
    b, h, t, d = x.shape
    size = _chunk_size(t, _DIRECT)
    chunks = -(-t // size)
    x = _padded(x, chunks * size)
    step = torch.arange(size, device=x.device)
    lag = step[:, None] - step
    # The lag is clamped first so that the upper triangle cannot overflow, not even in the branch that is thrown away.
    powers = torch.where(lag >= 0, torch.exp(-rate[:, None, None] * lag.clamp(min=0)), 0.0)
    columns = x.reshape(b, h, chunks, size, d).permute(1, 3, 0, 2, 4).reshape(h, size, b * chunks * d)
    y = torch.bmm(powers, columns)
    ends = y[:, -1].view(h, b, chunks, d).transpose(0, 1)
    before = _states_before(ends, rate * size, state)
    if before is not None:
        decay = torch.exp(-rate[:, None] * (step + 1))
        y = torch.baddbmm(y, decay[:, :, None], before.transpose(0, 1).reshape(h, 1, b * chunks * d))
    y = y.view(h, size, b, chunks, d).permute(2, 0, 3, 1, 4).reshape(b, h, chunks * size, d)
    return y if chunks * size == t else y[:, :, :t]


def _scan_stepwise(x: Tensor, rate: Tensor, state: Tensor | None) -> Tensor:
    """The scan at one rate per step: a triangular matrix per chunk."""
    b, h, t, d = x.shape
    size = _chunk_size(t, _CHUNK)
    chunks = -(-t // size)
    x = _padded(x, chunks * size).reshape(b, h, chunks, size, d)
    rate = F.pad(rate, (0, chunks * size - t)).reshape(b, h, chunks, size)
    step = torch.arange(size, device=x.device)
    # Sums of the rates between two steps, not differences of running totals: no cancellation after large rates.
    between = torch.where(step[:, None] > step, rate[..., :, None], 0.0).cumsum(-2)
    powers = torch.where(step[:, None] >= step, torch.exp(-between), 0.0)
    y = powers @ x
    total = rate.cumsum(-1)
    before = _states_before(y[:, :, :, -1], total[..., -1], state)
    if before is not None:
        y = y + torch.exp(-total)[..., None] * before[:, :, :, None]
    y = y.reshape(b, h, chunks * size, d)
    return y if chunks * size == t else y[:, :, :t]


def _states_before(ends: Tensor, rate: Tensor, state: Tensor | None) -> Tensor | None:
    """The state before each chunk, (B, H, chunks, D), from the chunks' own ends: the same recurrence, one level up."""
    if ends.shape[2] == 1:
        return None if state is None else state[:, :, None]
    scan = _scan_constant if rate.dim() == 1 else _scan_stepwise
    carry = scan(ends[:, :, :-1], rate if rate.dim() == 1 else rate[..., :-1], state)
    first = torch.zeros_like(carry[:, :, :1]) if state is None else state[:, :, None]
    return torch.cat([first, carry], dim=2)


def _chunk_size(t: int, direct: int) -> int:
    """Steps per chunk: all of them up to ``direct``, else the size near _CHUNK that pads least."""
    if t <= direct:
        return t
    best = _CHUNK
    for size in range(3 * _CHUNK // 2, 3 * _CHUNK // 4 - 1, -1):
        if -t % size < -t % best:
            best = size
    return best


def _padded(x: Tensor, length: int) -> Tensor:
    return F.pad(x, (0, 0, 0, length - x.shape[2])) if length > x.shape[2] else x


class LeakyAverage(PerHead, nn.Module):
    r"""Leaky average with one learnt rate per head, :math:`\lambda_h = |10\, p_h|`.

    Parameters
    ----------
    heads: number of heads H; ``leak`` (p) is initialised to linspace(0.5, 5, H)/10.

    Shapes: x (B, H, T, D) and an optional state (B, H, D) give (B, H, T, D); see :func:`leaky_average`.

    Source: Zhang et al. 2405.06394.
    """

    per_head = ("leak",)
    per_head_output = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.linspace(0.5, 5.0, heads) / 10)

    @property
    def rate(self) -> Tensor:
        """λ per head, (H,)."""
        return (10 * self.leak).abs()

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        return leaky_average(x, self.rate, state)


class GatedLeakyAverage(nn.Module):
    r"""Leaky average whose gate and rate depend on the input: :math:`k_T = g_T \tilde k_T + \lambda_T k_{T-1}`.

    :math:`g_T = e^{W_g x_T}` and :math:`\lambda_T = e^{-|W_\lambda x_T|}`, one scalar per head and step.

    Parameters
    ----------
    width: size of the input x from which gate and rate are read.
    heads: number of heads H.

    Shapes: keys (B, H, T, D), inputs (B, T, width), state (B, H, D) or None give (B, H, T, D).

    Source: Zhang & Bottou 2507.03285.
    """

    # Keys are made unit vectors afterwards, so only ratios of gates count; the bound keeps squares finite in float32.
    LARGEST_LOG_GATE = 30.0

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, heads, bias=False)
        self.decay = nn.Linear(width, heads, bias=False)

    def drive(self, keys: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        r"""What is averaged, :math:`g_T \tilde k_T`, and the rate of each step, :math:`|W_\lambda x_T|`."""
        dtype = torch.promote_types(keys.dtype, torch.float32)
        log_gate = self.gate(inputs).to(dtype).clamp(-self.LARGEST_LOG_GATE, self.LARGEST_LOG_GATE)
        rate = self.decay(inputs).to(dtype).abs().transpose(1, 2)
        return keys.to(dtype) * torch.exp(log_gate).transpose(1, 2)[..., None], rate

    def forward(self, keys: Tensor, inputs: Tensor, state: Tensor | None = None) -> Tensor:
        gated, rate = self.drive(keys, inputs)
        return leaky_average(gated, rate, state)
