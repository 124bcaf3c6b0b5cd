"""Checkpoints are written beside training: a copy of the step's numbers now, the disk in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["BackgroundWriter", "snapshot"]

Tensors = Mapping[str, Mapping[str, torch.Tensor]]


def snapshot(tensors: Tensors) -> Callable[[], dict[str, dict[str, torch.Tensor]]]:
    """A copy of all ``tensors`` as they are now, in the memory of the CPU; to be called where it is needed.

    From a GPU the numbers travel into pinned memory in the order of its work, and only who calls waits until they have
    arrived: the next step may be started at once.
    """
    copies = {kind: {name: _copy(tensor.detach()) for name, tensor in group.items()} for kind, group in tensors.items()}
    arrived = None
    if any(tensor.is_cuda for group in tensors.values() for tensor in group.values()):
        arrived = torch.cuda.Event()
        arrived.record()

    def take() -> dict[str, dict[str, torch.Tensor]]:
        if arrived is not None:
            arrived.synchronize()
        return copies

    return take


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    # Pinned blocks come from torch's cache of them from the second checkpoint on.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class BackgroundWriter:
    """One thread that writes one checkpoint at a time; a context manager, which waits for the last at its end.

    Attributes
    ----------
    saved: the newest checkpoint that is known to be whole on the disk.
    """

    def __init__(self) -> None:
        # The interpreter itself waits for these threads, so that nothing but a kill tears a write.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="epan-checkpoint")
        self._pending: Future[Path] | None = None
        self.saved: Path | None = None

    def start(self, work: Callable[[], Path]) -> None:
        """Let the thread do ``work``, which gives the checkpoint that it wrote; waits for the one before.

        Raises
        ------
        Exception: that of the work before.
        """
        self.wait()
        self._pending = self._thread.submit(work)

    def poll(self) -> None:
        """Raise the error of a work that has failed; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; raises the error of the work, once."""
        if self._pending is None:
            return
        # An interruption here leaves it pending, and the next call waits again.
        wait([self._pending])
        done, self._pending = self._pending, None
        self.saved = done.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()
