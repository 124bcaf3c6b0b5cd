"""Files that anybody may have written: sizes and types are looked at before anything is read, built or believed.

Whoever changes a checkpoint can compute its hashes too, so a seal that fits says that nothing was damaged, and no more.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from epan.errors import EpanError

__all__ = [
    "UntrustedError",
    "check_manifest",
    "check_size",
    "check_state",
    "check_tensors",
    "no_larger_than",
    "read_json",
    "shown",
]

# The largest JSON file of a checkpoint and the largest list of tensors, in bytes: a thousand times what is usual.
LARGEST_JSON = 4 << 20
LARGEST_HEADER = 16 << 20


class UntrustedError(Exception):
    """What is wrong with a file; its text says it for people."""


def shown(value: object) -> str:
    """Any value, in one short line that no terminal takes for a command."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_size(path: Path, limit: int | None = None) -> int:
    """The size of a plain file in bytes, if it is at most ``limit``.

    Raises
    ------
    UntrustedError: it is larger, or no plain file, such as a pipe, which would never end.
    OSError: it is not there.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedError(f"{path.name} is no plain file")
    if limit is not None and found.st_size > limit:
        raise UntrustedError(f"{path.name} has {found.st_size} bytes; no such file has more than {limit}")
    return found.st_size


def _no_constant(word: str) -> float:
    raise ValueError(word)


def read_json(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a small JSON file, and the object in it.

    Raises
    ------
    UntrustedError: it is too large, too deep, or no JSON object.
    OSError: it cannot be read.
    """
    check_size(path, LARGEST_JSON)
    raw = path.read_bytes()
    try:
        content = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise UntrustedError(f"{path.name} is no JSON") from None
    if not isinstance(content, dict):
        raise UntrustedError(f"{path.name} is no JSON object")
    return raw, content


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18


def check_manifest(name: str, manifest: Mapping[str, Any], files: frozenset[str]) -> None:
    """Whether every value of a manifest has its type, and it lists exactly ``files``.

    Raises
    ------
    UntrustedError: the first that does not.
    """
    types = {"config": dict, "model": dict, "config_hash": str, "files": dict}
    for key, kind in types.items():
        if not isinstance(manifest.get(key), kind):
            raise UntrustedError(f"{name} has no {key!r} that is {'text' if kind is str else 'an object'}")
    if not _whole(manifest.get("step")):
        raise UntrustedError(f"{name} has the step {shown(manifest.get('step'))}")
    listed = manifest["files"]
    if set(listed) != files:
        raise UntrustedError(f"{name} lists {shown(sorted(listed))}")
    for file, facts in listed.items():
        if not isinstance(facts, dict) or not _whole(facts.get("bytes")) or not isinstance(facts.get("sha256"), str):
            raise UntrustedError(f"{name} says of {file} {shown(facts)}")


def check_state(name: str, state: Mapping[str, Any], step: int) -> None:
    """Whether the state is that of ``step`` and has what a run goes on with.

    Raises
    ------
    UntrustedError: it is not, or has not.
    """
    elapsed = state.get("elapsed")
    if state.get("step") != step or isinstance(state.get("step"), bool):
        raise UntrustedError(f"{name} is that of step {shown(state.get('step'))}")
    if isinstance(elapsed, bool) or not isinstance(elapsed, int | float) or not 0 <= elapsed < math.inf:
        raise UntrustedError(f"{name} has the elapsed time {shown(elapsed)}")


def check_tensors(path: Path) -> None:
    """Whether a file is one of safetensors, whose list of tensors is of a bearable size and fits its content.

    Raises
    ------
    UntrustedError: it is not; a pickle and a zip archive are called by their names.
    OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    size = check_size(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        raise UntrustedError(f"{path.name} is a zip archive, no safetensors; it was not unpacked")
    if start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:9] != b"{":
        raise UntrustedError(f"{path.name} is a pickle, no safetensors; it was not read")
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if not 0 < length <= size - 8 or start[8:9] != b"{":
        raise UntrustedError(f"{path.name} is no safetensors file")
    if length > LARGEST_HEADER:
        raise UntrustedError(
            f"{path.name} has a list of tensors of {length} bytes; none has more than {LARGEST_HEADER}"
        )
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise UntrustedError(f"{path.name} is no safetensors file: {shown(str(error))}") from None


@contextmanager
def no_larger_than(tensors: Mapping[str, torch.Tensor], where: Path) -> Iterator[None]:
    """What is built inside has no more parameters than ``tensors``, and takes no memory.

    Raises
    ------
    EpanError: it has more, such as a config that asks for a million layers.
    """
    # Tied weights are counted twice.
    most = (2 * len(tensors) + 16, 2 * sum(tensor.numel() for tensor in tensors.values()))
    count = [0, 0]

    def counted(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        count[0] += 1
        count[1] += 0 if parameter is None else parameter.numel()
        if count[0] > most[0] or count[1] > most[1]:
            raise EpanError(
                "The checkpoint belongs to another model: its config asks for more parameters than it holds",
                found=f"{most[1] // 2} numbers in {len(tensors)} tensors of {where}",
                fix="use another checkpoint of the run",
            )

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()
