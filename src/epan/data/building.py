"""From text to a folder of tokens: plan, tokenizer, shards side by side, and one rename that publishes it all.

Everything happens in a folder NAME.building. A shard counts when its tokens have the hash that its index tells, so a build
that was killed goes on; the folder gets its name when all is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import _cache
from .._version import __version__
from ..errors import EpanError
from .shards import Part, publish, read_shard, write_shard
from .sources import Plan, documents, find_files, make_plan
from .splitting import SPLITS
from .tokenizing import FILE_NAME, Tokenizer, bpe_size, check_spec, load_tokenizer, train_bpe
from .worker import PLAN

__all__ = ["MANIFEST", "Request", "build", "data_hash", "is_built", "prepare", "read_manifest"]

MANIFEST = "manifest.json"
SCHEMA = 1
# A BPE is trained on documents of about so many bytes, evenly from all of the text.
BPE_BYTES = 1 << 26
# Files that a manifest lists.
LISTED = 10_000
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """Which text, and what becomes of it.

    Attributes
    ----------
    path: a file, a folder, a glob, "hf:NAME" or "hf:NAME:SUBSET", or a folder that :func:`build` made.
    tokenizer: "bytes" (also None), "bpe:size=N", "hf:NAME", or the path of a tokenizer.
    split: which documents are held out, as :meth:`epan.data.splitting.Rule.choose`.
    validation, test: file names, globs of them, or paths of other files, that are held out in place of that.
    field: of JSON lines and data sets, which has the text.
    errors: "strict", or "replace" to write � for bytes that are no UTF-8.
    limit: documents of a data set that are read, at most.
    """

    path: str
    tokenizer: str | None = None
    split: str = "auto"
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    field: str = "text"
    errors: str = "strict"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.errors not in ("strict", "replace"):
            raise EpanError(
                "Unknown way to take bytes that are no UTF-8", found=self.errors, allowed=["strict", "replace"]
            )
        if self.tokenizer is not None:
            check_spec(self.tokenizer)


def is_built(path: str | Path) -> bool:
    """Whether ``path`` is a folder of tokens."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is in a folder of tokens.

    Raises
    ------
    EpanError: no such folder, or a damaged one.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["schema"] != SCHEMA or values["hash"] != data_hash(values):
            raise ValueError("its hash is another")
    except OSError as error:
        raise EpanError(f"The manifest of the tokens cannot be read: {error.strerror}", found=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise EpanError(
            f"The manifest of the tokens is damaged: {error}",
            found=str(path),
            fix="remove the folder and build it anew",
        ) from None
    assert isinstance(values, dict)
    return values


def data_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 over the tokenizer and the tokens of all splits: equal hashes, equal data, wherever they came from."""
    splits = {name: [part["tokens"], part["sha256"]] for name, part in manifest["splits"].items()}
    content = [manifest["tokenizer"]["sha256"], manifest["tokenizer"]["document"], manifest["bytes_per_token"], splits]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prepare(request: Request, *, workers: int | None = None, tell: Tell | None = None) -> Path:
    """The folder of tokens of a request: the one it names, the one in the cache, or one that is built there now.

    Raises
    ------
    EpanError: as :func:`build`; a folder of tokens with another tokenizer than the one that is asked for.
    """
    if not is_built(request.path):
        return build(request, workers=workers, tell=tell)
    folder = Path(request.path).expanduser()
    made_by = read_manifest(folder)["tokenizer"]["name"]
    if request.tokenizer not in (None, made_by):
        raise EpanError(
            "The folder of tokens was made with another tokenizer", found=f"{made_by}, {request.tokenizer} asked for",
            fix="leave the tokenizer out, or give the text itself",
        )  # fmt: skip
    return folder


def build(
    request: Request, out: str | Path | None = None, *, workers: int | None = None, tell: Tell | None = None
) -> Path:
    """Tokenise the text of a request, or find that it is done; returns the folder of tokens.

    Parameters
    ----------
    out: the folder; None for one in the cache whose name follows from the content.
    workers: processes; None for one a core.
    tell: is given what is being done ("reading", "training", "tokenising"), how much is done, and how much there is.

    Raises
    ------
    EpanError: text that is missing, empty or no UTF-8, a tokenizer that is not there, or a folder that cannot be used.
        Nothing is left then. Whoever is killed or interrupted leaves finished shards, and the next call goes on from them.
    """
    say: Tell = tell or (lambda what, done, total: None)
    path, field = request.path, request.field
    if path.startswith("hf:"):
        from .hub import fetch

        path, field = str(fetch(path.removeprefix("hf:"), field, request.limit, say)), "text"
    held_out = {name: patterns for name in SPLITS[1:] if (patterns := getattr(request, name))}
    plan = make_plan(find_files(path), split=request.split, held_out=held_out, field=field, errors=request.errors)
    spec = request.tokenizer or "bytes"
    given = None if bpe_size(spec) else load_tokenizer(spec)
    wanted = _hash([SCHEMA, plan.identity(), spec if given is None else given.hash()])
    folder = _place(request, wanted) if out is None else Path(out).expanduser()
    if is_built(folder):
        if read_manifest(folder)["request"] == wanted:
            return folder
        raise EpanError("The folder holds other tokens", found=str(folder), fix="give another folder, or remove it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EpanError("The folder for the tokens is not empty", found=str(folder), fix="give an empty or new folder")
    work = folder.with_name(f"{folder.name}.building")
    try:
        _begin(work, wanted)
        manifest = _finished(work, wanted)
        if manifest is None:
            tokenizer = _tokenizer(work, plan, spec, given, say)
            identity = _hash([wanted, tokenizer.hash()])
            publish(work / PLAN, json.dumps({"request": wanted, "identity": identity, "plan": plan.to_dict()}))
            _tokenise(work, plan, tokenizer, identity, workers or _cores(), say)
            _merge(work, plan, tokenizer, identity, {
                "request": wanted, "text": request.path, "split": "files" if held_out else plan.rule.kind,
            })  # fmt: skip
        for pattern in ("shard-*", PLAN, "*.tmp"):
            for item in work.glob(pattern):
                item.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        os.replace(work, folder)
    except (EpanError, OSError) as error:
        # Another process may have built the same meanwhile, in the same folder.
        if is_built(folder) and read_manifest(folder)["request"] == wanted:
            return folder
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, EpanError):
            raise
        raise EpanError(f"The tokens cannot be written: {error.strerror}", found=str(folder)) from error
    return folder


def _hash(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _place(request: Request, wanted: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", request.path.removeprefix("hf:").rstrip("/").rpartition("/")[2]).strip("-.")
    return _cache.folder() / "text" / f"{name or 'text'}-{wanted[:16]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(work: Path, wanted: str) -> None:
    """The folder to work in; what a build of something else has left there goes."""
    if work.exists():
        try:
            known = json.loads((work / PLAN).read_text("utf-8"))["request"]
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        ours = any((work / name).exists() for name in (PLAN, FILE_NAME, MANIFEST)) or not any(work.iterdir())
        if not ours:
            raise EpanError(
                "The folder for the work is not empty", found=str(work), fix="remove it, or give another folder"
            )
        if known != wanted:
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / PLAN).exists():
        publish(work / PLAN, json.dumps({"request": wanted}))


def _finished(work: Path, wanted: str) -> dict[str, Any] | None:
    """The manifest of a build that was killed just before its last step."""
    if not is_built(work):
        return None
    manifest = read_manifest(work)
    return manifest if manifest["request"] == wanted else None


def _tokenizer(work: Path, plan: Plan, spec: str, given: Tokenizer | None, say: Tell) -> Tokenizer:
    """The tokenizer, in the folder; what a killed build of the same request has trained is taken."""
    path, size = work / FILE_NAME, bpe_size(spec)
    if size is None:
        assert given is not None
        publish(path, given.to_json())
    elif not path.exists():
        publish(path, train_bpe(_sample(plan, say), size).to_json())
    found = load_tokenizer(path)
    found.name = spec
    return found


def _sample(plan: Plan, say: Tell) -> Iterator[str]:
    """Training text for a BPE: all of it, or evenly spaced pieces where there is much."""
    pieces = [piece for shard in plan.shards for piece in shard if piece.split in (None, "train")]
    if not pieces:
        raise EpanError("No text is left to train a tokenizer on", fix="hold out less")
    total = sum(piece.stop - piece.start for piece in pieces)
    wanted = min(total, BPE_BYTES)
    done = taken = 0
    for piece in pieces:
        size = piece.stop - piece.start
        # A piece is taken while what is taken lags behind its share of what has passed.
        if taken <= done * wanted // max(1, total):
            yield from (passage.text for passage in documents(plan, piece) if passage.split == "train")
            taken += size
            say("training", min(taken, wanted), wanted)
        done += size


# ---------------------------------------------------------------------- shards, side by side


def _tokenise(work: Path, plan: Plan, tokenizer: Tokenizer, identity: str, workers: int, say: Tell) -> None:
    sizes = [sum(piece.stop - piece.start for piece in shard) for shard in plan.shards]
    missing = [number for number in range(len(sizes)) if read_shard(work, number, identity) is None]
    done, total = sum(sizes) - sum(sizes[number] for number in missing), sum(sizes)
    say("tokenising", done, total)
    count = min(workers, len(missing))
    finished: Iterable[int] = (
        _one_by_one(work, plan, tokenizer, identity, missing) if count < 2 else _by_processes(work, missing, count)
    )
    for number in finished:
        done += sizes[number]
        say("tokenising", done, total)


def _one_by_one(work: Path, plan: Plan, tokenizer: Tokenizer, identity: str, missing: Sequence[int]) -> Iterator[int]:
    for number in missing:
        write_shard(work, plan, number, tokenizer, identity)
        yield number


class _Outcome(NamedTuple):
    number: int
    error: dict[str, Any] | None


def _by_processes(work: Path, missing: Sequence[int], count: int) -> Iterator[int]:
    """The numbers of shards as worker processes finish them, in any order."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in missing:
        todo.put(number)
    outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    command = [sys.executable, "-m", "epan.data.worker", str(work)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in processes:
        threading.Thread(target=_feed, args=(process, todo, outcomes), daemon=True).start()
    try:
        for _ in missing:
            outcome = outcomes.get()
            if outcome.error:
                raise EpanError(outcome.error.pop("what"), **outcome.error)
            yield outcome.number
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _feed(process: subprocess.Popen[str], todo: queue.SimpleQueue[int], outcomes: queue.SimpleQueue[_Outcome]) -> None:
    """Give one process a shard after the other, until none is left or it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    while True:
        try:
            number = todo.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            said = process.stderr.read().strip().splitlines()
            why = said[-1] if said else f"status {process.wait()}"
            outcomes.put(
                _Outcome(
                    number,
                    {
                        "what": "A process that tokenises has ended",
                        "found": why,
                        "fix": "start again; what is done stays",
                    },
                )
            )
            return
        outcomes.put(_Outcome(number, answer or None))


# ---------------------------------------------------------------------- the result


def _merge(work: Path, plan: Plan, tokenizer: Tokenizer, identity: str, facts: dict[str, Any]) -> None:
    """Put the shards together, a file for each split, and write the manifest."""
    width = 2 if tokenizer.typecode == "H" else 4
    totals = {name: {"documents": 0, "tokens": 0, "bytes": 0} for name in SPLITS}
    by_file: dict[int, dict[str, Any]] = {}
    digests = {name: hashlib.sha256() for name in SPLITS}
    with contextlib.ExitStack() as stack:
        written = {name: stack.enter_context((work / f"{name}.bin.tmp").open("wb")) for name in SPLITS}
        for number in range(len(plan.shards)):
            found = read_shard(work, number, identity)
            if found is None:
                raise EpanError("A shard has vanished", found=f"number {number} in {work}", fix="start again")
            place = 0
            for part in found[0].parts:
                content = found[1][place : place + width * part.tokens]
                place += width * part.tokens
                written[part.split].write(content)
                digests[part.split].update(content)
                _count(totals[part.split], part)
                file = plan.files[part.file]
                listed = by_file.setdefault(
                    part.file,
                    {"name": file.name, "sha256": file.sha256, "splits": [], "documents": 0, "tokens": 0, "bytes": 0},
                )
                listed["splits"] = [name for name in SPLITS if name in {*listed["splits"], part.split}]
                _count(listed, part)
        for stream in written.values():
            stream.flush()
            os.fsync(stream.fileno())
    for name in SPLITS:
        os.replace(work / f"{name}.bin.tmp", work / f"{name}.bin")
    if not any(total["tokens"] for total in totals.values()):
        raise EpanError("All documents of the text are empty", found=facts["text"])
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "epan": __version__,
        **facts,
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "document": tokenizer.document,
            "sha256": tokenizer.hash(),
        },
        "bytes_per_token": width,
        "splits": {name: {**totals[name], "sha256": digests[name].hexdigest()} for name in SPLITS},
        "files": [by_file[number] for number in sorted(by_file)] if len(by_file) <= LISTED else None,
    }
    manifest["hash"] = data_hash(manifest)
    publish(work / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _count(into: dict[str, Any], part: Part) -> None:
    for name in ("documents", "tokens", "bytes"):
        into[name] += getattr(part, name)
