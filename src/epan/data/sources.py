"""Which files are the text, and how they are divided among shards: a plan that is a function of their content alone."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EpanError
from .splitting import SPLITS, Rule

__all__ = ["File", "Piece", "Plan", "documents", "find_files", "make_plan"]

TEXT, LINES = "text", "lines"
_ENDINGS = {".txt": TEXT, ".text": TEXT, ".md": TEXT, ".jsonl": LINES, ".ndjson": LINES}
_SPACE = b" \n\t\r"
_MARK = b"\xef\xbb\xbf"
# Bytes of text of a shard: at least, and at most where there would be more than so many shards.
LEAST_SHARD, MOST_SHARD, SHARDS = 1 << 22, 1 << 28, 1024
_BLOCK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of text: one document, or one JSON object a line, each a document.

    Attributes
    ----------
    path: where it is. name: what it is called, relative to what was asked for, with slashes.
    kind: "text" or "lines". size: bytes. sha256: of its content.
    documents: how many there are in it; blank lines are none.
    """

    path: str
    name: str
    kind: str
    size: int
    sha256: str
    documents: int


@dataclass(frozen=True)
class Piece:
    """Part of a file, in bytes; both ends move on to the next place where it may be cut.

    Attributes
    ----------
    file: its number. start, stop: where it lies. begins: whether a document begins there.
    first: number of its first document, among those of all files.
    split: to which split it belongs; None where each line decides for itself.
    """

    file: int
    start: int
    stop: int
    begins: bool
    first: int
    split: str | None


@dataclass(frozen=True)
class Plan:
    """Everything that decides which tokens come out, apart from the tokenizer.

    Attributes
    ----------
    files, shards: what is read, and by which shard. rule: how lines are divided among the splits.
    field: of a JSON object, which has the text. errors: "strict" or "replace", for bytes that are no UTF-8.
    """

    files: tuple[File, ...]
    shards: tuple[tuple[Piece, ...], ...]
    rule: Rule
    field: str
    errors: str

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The plan of ``to_dict``."""
        files = tuple(File(**file) for file in values["files"])
        shards = tuple(tuple(Piece(**piece) for piece in shard) for shard in values["shards"])
        return cls(files, shards, Rule(**values["rule"]), values["field"], values["errors"])

    def identity(self) -> str:
        """What the plan depends on but for where the files lie."""
        files = [(file.name, file.kind, file.sha256) for file in self.files]
        pieces = [[asdict(piece) for piece in shard] for shard in self.shards]
        content = [files, pieces, asdict(self.rule), self.field, self.errors]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------- which files


def find_files(path: str) -> list[tuple[Path, str]]:
    """The files that ``path`` means and their names, sorted by name: a file, a folder (all below it) or a glob.

    Raises
    ------
    EpanError: nothing is there, or a folder without text.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [(place, place.name)]
    if place.is_dir():
        below = (item for item in place.rglob("*") if item.suffix.lower() in _ENDINGS and item.is_file())
        found = [(item, item.relative_to(place).as_posix()) for item in below]
        found = [(item, name) for item, name in found if not any(part.startswith(".") for part in name.split("/"))]
        if not found:
            raise EpanError(
                "The folder has no text", found=str(place), allowed=f"files that end in {', '.join(_ENDINGS)}",
                fix="give a glob, such as 'folder/*', for files of other names",
            )  # fmt: skip
        return sorted(found, key=lambda pair: pair[1])
    matches = [Path(match) for match in glob.glob(str(place), recursive=True) if Path(match).is_file()]
    if not matches:
        raise EpanError(
            "There is no such text", found=str(path),
            allowed="a file, a folder, a glob, or hf:NAME for a data set of the Hugging Face hub",
        )  # fmt: skip
    names = [match.as_posix() for match in matches]
    shared = len(names[0].rpartition("/")[0]) + 1 if len(names) == 1 else _shared_folder(names)
    return sorted(
        ((match, name[shared:]) for match, name in zip(matches, names, strict=True)), key=lambda pair: pair[1]
    )


def _shared_folder(names: Sequence[str]) -> int:
    """Length of the folder that all names share, with its slash."""
    shortest = min(names)
    length = next((i for i, char in enumerate(shortest) if any(name[i : i + 1] != char for name in names)), 0)
    return shortest.rfind("/", 0, length) + 1


