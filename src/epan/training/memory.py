"""The memory that a training step needs, measured on a few sequences before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from epan.models import LanguageModel
from epan.training.sharding import is_split, local

__all__ = ["MemoryEstimate", "PeakMemory", "Saved", "activations", "estimate", "saved_for_backward"]


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process in a training step; what the computation needs in passing comes on top.

    Attributes
    ----------
    weights, gradients, optimizer: what this process holds.
    gathered: with weights shared between processes (FSDP), those of others that it holds at a time.
    activations: what the forward pass of a micro-batch of the longest sequences keeps for the backward pass; None where
        that could not be measured.
    device: the memory of the device, where it has its own.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int | None
    device: int | None = None

    def to_dict(self) -> dict[str, int | None]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [f"weights {size(self.weights)}"]
        if self.gathered:
            parts[0] += f" (and {size(self.gathered)} gathered)"
        parts += [f"gradients {size(self.gradients)}", f"optimizer {size(self.optimizer)}"]
        known = self.activations is not None
        parts.append(f"activations about {size(self.activations or 0)}" if known else "activations unknown")
        return ", ".join(parts) + (f", of {size(self.device)}" if self.device else "")


class PeakMemory:
    """Most bytes that PyTorch had given out on a GPU while steps were taken; tests and the start are none of it.

    Attributes
    ----------
    bytes: so far; None on a CPU, and where runs share the process, whose memory is not told apart.
    """

    def __init__(self, device: torch.device, alone: bool = True) -> None:
        self._device = device if device.type == "cuda" and alone else None
        self.bytes: int | None = None

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within the context steps are taken."""
        if self._device is None:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield
        finally:
            self.bytes = max(self.bytes or 0, torch.cuda.max_memory_allocated(self._device))


def size(count: int) -> str:
    """Bytes for people: ``310 MB``, ``1.2 GB``."""
    for unit, step in (("GB", 10**9), ("MB", 10**6)):
        if count >= step:
            return f"{count / step:.{0 if count >= 10 * step else 1}f} {unit}"
    return f"{count / 1000:.{0 if count >= 10_000 else 1}f} kB"


@dataclasses.dataclass
class Saved:
    """Bytes that a forward pass keeps for the backward pass, parameters aside, each memory counted once.

    Attributes
    ----------
    blocks: within each block, its input aside. inputs: the input of each block. outside: outside the blocks.
    """

    blocks: list[int]
    inputs: list[int]
    outside: int = 0

    def total(self, *, checkpointing: bool) -> int:
        """At most at a time: with ``checkpointing`` the inputs of all blocks, and one block that is computed again."""
        within = max(self.blocks, default=0) if checkpointing else sum(self.blocks)
        return self.outside + sum(self.inputs) + within


def saved_for_backward(model: LanguageModel, compute: Callable[[], Tensor]) -> Saved:
    """What ``compute``, a forward pass of ``model`` up to the loss, keeps when blocks are not computed again."""
    saved = Saved([0] * len(model.layers), [0] * len(model.layers))
    own = {local(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
    # What was counted is held, so that no other tensor takes its place in memory; without its graph, which would hold itself.
    counted: dict[int, Tensor] = {}
    current: int | None = None

    def fresh(tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        # Gathered parameters (FSDP) are given back after the block.
        parameter = isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter)
        if parameter or place in own or place in counted:
            return 0
        counted[place] = tensor.detach()
        return storage.nbytes()

    def pack(tensor: Tensor) -> None:
        # No backward pass follows. A node that kept its own output would keep itself for good, with the stream it was made on.
        if current is None:
            saved.outside += fresh(tensor)
        else:
            saved.blocks[current] += fresh(tensor)

    def enter(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal current
            current = number
            saved.inputs[number] += sum(fresh(value) for value in inputs if isinstance(value, Tensor))

        return hook

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal current
        current = None

    before = model.gradient_checkpointing
    with ExitStack() as stack:
        stack.callback(setattr, model, "gradient_checkpointing", before)
        model.gradient_checkpointing = False
        for number, block in enumerate(model.layers):
            stack.callback(block.register_forward_pre_hook(enter(number)).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing))
        loss = compute()
    # Until here the graph held what it keeps.
    del loss
    return saved


def activations(model: LanguageModel, loss_of: Callable[[int], Tensor], rows: int) -> int:
    """Bytes that a micro-batch of ``rows`` sequences keeps: a line through what two and three sequences do.

    The part that does not grow with the sequences, such as weights that autocast has rounded, is counted once. One sequence
    is no measure: what all sequences share is not expanded for it.

    Parameters
    ----------
    loss_of: the loss of so many of the longest training sequences, at most three.
    """

    def kept(count: int) -> int:
        saved = saved_for_backward(model, lambda: loss_of(count))
        return saved.total(checkpointing=model.gradient_checkpointing)

    if rows <= 3:
        return kept(rows)
    two, three = kept(2), kept(3)
    return three + (rows - 3) * (three - two)


def estimate(
    model: LanguageModel, loss_of: Callable[[int], Tensor], rows: int, device: torch.device
) -> tuple[MemoryEstimate, str | None]:
    """The estimate for a run, and why activations are not in it, if they are not: that keeps no run from starting.

    AdamW has two moments of each weight.

    Parameters
    ----------
    loss_of, rows: as in ``activations``.
    """
    weights = sum(local(parameter).nbytes for parameter in model.parameters())
    needed, reason = None, None
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            needed = activations(model, loss_of, rows)
    except Exception as error:
        reason = f"The memory of activations could not be measured: {str(error).strip() or type(error).__name__}"
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return MemoryEstimate(weights, weights, 2 * weights, _gathered(model), needed, there), reason


def _gathered(model: LanguageModel) -> int:
    """What FSDP gathers at a time: everything outside the blocks, a block in use and the next one on its way."""
    if not any(is_split(parameter) for parameter in model.parameters()):
        return 0
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in model.layers]
    outside = sum(parameter.nbytes for parameter in model.parameters()) - sum(blocks)
    return outside + 2 * max(blocks, default=0)
