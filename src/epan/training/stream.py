"""The data of a run as a function of (seed, step, rank): no loader, no state, nothing to save."""

from __future__ import annotations

import hashlib

import torch

from epan.tasks import Batch, Sequences

__all__ = ["micro_batches", "step_seed", "trim"]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of dropout in one step of one process: 63 bits, unrelated for any two (seed, step, rank)."""
    digest = hashlib.blake2b(f"dropout/{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def trim(batch: Batch) -> Batch:
    """``batch`` without the columns behind its last token with loss: padding costs time and decides nothing."""
    columns = batch.loss_mask.any(dim=0).nonzero()
    end = int(columns[-1]) + 1 if len(columns) else batch.tokens.shape[1]
    if end == batch.tokens.shape[1]:
        return batch
    cut = {name: getattr(batch, name)[:, :end] for name in ("tokens", "loss_mask", "score_mask")}
    return batch._replace(**cut)


def micro_batches(
    task: Sequences,
    seed: int,
    step: int,
    batch: int,
    lengths: tuple[int, int],
    *,
    parts: int = 1,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    cut: bool = True,
) -> list[Batch]:
    """The training data of one optimizer step, for one process.

    The ``batch`` sequences of a step are split by their number, first over ``world`` processes, then into ``parts``
    micro-batches. So every sequence is seen once, and neither accumulation nor the number of processes changes the
    data.

    Parameters
    ----------
    task, seed, step, lengths, device: as in ``task.sample``; the split is "train".
    batch: sequences of the step, a multiple of ``parts`` · ``world``.
    parts: micro-batches of each process.
    rank, world: this process and how many there are.
    cut: whether each micro-batch ends at its longest sequence.
    """
    rows = batch // (parts * world)
    mine = rows * parts
    whole = task.sample(seed, step, mine, lengths, device=device, split="train", first=rank * mine)
    pieces = [Batch(*(part[rows * i : rows * (i + 1)] for part in whole)) for i in range(parts)]
    return [trim(piece) for piece in pieces] if cut else pieces