def _look_at(path: Path, name: str) -> File:
    """Hash a file, and count its documents."""
    kind = _ENDINGS.get(path.suffix.lower(), TEXT)
    digest, size, lines = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            for block in file if kind == LINES else iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
                size += len(block)
                lines += bool(block.strip())
    except OSError as error:
        raise EpanError(f"The text cannot be read: {error.strerror}", found=str(path)) from error
    if not lines:
        fix = "remove the file, or give a glob that leaves it out"
        raise EpanError("A file of the text is empty", found=str(path), fix=fix)
    return File(str(path.resolve()), name, kind, size, digest.hexdigest(), lines if kind == LINES else 1)


# ---------------------------------------------------------------------- the plan


def make_plan(
    files: Iterable[tuple[Path, str]],
    *,
    split: str = "auto",
    held_out: dict[str, Sequence[str]] | None = None,
    field: str = "text",
    errors: str = "strict",
) -> Plan:
    """How the text of ``files`` is split and divided among shards.

    Parameters
    ----------
    split: as :func:`epan.data.splitting.choose`.
    held_out: names, globs of names, or paths of further files, which alone make the splits "validation" and "test".

    Raises
    ------
    EpanError: a file that is empty or cannot be read, a pattern that fits none, or a split without text.
    """
    given = [_look_at(path, name) for path, name in files]
    fixed: dict[int, str] = {}
    for name, patterns in (held_out or {}).items():
        for pattern in patterns:
            numbers = [i for i, file in enumerate(given) if fnmatch.fnmatchcase(file.name, pattern)]
            if not numbers:
                numbers = _further(given, pattern, name)
            for number in numbers:
                if fixed.setdefault(number, name) != name:
                    raise EpanError(
                        "A file is held out twice", found=f"{given[number].name} in {fixed[number]} and {name}"
                    )
    rule = Rule("none", 0, 0) if fixed else Rule.choose(split, sum(file.documents for file in given))
    if rule.kind == "tail" and any(file.kind == LINES for file in given):
        raise EpanError(
            "There are too few documents to hold some out",
            found=f"{sum(file.documents for file in given)} in JSON lines",
            fix="name files for validation and test, or give more documents",
        )
    total = sum(file.size for file in given)
    most = max(LEAST_SHARD, min(MOST_SHARD, total // SHARDS))
    pieces: list[Piece] = []
    first = 0
    for number, file in enumerate(given):
        part = fixed.get(number)
        pieces += _lines(number, file, first, most, part or ("train" if fixed else None)) if file.kind == LINES else [
            piece for name, start, stop in _spans(file, rule, first, part)
            for piece in _cut(number, start, stop, first, most, name)
        ]  # fmt: skip
        first += file.documents
    return Plan(tuple(given), tuple(_shards(pieces, most)), rule, field, errors)


def _further(given: list[File], pattern: str, split: str) -> list[int]:
    """Take in the files that a path outside of the text means."""
    try:
        found = find_files(pattern)
    except EpanError:
        raise EpanError(
            f"What is held out for {split} is neither a name in the text nor a path",
            found=pattern,
            allowed=[file.name for file in given[:20]],
        ) from None
    given += [_look_at(path, name) for path, name in found]
    return list(range(len(given) - len(found), len(given)))


def _spans(file: File, rule: Rule, first: int, part: str | None) -> list[tuple[str, int, int]]:
    """The splits of a text file, and where they lie in it."""
    if part is not None:
        return [(part, 0, file.size)]
    if rule.kind != "tail":
        return [(rule.split_of(first, file.sha256), 0, file.size)]
    cuts = [0, file.size * 90 // 100, file.size * 95 // 100, file.size]
    return [(name, *cuts[i : i + 2]) for i, name in enumerate(SPLITS)]  # type: ignore[misc]


def _cut(number: int, start: int, stop: int, first: int, most: int, split: str) -> Iterator[Piece]:
    for place in range(start, stop, most):
        yield Piece(number, place, min(place + most, stop), place == start, first, split)


def _lines(number: int, file: File, first: int, most: int, split: str | None) -> Iterator[Piece]:
    """Pieces of whole lines, and the number of the first document of each."""
    start = place = 0
    begun = first
    with Path(file.path).open("rb") as lines:
        for line in lines:
            place += len(line)
            first += bool(line.strip())
            if place - start >= most:
                yield Piece(number, start, place, True, begun, split)
                start, begun = place, first
    if place > start:
        yield Piece(number, start, place, True, begun, split)


def _shards(pieces: Iterable[Piece], most: int) -> Iterator[tuple[Piece, ...]]:
    shard: list[Piece] = []
    size = 0
    for piece in pieces:
        if shard and size + piece.stop - piece.start > most:
            yield tuple(shard)
            shard, size = [], 0
        shard.append(piece)
        size += piece.stop - piece.start
    if shard:
        yield tuple(shard)


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Passage:
    """Text that is tokenised as a whole: a document, or part of a long one; ``bytes`` of UTF-8."""

    text: str
    split: str
    begins: bool
    bytes: int


def documents(plan: Plan, piece: Piece) -> Iterator[Passage]:
    """The text of a piece; empty documents are left out.

    Raises
    ------
    EpanError: bytes that are no UTF-8, a line that is no JSON object with text in the field; the place is named.
    """
    file = plan.files[piece.file]
    try:
        if file.kind == LINES:
            yield from _read_lines(plan, file, piece)
            return
        with Path(file.path).open("rb") as opened:
            start = 0 if piece.start == 0 else _cutting_place(opened, piece.start)
            stop = file.size if piece.stop >= file.size else _cutting_place(opened, piece.stop)
            opened.seek(start)
            content = opened.read(stop - start)
    except OSError as error:
        raise EpanError(f"The text cannot be read: {error.strerror}", found=file.path) from error
    if len(content) != stop - start:
        raise EpanError("The text changed while it was read", found=file.path, fix="start again")
    if start == 0 and content.startswith(_MARK):
        start, content = len(_MARK), content[len(_MARK) :]
    if content:
        assert piece.split is not None
        text = _with_plain_ends(_decoded(content, file, start, plan.errors))
        yield Passage(text, piece.split, piece.begins, len(text.encode()))


def _cutting_place(file: Any, place: int) -> int:
    """The first place from ``place`` on where a blank follows something else, or the end of the file.

    No word is cut there, no character either, and for a byte-level BPE the tokens are those of the whole text.
    """
    file.seek(place - 1)
    before = file.read(1)
    while block := file.read(1 << 16):
        for byte in block:
            if byte in _SPACE and before not in (b" ", b"\n", b"\t", b"\r"):
                return place
            before = bytes((byte,))
            place += 1
    return place


def _decoded(content: bytes, file: File, start: int, errors: str) -> str:
    try:
        return content.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise EpanError(
            "A file of the text is no UTF-8",
            found=f"byte {content[error.start]:#04x} at offset {start + error.start:,} of {file.path}",
            fix="convert it to UTF-8, or set errors=replace, which writes � there",
        ) from None


def _with_plain_ends(text: str) -> str:
    """Lines that end in CR LF end in LF, as where Python opens a file of text."""
    return text.replace("\r\n", "\n")


def _read_lines(plan: Plan, file: File, piece: Piece) -> Iterator[Passage]:
    with Path(file.path).open("rb") as opened:
        opened.seek(piece.start)
        place, number = piece.start, piece.first
        while place < piece.stop and (line := opened.readline()):
            if line.strip():
                text = _text_of(line, file, place, plan)
                if text:
                    # A lone half of a surrogate pair, which JSON may write, is no text.
                    content = _with_plain_ends(text).encode("utf-8", "replace")
                    digest = hashlib.sha256(content).hexdigest()
                    yield Passage(
                        content.decode(), piece.split or plan.rule.split_of(number, digest), True, len(content)
                    )
                number += 1
            place += len(line)


def _text_of(line: bytes, file: File, place: int, plan: Plan) -> str:
    where = f"the line at offset {place:,} of {file.path}"
    decoded = _decoded(line.removeprefix(_MARK) if place == 0 else line, file, place, plan.errors)
    try:
        value = json.loads(decoded)
    except ValueError as error:
        raise EpanError(f"A line of the text is no JSON: {error}", found=where) from None
    if not isinstance(value, dict) or not isinstance(value.get(plan.field), str):
        keys = [key for key, held in value.items() if isinstance(held, str)] if isinstance(value, dict) else None
        raise EpanError(
            f"A line of the text has no text in the field {plan.field!r}",
            found=where,
            allowed=keys or "a JSON object with a field of text",
            fix="name the field with --set task.options.field=NAME" if keys else None,
        )
    return str(value[plan.field])
