"""``epan data``: tokenise a text, or show what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from epan.cli.building import telling
from epan.cli.output import print_table

__all__ = ["data"]


def data(
    path: str,
    /,
    *,
    tokenizer: str | None = None,
    out: Path | None = None,
    split: str = "auto",
    validation: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    test: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    field: str = "text",
    errors: str = "strict",
    limit: int | None = None,
    workers: int | None = None,
) -> int:
    """Turn text into tokens, or show those of a text that is built already: documents, tokens, bytes per token, hash.

    `epan train --text PATH` does it by itself; with --out the folder can be taken elsewhere, as `--text FOLDER`.

    Parameters
    ----------
    path: A file, a folder, a glob, hf:NAME for a data set of the Hugging Face hub, or a folder of tokens.
    tokenizer: bytes (default), bpe:size=8192, hf:NAME, or the path of a tokenizer.json.
    out: Folder for the tokens (default: one in the cache).
    split: What is held out: auto, every:N (one document in N), hash, tail (the ends of documents), none or all.
    validation: File names, globs of them, or paths of other files, held out for validation (repeatable).
    test: The same for the test.
    field: Of JSON lines and data sets, which has the text.
    errors: replace writes a mark for bytes that are no UTF-8; strict (default) stops.
    limit: Documents of a data set that are read, at most.
    workers: Processes (default: one a core).
    """
    from epan.data.building import Request, build, prepare
    from epan.data.corpus import Corpus

    request = Request(path, tokenizer, split, validation, test, field, errors, limit)
    with telling() as tell:
        folder = (
            prepare(request, workers=workers, tell=tell)
            if out is None
            else build(request, out, workers=workers, tell=tell)
        )
    corpus = Corpus(folder)
    manifest = corpus.manifest
    facts = manifest["tokenizer"]
    print(f"text        {manifest['text']}")
    print(f"tokenizer   {facts['name']}, {facts['vocab_size']:,} tokens")
    print(f"held out    by {manifest['split']}")
    print(f"hash        {manifest['hash']}")
    print(f"tokens in   {folder}")
    print()
    print_table(
        ("split", "documents", "tokens", "bytes", "bytes/token"), [_row(*item) for item in manifest["splits"].items()]
    )
    held = [file for file in manifest["files"] or () if file["splits"] not in (["train"], [])]
    if 0 < len(held) <= 20 and manifest["split"] != "tail":
        print("\nheld out: " + ", ".join(f"{file['name']} ({', '.join(file['splits'])})" for file in held))
    return 0


def _row(split: str, part: dict[str, Any]) -> list[str]:
    ratio = f"{part['bytes'] / part['tokens']:.3f}" if part["tokens"] else "-"
    return [split, f"{part['documents']:,}", f"{part['tokens']:,}", f"{part['bytes']:,}", ratio]
