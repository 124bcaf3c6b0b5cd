"""What the fused kernels can take, and why not; this file imports no Triton, so that asking costs nothing."""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import Kernel
from ...normalizations import Adaptive, Anchored, Fixed, Nearest, Normalization

__all__ = ["MAX_SIZE", "Obstacle", "machine_obstacle", "obstacle"]

MAX_SIZE = 256
_CAPABILITY = (8, 0)
# The GPUs of that major capability have warp-group products, for which the assembler matters.
_HOPPER = 9
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SCHEDULED = (Adaptive, Anchored, Fixed, Nearest)
_TILED = 'use backend="tiled"'
# A device does not change while a process runs.
_found: dict[torch.device, Obstacle | None] = {}


class Obstacle(NamedTuple):
    """What cannot be taken, why, and what to do instead."""

    subject: str
    reason: str
    fix: str


def obstacle(query: Tensor, value: Tensor, kernel: Kernel, rule: Normalization) -> Obstacle | None:
    """What keeps a call of attention from the fused kernels, or None.

    Parameters
    ----------
    query, value: (B, H, Lq, D), (B, Hk, Lk, Dv); only device, dtype and head size are looked at.
    """
    found = machine_obstacle(query.device)
    if found is not None:
        return found
    if query.dtype not in _DTYPES:
        return Obstacle(
            str(query.dtype), "the fused kernels compute in float32", f"{_TILED}, or inputs of float32 or less"
        )
    if type(rule) not in _SCHEDULED:
        return Obstacle(f"normalization={rule.name!r}", "the fused kernels have no schedule for it", _TILED)
    if isinstance(kernel.order, Tensor):
        return Obstacle("a tensor order", "the fused kernels have no derivative by the order", _TILED)
    if type(rule) is not Nearest and (kernel.device_profile is None or kernel.device_derivative is None):
        return Obstacle(
            f"kernel={kernel.name!r}",
            "its file brings no device functions",
            f"{_TILED}, or give it device_profile and device_derivative",
        )
    if kernel.handle < 0:
        return Obstacle(
            f"kernel={kernel.name!r}", "the kernel object was not initialised", "call super().__post_init__()"
        )
    size = max(query.shape[-1], value.shape[-1])
    if size > MAX_SIZE:
        return Obstacle(f"a head size above {MAX_SIZE}", "a tile does not fit into a multiprocessor", _TILED)
    return None


def machine_obstacle(device: torch.device) -> Obstacle | None:
    """What keeps tensors on ``device`` from the fused kernels, or None."""
    if device.type != "cuda":
        # Chosen when Triton is imported, and tests may choose it late.
        return _examine(device)
    if device not in _found:
        _found[device] = _examine(device)
    return _found[device]


# Traced, it is asked once: neither the machine nor what is installed on it is part of a graph. This is what
# torch.compiler.assume_constant_result does, which would import the compiler, and with it Triton.
machine_obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _examine(device: torch.device) -> Obstacle | None:
    there = f"an input on {device.type!r}"
    if importlib.util.find_spec("triton") is None:
        return Obstacle(there, "Triton is not installed", f"pip install triton (on Linux), or {_TILED}")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return Obstacle(there, "the fused kernels run on NVIDIA GPUs", f'move the inputs to "cuda", or {_TILED}')
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        found, least = (".".join(map(str, pair)) for pair in (capability, _CAPABILITY))
        return Obstacle(
            f"a GPU of compute capability {found}", f"the fused kernels need {least} (Ampere) or later", _TILED
        )
    return _assembler_obstacle() if capability[0] == _HOPPER else None


def _assembler_obstacle() -> Obstacle | None:
    # Imports Triton, which is about to be used.
    assembler = importlib.import_module(f"{__package__}.assembler")
    path, version = assembler.chosen()
    if version >= assembler.LEAST:
        return None
    found, least = (".".join(map(str, pair)) for pair in (version, assembler.LEAST))
    return Obstacle(
        f"the assembler {path}",
        f"it is ptxas {found}, which gets the fused kernels wrong on this GPU",
        f"set TRITON_PTXAS_PATH to a ptxas of CUDA {least} or later that the driver can take, or upgrade Triton to 3.8 or "
        f"later, or {_TILED}",
    )
