"""Text for language models: from files or a data set to memory-mapped tokens, and windows of them as training data.

    text = epan.data.Text("novels", tokenizer="bpe:size=16384", context=512)
    batch = text.sample(seed=0, step=0, batch=32, lengths=512)

Tokens are built at first use, in parallel, and kept in the cache folder; `epan data PATH` shows what was built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .building import build, prepare
    from .corpus import Corpus
    from .text import Text
    from .tokenizing import Tokenizer, load_tokenizer

# Public names whose modules need torch or more; loaded at first use.
_HOME = {
    "Corpus": "corpus",
    "Text": "text",
    "Tokenizer": "tokenizing",
    "build": "building",
    "load_tokenizer": "tokenizing",
    "prepare": "building",
}

__all__ = ["Corpus", "Text", "Tokenizer", "build", "load_tokenizer", "prepare"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
