"""Tokenizers: bytes, a byte-level BPE trained on the text, or any tokenizer of Hugging Face; each is one JSON file."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, final

from ..errors import EpanError, not_installed, unknown_name

__all__ = [
    "FILE_NAME",
    "BytesTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "check_spec",
    "load_tokenizer",
    "train_bpe",
]

FILE_NAME = "tokenizer.json"
DOCUMENT = "<|endoftext|>"
# What tokenizers of others call the token between documents, the likeliest first.
_SEPARATORS = (DOCUMENT, "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<eos>", "<s>", "<bos>", "[SEP]")
_DEFAULT_SIZE = 8192
_BPE = re.compile(r"bpe(?::size=(\d+))?")
# A passage is tokenised in parts of about so many characters, which a BPE does several times faster than all at once.
_PART = 1 << 13


class Tokenizer(ABC):
    """Text to tokens and back.

    Attributes
    ----------
    name: what it is, for people. vocab_size: one more than the largest token.
    document: the token that begins each document; it also tells the model that the one before has ended.
    """

    name: str
    vocab_size: int
    document: int

    @property
    def typecode(self) -> str:
        """How a token is kept, as ``array`` calls it: two bytes where they suffice, else four."""
        return "H" if self.vocab_size <= 1 << 16 else "I"

    @abstractmethod
    def encode(self, text: str) -> array[int]:
        """The tokens of ``text``, without one for the document; of type ``typecode``."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; the token of a document has none, and a part of a character is written �."""

    @abstractmethod
    def byte_lengths(self) -> list[int] | None:
        """Bytes of text that each token stands for; None where that depends on its neighbours."""

    @abstractmethod
    def to_json(self) -> str:
        """The content of its file; :func:`load_tokenizer` gives it back."""

    def hash(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@final
class BytesTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and one token that begins a document."""

    name, vocab_size, document = "bytes", 257, 256

    def encode(self, text: str) -> array[int]:
        content = text.encode()
        wide = bytearray(2 * len(content))
        wide[int(sys.byteorder == "big") :: 2] = content
        found = array(self.typecode)
        found.frombytes(wide)
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def byte_lengths(self) -> list[int]:
        return [1] * 256 + [0]

    def to_json(self) -> str:
        return json.dumps({"epan": "bytes"}) + "\n"


@final
class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library.

    Parameters
    ----------
    content: its JSON. Where it has no token for documents that is known, the next free number is one.
    name: what it is called.

    Raises
    ------
    EpanError: what is no tokenizer, or the library is not installed.
    """

    def __init__(self, content: str, name: str) -> None:
        library = _library(f"The tokenizer {name}")
        try:
            self._inner = library.Tokenizer.from_str(content)
        except Exception as error:
            raise EpanError(
                f"This is no tokenizer: {error}", found=name, allowed="the JSON of the tokenizers library"
            ) from None
        self.name = name
        # Padding and cutting are of batches of other programs.
        self._inner.no_padding()
        self._inner.no_truncation()
        # Text that looks like a token of documents is text.
        self._inner.encode_special_tokens = True
        largest = max(self._inner.get_vocab(with_added_tokens=True).values())
        known = (self._inner.token_to_id(token) for token in _SEPARATORS)
        self.document = next((token for token in known if token is not None), largest + 1)
        self.vocab_size = max(largest, self.document) + 1
        plan = json.loads(self._inner.to_str())
        kinds = [(plan.get(part) or {}).get("type") for part in ("pre_tokenizer", "decoder")]
        self._byte_level = kinds == ["ByteLevel"] * 2 and plan.get("normalizer") is None

    def encode(self, text: str) -> array[int]:
        parts = _parts(text) if self._byte_level else [text]
        found = array(self.typecode)
        for encoding in self._inner.encode_batch_fast(parts, add_special_tokens=False):
            found.extend(encoding.ids)
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self._inner.decode([token for token in tokens if token != self.document], skip_special_tokens=False))

    def byte_lengths(self) -> list[int] | None:
        if not self._byte_level:
            return None
        lengths = [0] * self.vocab_size
        added = {token.content for token in self._inner.get_added_tokens_decoder().values()}
        for token, number in self._inner.get_vocab(with_added_tokens=True).items():
            # A byte-level token has a letter for each byte; an added one is text as it stands.
            lengths[number] = len(token.encode()) if token in added else len(token)
        lengths[self.document] = 0
        return lengths

    def to_json(self) -> str:
        return str(self._inner.to_str()) + "\n"


