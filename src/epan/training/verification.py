"""Whether what runs left on the disk is whole: every byte of checkpoints, every line of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from epan.errors import EpanError
from epan.training import checkpoint as checkpoints
from epan.training import records
from epan.training.config import RunConfig
from epan.training.loading import best_length, build_task
from epan.training.retention import ranking
from epan.training.untrusted import shown

__all__ = ["Finding", "verify"]


@dataclass(frozen=True)
class Finding:
    """What was found at ``path``: "good", "damaged", or a "note" on what is neither; ``text`` says it for people."""

    path: Path
    status: Literal["good", "damaged", "note"]
    text: str


def verify(path: str | Path) -> Iterator[Finding]:
    """Check a checkpoint folder, a run folder, or all run folders in a folder; one finding after the other.

    Of a checkpoint: the manifest against its own hash, size and SHA-256 of every file against the manifest, the hash of
    the config against the config. Of a run: its record, line by line, and every checkpoint. Nothing is changed, and no
    file is unpickled.

    Raises
    ------
    EpanError: there is neither a run nor a checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise EpanError("Nothing there to verify", found=str(path), fix="give a run folder, or RUN/checkpoints/step-…")
    if (path / checkpoints.MANIFEST).exists() or path.parent.name == checkpoints.FOLDER:
        yield _checkpoint(path)
        return
    runs = sorted({file.parent for name in (records.FILE_NAME, checkpoints.FOLDER) for file in path.rglob(name)})
    if not runs:
        raise EpanError(
            "No run and no checkpoint there", found=str(path), fix="give a run folder, or RUN/checkpoints/step-…"
        )
    for run in runs:
        yield from _run(run)


def _run(run: Path) -> Iterator[Finding]:
    record = run / records.FILE_NAME
    entries: list[records.Entry] = []
    if record.exists():
        yield _record(record, entries)
    else:
        yield Finding(record, "damaged", "the record is missing: the run cannot be resumed or reported")
    found = checkpoints.list_checkpoints(run)
    for folder in found:
        yield _checkpoint(folder, entries)
    if not found:
        yield Finding(run / checkpoints.FOLDER, "note", "no checkpoint was saved yet")
    for folder in sorted((run / checkpoints.FOLDER).glob("damaged-step-*")):
        yield Finding(folder, "note", "was set aside as damaged when the run was resumed; it may be removed")
    for folder in checkpoints.litter(run):
        yield Finding(
            folder,
            "note",
            "was left half written or half removed by a session that was killed; the next one removes it",
        )


def _record(record: Path, entries: list[records.Entry]) -> Finding:
    """Reads the record into ``entries``."""
    try:
        entries += records.read(record.parent)
        status = records.summary(entries)
        records.header(entries, record.parent)
    except EpanError as error:
        return Finding(record, "damaged", str(error))
    torn = [entry for entry in entries if entry.get("event") == "torn"]
    text = f"{len(entries)} lines, {status.status} at step {status.step} of {status.steps}"
    return Finding(record, "good", text + (f"; {torn[0]['message']}" if torn else ""))


def _checkpoint(folder: Path, entries: Sequence[records.Entry] = ()) -> Finding:
    try:
        manifest = checkpoints.verify(folder)
    except EpanError as error:
        return Finding(folder, "damaged", error.what)
    files: dict[str, Any] = manifest["files"]
    size = sum(file["bytes"] for file in files.values())
    text = f"step {manifest['step']}, {len(files)} files, {size / 2**20:.1f} MiB, SHA-256 as written"
    try:
        config = RunConfig.from_dict(manifest["config"])
        known = config.to_dict() == manifest["config"]
    except (EpanError, KeyError, TypeError):
        known = False
    # What keys there are enters the hash, so that other versions have others.
    if not known:
        return Finding(folder, "good", f"{text}; its config is that of another version of epan")
    if config.hash() != manifest["config_hash"]:
        return Finding(folder, "damaged", "the hash of the config is not that of the config")
    return Finding(folder, "good", text + _rank(config, manifest["step"], entries))


def _rank(config: RunConfig, step: int, entries: Sequence[records.Entry]) -> str:
    """What makes a checkpoint one of the best that the run keeps; nothing of the others."""
    if not config.keep_best:
        return ""
    try:
        task = build_task(config)
        length = best_length(config, task)
    except (EpanError, TypeError) as error:
        return f"; which is the best cannot be said: {shown(str(error))}"
    places = ranking(entries, config, length, task.tested_split)[: config.keep_best]
    found = [(number, place) for number, place in enumerate(places, start=1) if place.step == step]
    return "".join(f"; number {number} of the best, {place}" for number, place in found)
