"""Which documents are held out: a function of their number or content, never of chance."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import EpanError

__all__ = ["SPLITS", "Rule"]

SPLITS = ("train", "validation", "test")
# Fewer documents than this are not held out whole, but lose their ends.
FEW = 10
_EVERY = re.compile(r"every:(\d+)")


@dataclass(frozen=True)
class Rule:
    """How documents are divided.

    Attributes
    ----------
    kind: "every": the last document of each of ``held`` equal groups, in turn for validation and test; "hash": a
        twentieth each, by the SHA-256 of the document, so that equal documents stay together; "tail": of every document the
        last twentieth for test, and the one before it for validation; "none": all are for training; "all": all are for
        validation.
    documents, held: how many there are, and how many of them are held out ("every").
    """

    kind: str
    documents: int
    held: int

    @classmethod
    def choose(cls, split: str, documents: int) -> Rule:
        """The rule called ``split``: "hash", "tail", "none", "all", "every:N" (one in N, at least two), or "auto".

        "auto" is "every:10", or "tail" for fewer than ten documents.

        Raises
        ------
        EpanError: an unknown rule, or too few documents for it.
        """
        if split == "auto":
            split = "every:10" if documents >= FEW else "tail"
        if split in ("hash", "tail", "none", "all"):
            return cls(split, documents, 0)
        match = _EVERY.fullmatch(split)
        if match is None or int(match[1]) < 2:
            allowed = "auto, every:N (N at least 2), hash, tail, none or all"
            raise EpanError("Unknown way to split the text", found=split, allowed=allowed)
        if documents < 3:
            raise EpanError(
                "There are too few documents to hold two of them out",
                found=documents,
                fix="take split=tail, or name files for validation and test",
            )
        # Half is rounded up.
        held = (2 * documents + int(match[1])) // (2 * int(match[1]))
        return cls("every", documents, min(max(2, held), documents - 1))

    def split_of(self, number: int, sha256: str) -> str:
        """The split of a document: ``number`` counts from 0, ``sha256`` is that of its bytes, in hexadecimal."""
        if self.kind == "every":
            group = number * self.held // self.documents
            if (number + 1) * self.held // self.documents == group:
                return "train"
            return SPLITS[1 + group % 2]
        if self.kind == "hash":
            share = int(sha256[:8], 16) * 20 >> 32
            return SPLITS[2 - share] if share < 2 else "train"
        return "validation" if self.kind == "all" else "train"
