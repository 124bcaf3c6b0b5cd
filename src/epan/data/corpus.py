"""A folder of tokens, opened: its splits as tensors that the memory of the machine maps from the files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..errors import EpanError
from .building import Request, prepare, read_manifest
from .splitting import SPLITS
from .tokenizing import FILE_NAME, Tokenizer, load_tokenizer

__all__ = ["Corpus", "open_corpus"]

_BLOCK = 1 << 22


@final
class Corpus:
    """Tokens of a text in three splits, each one row in which every document begins with the token of documents.

    Parameters
    ----------
    folder: what :func:`epan.data.build` made; every byte is checked.

    Attributes
    ----------
    manifest: what is in it. tokenizer: with which it was made. hash: of tokenizer and tokens.

    Raises
    ------
    EpanError: no such folder, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.tokenizer: Tokenizer = load_tokenizer(self.folder / FILE_NAME)
        self.hash: str = self.manifest["hash"]
        facts = self.manifest["tokenizer"]
        # A file of tokens names its tokenizer by what is asked for.
        self.tokenizer.name = facts["name"]
        if self.tokenizer.hash() != facts["sha256"]:
            raise self._damaged(FILE_NAME)
        self._tokens: dict[tuple[str, torch.device], Tensor] = {}
        for name in SPLITS:
            self._check(name)

    def _damaged(self, name: str) -> EpanError:
        return EpanError(
            "A file of tokens is damaged", found=str(self.folder / name), fix="remove the folder and build it anew"
        )

    def _check(self, split: str) -> None:
        path, digest = self.folder / f"{split}.bin", hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise EpanError(f"A file of tokens cannot be read: {error.strerror}", found=str(path)) from None
        if digest.hexdigest() != self.manifest["splits"][split]["sha256"]:
            raise self._damaged(path.name)

    def count(self, split: str) -> int:
        """Tokens of a split."""
        return int(self.manifest["splits"][split]["tokens"])

    def tokens_per_byte(self, split: str) -> float:
        """Tokens of a split over the bytes of its text."""
        part = self.manifest["splits"][split]
        return float(part["tokens"] / max(1, part["bytes"]))

    def tokens(self, split: str, device: torch.device | str = "cpu") -> Tensor:
        """All tokens of a split, int16 (without a sign: & 0xFFFF) or int32.

        On a CPU the file itself, mapped; on another device a copy, if that takes a quarter of its memory at most, else the
        file, too.
        """
        place = torch.device(device)
        if (split, place) not in self._tokens:
            count = self.count(split)
            kind = torch.int16 if self.manifest["bytes_per_token"] == 2 else torch.int32
            path = str(self.folder / f"{split}.bin")
            mapped = (
                torch.from_file(path, shared=False, size=count, dtype=kind) if count else torch.zeros(0, dtype=kind)
            )
            self._tokens[split, place] = mapped.to(place) if _fits(mapped, place) else mapped
        return self._tokens[split, place]

    def read(self, split: str, places: Tensor) -> Tensor:
        """The tokens at ``places`` (any shape, int64), as int64 on their device."""
        held = self.tokens(split, places.device)
        found = held[places.to(held.device)]
        wide = found.long() & 0xFFFF if held.dtype == torch.int16 else found.long()
        return wide.to(places.device)

    @functools.cached_property
    def byte_lengths(self) -> Tensor | None:
        """Bytes of text that each token stands for, (vocabulary,) int64; None where that depends on its neighbours."""
        lengths = self.tokenizer.byte_lengths()
        return None if lengths is None else torch.tensor(lengths)


def _fits(tokens: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type != "cpu"
    return tokens.nbytes <= torch.cuda.get_device_properties(device).total_memory // 4


_open: dict[tuple[Any, ...], Corpus] = {}


def open_corpus(request: Request, **options: Any) -> Corpus:
    """The corpus of a request, built where it is not there; the same object as long as nothing has changed.

    Parameters
    ----------
    options: as those of :func:`epan.data.prepare`.
    """
    folder = prepare(request, **options)
    key = (folder.resolve(), read_manifest(folder)["hash"])
    if key not in _open:
        _open[key] = Corpus(folder)
    return _open[key]
