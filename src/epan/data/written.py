"""Prompts and answers in the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from .tokenizing import load_tokenizer

__all__ = ["Written"]


@final
class Written:
    """Text as a model of a text reads and writes it; a prompt begins a document, and the next document ends the answer.

    Parameters
    ----------
    path: the file of a tokenizer; the text itself need not be there.

    Raises
    ------
    EpanError: no such file, or no tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        self.tokenizer = load_tokenizer(path)

    @property
    def ends(self) -> tuple[int, ...]:
        return (self.tokenizer.document,)

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        return [self.tokenizer.document, *self.tokenizer.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, � for a part of a character."""
        return self.tokenizer.decode(tokens)
