"""One checkpoint written by several processes, each its own parts, published by the first when all are on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from epan.errors import EpanError, lab_imports
from epan.training import checkpoint as checkpoints
from epan.training import shards
from epan.training.processes import Processes
from epan.training.sharding import local

__all__ = ["save_shards"]


def save_shards(
    run: Path,
    step: int,
    processes: Processes,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    keep: int,
    spare: Collection[int] = (),
) -> Path:
    """``checkpoint.save`` for tensors that are split over ``processes``; all of them call it, with a folder that all see.

    Every process writes and flushes its parts into the temporary folder that the first one made. Then the first one writes
    the manifest – size and SHA-256 of each file, for each tensor the full shape and how it is split – and publishes the
    folder by one rename. A process that dies before leaves the temporary folder alone, which the next session removes.

    Raises
    ------
    EpanError: in all processes, if one cannot write; earlier checkpoints are untouched and no litter stays.
    """
    final = checkpoints.place_of(run, step)
    temporary = processes.share(lambda: _begin(final))
    own = {"model": model, "optimizer": optimizer}
    told = processes.gather(_write_parts(temporary, own, processes))
    return processes.share(lambda: _finish(temporary, final, step, told, own, state, facts, keep, spare))


def _begin(final: Path) -> Path:
    temporary = checkpoints.temporary_of(final)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise checkpoints.unwritable(final, error.strerror or str(error), None) from error
    return temporary


def _write_parts(temporary: Path, own: Mapping[str, Mapping[str, Tensor]], processes: Processes) -> dict[str, Any]:
    """The files of this process and the shapes in them, or why they could not be written."""
    with lab_imports("Saving a checkpoint"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

    told: dict[str, Any] = {"files": {}, "shapes": {}, "error": None}
    try:
        for kind in shards.KINDS:
            parts = {name: local(tensor) for name, tensor in own[kind].items()}
            told["shapes"][kind] = {name: (list(own[kind][name].shape), list(parts[name].shape)) for name in parts}
            # What is not split is the same in all processes.
            mine = {name: part for name, part in parts.items() if processes.main or part.shape != own[kind][name].shape}
            path = temporary / shards.file_name(kind, processes.rank, processes.world)
            save_file(checkpoints.contiguous(mine), path)
            checkpoints.flush(path)
            told["files"][path.name] = checkpoints.fingerprint(path)
    except (OSError, SafetensorError) as error:
        told["error"] = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            told["error"] += "; the run folder must be one that all machines share"
    return told


def _finish(
    temporary: Path,
    final: Path,
    step: int,
    told: list[dict[str, Any]],
    own: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    keep: int,
    spare: Collection[int],
) -> Path:
    problem = next(((rank, one["error"]) for rank, one in enumerate(told) if one["error"]), None)
    size = sum(tensor.nbytes for tensors in own.values() for tensor in tensors.values())
    try:
        if problem is not None:
            raise checkpoints.unwritable(final, problem[1], size, problem[0])
        layout = {kind: shards.describe([one["shapes"][kind] for one in told]) for kind in shards.KINDS}
        checkpoints.finish(
            temporary,
            final,
            step,
            files={name: facts for one in told for name, facts in one["files"].items()},
            state=state,
            facts={**facts, "shards": {"count": len(told), **layout}},
            version=checkpoints.SHARDED,
        )
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise checkpoints.unwritable(final, error.strerror or str(error), size) from error
    except EpanError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    checkpoints.drop_old(final.parent.parent, keep, spare)
    return final
