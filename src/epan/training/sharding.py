"""FSDP2: every process holds a part of each tensor of weights, gradients and moments, and gathers a block when it is due.

A tensor is split along its first dimension, as torch's ``fully_shard`` does it. What leaves the group – checkpoints, tests,
bandwidths – is asked for here, by all processes together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, distributed, nn

from epan.models import LanguageModel

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["gather_weights", "is_split", "local", "piece", "shard", "whole"]


def shard(model: LanguageModel, device: torch.device, *, compiled: bool = False) -> None:
    """Split ``model`` over all processes, in place, and move this process's part to ``device``.

    Each block is gathered on its own; what lies outside the blocks, such as an embedding that is the head as well, stays
    gathered from the forward to the backward pass. Weights travel in float32: autocast rounds them where they are used, so
    that products have the operands that they have in one process, and scales and thresholds keep their digits.

    Parameters
    ----------
    compiled: torch.compile each block; hooks that gather and free cannot be part of a graph.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in model.layers:
        if compiled:
            block.compile(dynamic=True)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is split over processes."""
    # Whoever splits a tensor has imported the module, which takes a second or two that others need not wait.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor in every process, which all must ask for together; one that is not split is returned as it is."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds; a tensor that is not split is its own part."""
    return tensor.to_local() if is_split(tensor) else tensor


def piece(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor``, which every process has in full, on the device of ``like`` and split as it is, without communication."""
    tensor = tensor.to(like.device, copy=True)
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather_weights(model: nn.Module, *, keep: bool) -> Mapping[str, Tensor]:
    """The full weights by name, where ``keep`` says so; every process must ask, and holds one tensor more at a time."""
    found = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if keep:
            found[name] = full
    return found