def _library(what: str) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise not_installed(["tokenizers"], what) from None
    return tokenizers


def _parts(text: str) -> list[str]:
    """``text`` in parts that a byte-level BPE tokenises as it does the whole: each ends before a blank after a word."""
    parts, start = [], 0
    while start < len(text):
        stop = start + _PART
        while stop < len(text) and (text[stop] not in " \n" or text[stop - 1].isspace()):
            stop += 1
        parts.append(text[start:stop])
        start = stop
    return parts


def check_spec(spec: str) -> None:
    """EpanError unless ``spec`` is "bytes", "bpe", "bpe:size=N", "hf:NAME" or the path of a tokenizer that is there."""
    match = _BPE.fullmatch(spec)
    if match is not None and match[1] is not None and int(match[1]) < 257:
        raise EpanError(
            "The vocabulary of a BPE is too small", found=spec, allowed="size of at least 257: the bytes and one more"
        )
    if (
        spec == "bytes"
        or match is not None
        or spec.removeprefix("hf:") not in ("", spec)
        or Path(spec).expanduser().exists()
    ):
        return
    hints = {"byte": "the name is 'bytes'", "char": "use 'bytes'", "gpt2": "use 'hf:gpt2'"}
    raise unknown_name("tokenizer", spec, ["bytes", "bpe", "bpe:size=16384", "hf:NAME", "a path"], hints)


def load_tokenizer(place: str | Path) -> Tokenizer:
    """A tokenizer that exists: "bytes", "hf:NAME" of the Hugging Face hub, a ``tokenizer.json``, or a folder with one.

    The folder of a run that learnt from text is one.

    Raises
    ------
    EpanError: nothing is there, it cannot be read, or it is none.
    """
    if place == "bytes":
        return BytesTokenizer()
    if isinstance(place, str) and place.startswith("hf:"):
        name = place.removeprefix("hf:")
        try:
            inner = _library(f"The tokenizer {place}").Tokenizer.from_pretrained(name)
        except EpanError:
            raise
        except Exception as error:
            raise EpanError(
                f"The tokenizer could not be loaded from the hub: {str(error).splitlines()[0]}",
                found=place,
                fix="check its name and the network, or give the path of its tokenizer.json",
            ) from None
        return HuggingFaceTokenizer(inner.to_str(), place)
    path = Path(place).expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise EpanError(
            f"The tokenizer cannot be read: {reason}", found=str(path), allowed=f"a file {FILE_NAME}"
        ) from None
    return from_json(content, str(place))


def from_json(content: str, name: str) -> Tokenizer:
    """The tokenizer of a file's content; EpanError if it is none."""
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise EpanError("This is no tokenizer", found=name, allowed="the JSON of the tokenizers library")
    return BytesTokenizer() if values.get("epan") == "bytes" else HuggingFaceTokenizer(content, name)


def bpe_size(spec: str) -> int | None:
    """The vocabulary of the BPE that ``spec`` asks to train, None for anything else."""
    match = _BPE.fullmatch(spec)
    return None if match is None else int(match[1] or _DEFAULT_SIZE)


def train_bpe(texts: Iterable[str], size: int) -> HuggingFaceTokenizer:
    """A byte-level BPE of ``size`` tokens: the bytes, the token of a document, and the most frequent pairs in turn.

    The same texts give the same tokenizer.

    Raises
    ------
    EpanError: the ``tokenizers`` library is not installed, or the texts have too few different pairs.
    """
    library = _library(f"bpe:size={size}")
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[DOCUMENT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_batches(texts), trainer)
    found = inner.get_vocab_size()
    if found < size:
        raise EpanError(
            "The text has too few different pairs for so large a BPE",
            found=f"{found} tokens, {size} asked for",
            fix=f"take tokenizer=bpe:size={found}, or more text",
        )
    return HuggingFaceTokenizer(inner.to_str(), f"bpe:size={size}")


def _batches(texts: Iterable[str], count: int = 64) -> Iterable[Sequence[str]]:
    """Parts of the texts, so many at a time, which the library counts side by side."""
    batch: list[str] = []
    for text in texts:
        batch += _parts(text)
        while len(batch) >= count:
            yield batch[:count]
            batch = batch[count:]
    if batch:
        yield batch
