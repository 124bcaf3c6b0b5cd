"""A data set of the Hugging Face hub as files of JSON lines: streamed once, and gone on with where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import _cache
from ..errors import EpanError, not_installed
from .shards import publish

__all__ = ["fetch"]

# Documents of a file.
PART = 1 << 14
DONE = "complete.json"


def fetch(name: str, field: str, limit: int | None, tell: Callable[[str, int, int], None]) -> Path:
    """A folder of files with the documents of the data set ``name``, one ``{"text": …}`` a line.

    Parameters
    ----------
    name: OWNER/NAME or NAME, followed by ":SUBSET" where the data set has several. Its split "train" is read.
    field: of its rows, which has the text. limit: read no more documents than that.
    tell: is given what is done, how many documents are there, and how many there will be (0: not known).

    Raises
    ------
    EpanError: the ``datasets`` library is not installed, no such data set, no network, or no such field.
    """
    key = hashlib.sha256(json.dumps([name, field, limit]).encode()).hexdigest()[:16]
    folder = _cache.folder() / "text" / f"hub-{name.replace('/', '-').replace(':', '-')}-{key}"
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    there = 0
    while (folder / f"part-{there:05d}.jsonl").exists():
        there += 1
    # Only the last file is shorter than the others, and then the data set is complete but for its mark.
    rows, count = _rows(name, there * PART), there * PART
    lines: list[str] = []
    while limit is None or count < limit:
        row = next(rows, None)
        if row is not None:
            if not isinstance(row.get(field), str):
                texts = [key for key, value in row.items() if isinstance(value, str)]
                raise EpanError(
                    f"The data set has no text in the field {field!r}", found=f"hf:{name}", allowed=texts or "none",
                    fix="name the field with --set task.options.field=NAME",
                )  # fmt: skip
            lines.append(json.dumps({"text": row[field]}) + "\n")
            count += 1
        if len(lines) == PART or (row is None and lines):
            publish(folder / f"part-{(count - 1) // PART:05d}.jsonl", "".join(lines))
            lines = []
            tell("reading", count, limit or 0)
        if row is None:
            break
    if lines:
        publish(folder / f"part-{(count - 1) // PART:05d}.jsonl", "".join(lines))
    if not count:
        raise EpanError("The data set has no documents", found=f"hf:{name}")
    publish(folder / DONE, json.dumps({"documents": count}) + "\n")
    return folder


def _rows(name: str, skip: int) -> Iterator[dict[str, Any]]:
    """The rows of the data set after the first ``skip``."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise not_installed(["datasets"], f"The data set hf:{name}") from None
    place, _, subset = name.partition(":")
    try:
        found = datasets.load_dataset(place, subset or None, split="train", streaming=True)
        yield from found.skip(skip) if skip else found
    except Exception as error:
        raise EpanError(
            f"The data set cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}",
            found=f"hf:{name}",
            fix="check its name and the network; what was read stays, and the same command goes on",
        ) from error
