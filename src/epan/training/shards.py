"""How the tensors of a checkpoint lie in the files of several processes, and how they are put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["KINDS", "assemble", "describe", "file_name", "file_names"]

Kind = Literal["model", "optimizer"]
KINDS: tuple[Kind, ...] = ("model", "optimizer")


def file_name(kind: Kind, number: int, count: int) -> str:
    """The file of process ``number`` (from 0) of ``count``, such as ``model-00001-of-00002.safetensors``."""
    return f"{kind}-{number + 1:05d}-of-{count:05d}.safetensors"


def file_names(count: int) -> list[str]:
    """All tensor files of a checkpoint that ``count`` processes wrote."""
    return [file_name(kind, number, count) for kind in KINDS for number in range(count)]


def describe(parts: list[Mapping[str, tuple[list[int], list[int]]]]) -> dict[str, Any]:
    """For every tensor its full ``shape``, the ``dim`` that is split, and the ``sizes`` of the parts along it.

    A tensor that is not split has dim None, and lies in the first file.

    Parameters
    ----------
    parts: of each process, by name, the full shape and the shape of its part, equal where it is not split.
    """
    found: dict[str, Any] = {}
    for name, (shape, _) in parts[0].items():
        sizes = [part[name][1] for part in parts]
        split = any(size != shape for size in sizes)
        found[name] = {
            "shape": shape,
            "dim": 0 if split else None,
            "sizes": [size[0] for size in sizes] if split else None,
        }
    return found


def assemble(
    folder: Path, kind: Kind, shards: Mapping[str, Any], read: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The full tensors by name, from the files of all processes.

    Raises
    ------
    ValueError: a file has other tensors than ``shards``, the part of the manifest, says.
    """
    count, layout = shards["count"], shards[kind]
    parts: dict[str, list[Tensor]] = {name: [] for name in layout}
    for number in range(count):
        file = file_name(kind, number, count)
        for name, part in read(folder / file).items():
            if name not in layout:
                raise ValueError(f"{file} holds a tensor {name!r} that the manifest does not list")
            shape, sizes = layout[name]["shape"], layout[name]["sizes"]
            expected = shape if sizes is None else [sizes[number], *shape[1:]]
            if list(part.shape) != expected:
                raise ValueError(f"{name!r} in {file} has shape {list(part.shape)}, the manifest says {expected}")
            parts[name].append(part)
    found = {}
    for name, entry in layout.items():
        if len(parts[name]) != (1 if entry["sizes"] is None else count):
            raise ValueError(f"parts of the tensor {name!r} are missing")
        found[name] = parts[name][0] if entry["sizes"] is None else torch.cat(parts.pop(name))
        if list(found[name].shape) != entry["shape"]:
            raise ValueError(f"the parts of the tensor {name!r} do not make up the shape {entry['shape']}")
    return found
