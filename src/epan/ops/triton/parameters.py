"""Launch parameters that were measured on the GPU of this machine; they stand above those that epan brings.

A file of the user's cache folder, one per kind of GPU, which ``epan bench tune`` writes:

    {"schema": "epan-tuned-1", "parameters": {"sweep/64/bfloat16": {"num_warps": 4, "num_stages": 3}, ...}}

with a key kernel/head size/dtype. It is read once per process. No entry can change a result: what is taken here fits the
tiles of its dtype.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..._cache import tuned_file

__all__ = [
    "DTYPES",
    "NAMES",
    "Config",
    "check",
    "chosen",
    "edition",
    "fits",
    "forget",
    "in_force",
    "instead",
    "read",
    "save",
]

Config = dict[str, Any]
#: Dtypes by the name that they have in a key.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: Parameters of each kernel beside those of every launch.
NAMES = {
    "prepare": {"ROWS"},
    "sweep": set(),
    "attend": {"HALVES", "SPLIT"},
    "by_rows": {"HALVES", "SPLIT", "RC", "CC"},
    "by_columns": {"HALVES", "SPLIT", "T"},
    "merge": {"ROWS"},
}
_SCHEMA = "epan-tuned-1"
# Side of the smallest tile of a dtype, which its parameters must divide; and that of the smallest matrix product.
_SIDES = {torch.float32: 32}
_SIDE, _PRODUCT = 128, 16
_table: dict[str, Config] | None = None
_edition = 0


def chosen(kernel: str, size: int, padded: int, dtype: torch.dtype) -> Config | None:
    """What the user's file says for a head size, else for the one that it is padded to; None if it says nothing."""
    table = in_force()
    if not table:
        return None
    name = str(dtype).removeprefix("torch.")
    return table.get(f"{kernel}/{size}/{name}") or table.get(f"{kernel}/{padded}/{name}")


def in_force() -> dict[str, Config]:
    """The user's file for this GPU, read at the first call of the process; empty without one, and without a GPU.

    Warns
    -----
    RuntimeWarning: the file is damaged, and ignored.
    """
    global _table
    if _table is None:
        _table = {}
        if torch.cuda.is_available():
            path = tuned_file(torch.cuda.get_device_name())
            try:
                _table = read(path)
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"The launch parameters in {path} cannot be used ({error}); those that epan brings are used instead. "
                    "Run epan bench tune to measure them again, or remove the file",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _table


def edition() -> int:
    """A number that changes whenever what is in force may have changed."""
    return _edition


def forget() -> None:
    """The file is read again when it is needed."""
    global _table, _edition
    _table, _edition = None, _edition + 1


@contextmanager
def instead(key: str, config: Config) -> Iterator[None]:
    """Parameters that stand above all others within a ``with`` block."""
    global _edition
    table = in_force()
    before = table.get(key)
    table[key], _edition = config, _edition + 1
    try:
        yield
    finally:
        if before is None:
            del table[key]
        else:
            table[key] = before
        _edition += 1


def read(path: Path) -> dict[str, Config]:
    """The entries of a file; none where there is no file.

    Raises
    ------
    ValueError: the file is no JSON, or holds something else than launch parameters of these kernels.
    OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA or not isinstance(found.get("parameters"), dict):
        raise ValueError(f"it is no file of the form {_SCHEMA}")
    table: dict[str, Config] = found["parameters"]
    for key, config in table.items():
        check(key, config)
    return table


def save(path: Path, found: Mapping[str, Config]) -> None:
    """Adds entries to a file, or makes it; it appears by one rename. A damaged file is replaced.

    Raises
    ------
    ValueError: an entry that no launch could use.
    """
    for key, config in found.items():
        check(key, config)
    try:
        table = read(path)
    except ValueError:
        table = {}
    table.update(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"schema": _SCHEMA, "parameters": dict(sorted(table.items()))}, file, indent=1)
            file.write("\n")
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    forget()


def check(key: object, config: object) -> None:
    """Refuses an entry that names no kernel, head size and dtype, or parameters that no launch could use.

    Raises
    ------
    ValueError: saying what is wrong.
    """
    kernel, size, dtype = (*str(key).split("/"), "", "")[:3]
    if str(key).count("/") != 2 or kernel not in NAMES or not size.isdecimal() or dtype not in DTYPES:
        raise ValueError(f"{key!r} is no kernel/head size/dtype")
    needed = NAMES[kernel] | {"num_warps", "num_stages"}
    if not isinstance(config, dict) or not needed <= set(config) <= needed | {"maxnreg"}:
        raise ValueError(f"{key} needs {', '.join(sorted(needed))}")
    for name, value in config.items():
        # True is an integer to Python.
        if name == "T":
            good = isinstance(value, bool)
        elif isinstance(value, bool) or not isinstance(value, int):
            good = False
        elif name == "num_stages":
            good = 1 <= value <= 8
        elif name == "maxnreg":
            good = 24 <= value <= 255
        else:
            good = 1 <= value <= 256 and value & (value - 1) == 0
        if not good:
            raise ValueError(f"{key} cannot have {name} = {value!r}")
    if not fits(config, DTYPES[dtype]):
        raise ValueError(f"{key} does not divide the tiles of that dtype")


def fits(config: Config, dtype: torch.dtype) -> bool:
    """Whether parts of a tile are whole, and no smaller than a matrix product."""
    side = _SIDES.get(dtype, _SIDE)
    halves, split, rows = (config.get(name, 1) for name in ("HALVES", "SPLIT", "ROWS"))
    return max(halves, split) * _PRODUCT <= side and rows <= side and config["num_warps"] <= 16
