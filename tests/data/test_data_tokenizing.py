"""Tokenizers: text comes back, a BPE repeats, and parts are tokenised as the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from prose import prose

from epan.data import tokenizing
from epan.data.tokenizing import BytesTokenizer, Tokenizer, check_spec, load_tokenizer, train_bpe
from epan.errors import EpanError

library = pytest.importorskip("tokenizers", reason="needs the extra [text]")
TEXTS = [prose(seed, 400) for seed in range(4)]
HARD = "a  b\t\n\n c\r\n\u3000\u2028x <|endoftext|> 123 don't 🙂 e\u0301\n"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 300)


@pytest.mark.parametrize("text", ["", HARD, TEXTS[0]])
def test_text_comes_back(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, BytesTokenizer()):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.document not in tokens
        lengths = tokenizer.byte_lengths()
        assert lengths is not None
        assert sum(lengths[token] for token in tokens) == len(text.encode())
        assert len(lengths) == tokenizer.vocab_size


def test_bytes_are_bytes() -> None:
    assert BytesTokenizer().encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert (BytesTokenizer().vocab_size, BytesTokenizer().document) == (257, 256)


def test_the_same_text_gives_the_same_bpe(bpe: Tokenizer) -> None:
    assert train_bpe(iter(TEXTS), 300).hash() == bpe.hash()
    assert train_bpe(TEXTS[:2], 300).hash() != bpe.hash()
    assert bpe.vocab_size == 300


def test_parts_are_tokenised_as_the_whole(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TEXTS[0] + HARD) * 3
    whole = bpe.encode(text)
    for size in (1, 7, 64):
        monkeypatch.setattr(tokenizing, "_PART", size)
        assert len(tokenizing._parts(text)) > 5
        assert bpe.encode(text) == whole


def test_a_tokenizer_is_its_file(bpe: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (bpe, BytesTokenizer()):
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        again = load_tokenizer(tmp_path)
        assert again.hash() == tokenizer.hash()
        assert again.encode(HARD) == tokenizer.encode(HARD)


def test_a_tokenizer_of_others(tmp_path: Path) -> None:
    """A word tokenizer without a token for documents: one is added, and the bytes of a token are not known."""
    words = {"[UNK]": 0, "sea": 1, "ship": 2}
    inner = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = library.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "words.json"))
    found = load_tokenizer(tmp_path / "words.json")
    assert found.encode("ship sea shoe").tolist() == [2, 1, 0]
    assert (found.document, found.vocab_size, found.byte_lengths()) == (3, 4, None)


def test_a_known_token_of_documents_is_taken(tmp_path: Path) -> None:
    inner = library.Tokenizer(library.models.WordLevel({"</s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.save(str(tmp_path / "t.json"))
    assert load_tokenizer(tmp_path / "t.json").document == 0


def test_too_large_a_bpe() -> None:
    with pytest.raises(EpanError, match="too few different pairs"):
        train_bpe(["ab ab"], 400)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("byte", "'bytes'"),
        ("gpt2", "hf:gpt2"),
        ("bpe:size=100", "too small"),
        ("bpe:vocab=9", "Unknown tokenizer"),
        ("hf:", "Unknown"),
    ],
)
def test_a_misspelt_tokenizer(spec: str, message: str) -> None:
    with pytest.raises(EpanError, match=message):
        check_spec(spec)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}', '{"version": "1.0"}'])
def test_what_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(EpanError, match="no tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(EpanError, match="cannot be read"):
        load_tokenizer(tmp_path / "nothing.json")
