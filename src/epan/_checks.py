"""Checks of single arguments, the same wherever a number or a tensor is taken."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import EpanError

__all__ = ["FLOATS", "as_integer", "as_real", "check_flag", "check_floats", "check_strided", "fits", "on_device"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_NAMES = "float16, bfloat16, float32 or float64"


def as_integer(value: object) -> int | None:
    """The integer that ``value`` is, also of NumPy or symbolic, or None; a truth value is no integer here."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    return operator.index(value) if isinstance(value, numbers.Integral) else None


def as_real(value: object) -> float | None:
    """The real number that ``value`` is, also of NumPy or symbolic, or None; infinite for an integer beyond any float."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (float, torch.SymInt, torch.SymFloat)):
        return value  # type: ignore[return-value]
    if isinstance(value, (int, numbers.Real)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def check_flag(value: object, name: str) -> None:
    """Refuses what is only truthy: a misplaced argument would pass as True."""
    if not isinstance(value, (bool, torch.SymBool)):
        raise EpanError(f"{name} must be a truth value", found=repr(value), allowed="True or False")


def check_strided(tensor: Tensor, name: str) -> None:
    """Refuses sparse and nested tensors."""
    if tensor.is_nested:
        raise EpanError(
            f"{name} must be a dense tensor",
            found="a nested tensor",
            fix=f"use torch.nested.to_padded_tensor({name}, 0.0), or epan.attention_varlen for packed sequences",
        )
    if tensor.layout != torch.strided:
        raise EpanError(f"{name} must be a dense tensor", found=str(tensor.layout), fix=f"use {name}.to_dense()")


def check_floats(tensor: Tensor, name: str) -> None:
    """Refuses sparse and nested tensors, integers, complex numbers and floats too small to compute with."""
    check_strided(tensor, name)
    if tensor.dtype not in FLOATS:
        raise EpanError(
            f"{name} must be a floating-point tensor",
            found=str(tensor.dtype),
            allowed=_FLOAT_NAMES,
            fix=f"use {name}.float()",
        )


def on_device(tensor: Tensor, name: str, like: Tensor, like_name: str = "query") -> Tensor:
    """``tensor`` where ``like`` is; as everywhere in torch, only a CPU tensor without dimensions may come from elsewhere."""
    if tensor.device == like.device:
        return tensor
    if tensor.dim() == 0 and tensor.device.type == "cpu":
        return tensor.to(like.device)
    raise EpanError(
        f"{name} is on another device than {like_name}",
        found=f"{name} on {tensor.device}, {like_name} on {like.device}",
        fix=f"use {name}.to({like_name}.device)",
    )


def fits(tensor: Tensor, shape: Sequence[int]) -> bool:
    """True if ``tensor`` broadcasts to ``shape`` and does not widen it."""
    try:
        return torch.broadcast_shapes(tensor.shape, shape) == torch.Size(shape)
    except RuntimeError:
        return False
