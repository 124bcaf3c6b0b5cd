"""A shard: the tokens of part of the text as one file, and beside it what is in them, which appears when all is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import EpanError
from .sources import Plan, documents
from .tokenizing import Tokenizer

__all__ = ["Part", "Shard", "publish", "read_shard", "write_shard"]


@dataclass(frozen=True)
class Part:
    """A run of tokens of one file and split in a shard; ``bytes`` are those of the text."""

    file: int
    split: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Shard:
    """What is in a shard.

    Attributes
    ----------
    identity: of the plan and the tokenizer. sha256: of the tokens. parts: in their order.
    """

    identity: str
    sha256: str
    parts: tuple[Part, ...]


def publish(path: Path, content: bytes | str) -> None:
    """Write a file that is there whole or not at all; what is there already is replaced."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise EpanError(
            f"Tokens cannot be written: {error.strerror}",
            found=str(path),
            fix="free some space, or give another folder",
        ) from error


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"shard-{number:05d}.bin", folder / f"shard-{number:05d}.json"


def write_shard(folder: Path, plan: Plan, number: int, tokenizer: Tokenizer, identity: str) -> None:
    """Tokenise a shard of the plan.

    Raises
    ------
    EpanError: text that cannot be read, or tokens that cannot be written.
    """
    chunks: list[bytes] = []
    parts: list[Part] = []
    for piece in plan.shards[number]:
        for passage in documents(plan, piece):
            tokens = tokenizer.encode(passage.text)
            if passage.begins:
                tokens.insert(0, tokenizer.document)
            chunks.append(tokens.tobytes())
            new = Part(piece.file, passage.split, int(passage.begins), len(tokens), passage.bytes)
            if parts and (parts[-1].file, parts[-1].split) == (new.file, new.split):
                parts[-1] = _sum(new.file, new.split, (parts[-1], new))
            else:
                parts.append(new)
    content = b"".join(chunks)
    tokens_at, index_at = _paths(folder, number)
    publish(tokens_at, content)
    shard = Shard(identity, hashlib.sha256(content).hexdigest(), tuple(parts))
    publish(index_at, json.dumps(asdict(shard)))


def read_shard(folder: Path, number: int, identity: str) -> tuple[Shard, bytes] | None:
    """A finished shard and its tokens; None if it is not there, not whole, or that of another plan or tokenizer."""
    tokens_at, index_at = _paths(folder, number)
    try:
        values = json.loads(index_at.read_text("utf-8"))
        content = tokens_at.read_bytes()
        shard = Shard(values["identity"], values["sha256"], tuple(Part(**part) for part in values["parts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = shard.identity == identity and hashlib.sha256(content).hexdigest() == shard.sha256
    return (shard, content) if whole else None


def _sum(file: int, split: str, parts: Iterable[Part]) -> Part:
    parts = list(parts)
    counts = (sum(getattr(part, name) for part in parts) for name in ("documents", "tokens", "bytes"))
    return Part(file, split, *counts)
