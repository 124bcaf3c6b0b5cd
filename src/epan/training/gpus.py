"""The GPUs of this machine that the workers of a sweep share."""

from __future__ import annotations

import os
from collections.abc import Sequence

from epan.errors import EpanError
from epan.training.config import RunConfig

__all__ = ["choose_gpus", "visible_gpus"]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Names after the first one that means nothing do not count.
    names = [str(place) for place in range(count)] if named is None else [name.strip() for name in named.split(",")]
    return names[:count]


def choose_gpus(configs: Sequence[RunConfig], asked: Sequence[str] = ()) -> list[str]:
    """The GPUs that the runs are spread over: those asked for, or all where there are several and a run may use one.

    Raises
    ------
    EpanError: one that is asked for is not there.
    """
    if not asked and all(config.device in ("cpu", "mps") for config in configs):
        return []
    there = visible_gpus()
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise EpanError(
            f"There is no GPU {unknown[0]!r} here",
            found=", ".join(asked),
            allowed=there or "none, as torch finds no NVIDIA GPU",
            fix="leave --gpus out to take all" if there else "leave --gpus out",
        )
    if asked:
        return list(dict.fromkeys(asked))
    # A single one needs no assignment.
    return there if len(there) > 1 else []
