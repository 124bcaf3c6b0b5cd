"""The processes of one run, as ``torchrun`` starts them: which of them this is, and what they tell one another.

A process on its own is a group of one, and pays for nothing here.
"""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from epan.errors import EpanError

__all__ = ["Processes", "join", "local_device", "world_size"]

# A process that dies is not waited for: connections break, and torchrun ends the others and names it. One that hangs, or a
# machine that is gone, is waited for so long: within a step, where all have the same work (compiling is most of it), and
# where the first has a checkpoint to write or a test to finish. The second wait goes over the CPU, so that NCCL's watchdog,
# which ends a process whose collective takes longer than the first, need not know of it.
STEP = datetime.timedelta(minutes=10)
PATIENCE = datetime.timedelta(hours=12)
T = TypeVar("T")


class Processes:
    """A group of processes that train one model.

    Attributes
    ----------
    rank, world: this process and how many there are.
    patient: the group in which the others wait for the main process; None is the default group.
    """

    def __init__(self, rank: int = 0, world: int = 1, patient: distributed.ProcessGroup | None = None) -> None:
        self.rank, self.world, self.patient = rank, world, patient

    @property
    def main(self) -> bool:
        """Whether this is the process that writes record and checkpoints, tests, and speaks."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in all of them."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest number of all processes, in all of them."""
        if self.world == 1:
            return value
        # On the CPU, so that nothing waits for a GPU.
        found = torch.tensor(value)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """The value of every process, in all of them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all have come here; what the main process alone does may take long."""
        if self.world > 1:
            distributed.barrier(group=self.patient)

    def share(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the main process, in all of them.

        Raises
        ------
        EpanError: it raised one there; in all of them.
        """
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = make()
            except EpanError as error:
                box[1] = error
            except BaseException as error:
                self._tell([None, EpanError(f"The main process failed: {error}")])
                raise
        self._tell(box)
        if box[1] is not None:
            raise box[1]
        return box[0]  # type: ignore[no-any-return]

    def _tell(self, box: list[Any]) -> None:
        distributed.broadcast_object_list(box, src=0, group=self.patient)


def world_size() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: torch.device) -> torch.device:
    """The device of this process: every process of a machine has a GPU of its own.

    Raises
    ------
    EpanError: there are fewer GPUs than processes, or devices of that kind cannot work together.
    """
    if world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise EpanError("Several processes need a CPU or NVIDIA GPUs", found=device.type, fix="take device=cpu")
    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= there:
        raise EpanError(
            "There are more processes than GPUs on this machine",
            found=f"process {place + 1} of it, {there} GPUs",
            fix=f"torchrun --nproc-per-node {there}",
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


@contextmanager
def join(device: torch.device) -> Iterator[Processes]:
    """The group that this process belongs to; it is left at the end.

    Raises
    ------
    EpanError: the others cannot be reached.
    """
    if world_size() == 1:
        yield Processes()
        return
    own = not distributed.is_initialized()
    try:
        if own:
            # What is no tensor travels through the CPU.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=STEP)
        patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise EpanError(
            f"The processes of the run cannot reach one another: {error}", fix="start them with torchrun"
        ) from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), patient)
    finally:
        if own:
            # Whatever adds up gradients has to go first: freed later, it would be the last to hold the group, and wait
            # for a thread of it that waits for Python, for good.
            gc.collect()
            distributed.destroy_process_group()
