"""Whether a run may start, or go on, in a folder. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from epan.errors import EpanError
from epan.training import claims, records
from epan.training.config import OPERATIONAL, RunConfig
from epan.training.errors import unusable_folder
from epan.training.parsing import differences

__all__ = ["Resume", "RunFolder", "check_data", "is_claim", "open_folder"]

Resume = Literal["never", "require", "auto"]


@dataclass(frozen=True)
class RunFolder:
    """A run folder as it was found: ``new``, ``started`` (interrupted, killed, failed) or ``finished``; its record."""

    path: Path
    state: Literal["new", "started", "finished"]
    entries: list[records.Entry] = field(default_factory=list)


def open_folder(config: RunConfig, out: str | Path, resume: Resume) -> RunFolder:
    """Check that the run of ``config`` may use the folder ``out``, and create it.

    Raises
    ------
    EpanError: it holds a run and ``resume`` is "never"; the run in it has another config (the differences are
        listed); it holds none and ``resume`` is "require"; it holds something else; it cannot be created or written.
    """
    if resume not in ("never", "require", "auto"):
        raise EpanError("Unknown way to resume", found=resume, allowed=["never", "require", "auto"])
    path = Path(out)
    record = path / records.FILE_NAME
    # Looked for before the record, because a run that begins meanwhile writes that first.
    others = _others(path)
    entries = records.read(path) if record.is_file() else []
    found = [entry for entry in entries if entry["kind"] == "run"]
    if found:
        return _existing(config, path, resume, entries, found[0])
    if resume == "require":
        raise EpanError(
            "There is no run to resume", found=str(path), fix="give the folder of a started run, or start anew"
        )
    try:
        if others:
            raise EpanError(
                "The output folder is not empty and holds no run",
                found=f"{others[0].name!r} in {path}",
                fix="give an empty or new folder",
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(path, error) from error
    return RunFolder(path, "new")


def check_data(entries: list[records.Entry], path: Path, found: str | None) -> None:
    """Check that a run still has the data that it learnt from, where those lie in files.

    Parameters
    ----------
    entries: the record of the run in the folder ``path``. found: the hash of the data as they are, None for none in files.

    Raises
    ------
    EpanError: they are other data.
    """
    known = records.header(entries, path).get("data_hash")
    if found is not None and known != found:
        raise EpanError(
            "The text of the run is not the one that it learnt from",
            found=f"data hash {found[:16]}…, {str(known)[:16]}… in {path}",
            fix="restore the text, or start a new run",
        )


def _others(path: Path) -> list[Path]:
    """What is in the folder beside a record and a claim, which is all that a run leaves that was killed at once."""
    try:
        return [item for item in path.iterdir() if item.name != records.FILE_NAME and not is_claim(item)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable_folder(path, error) from error


def is_claim(item: Path) -> bool:
    """Whether an item of a run folder is the claim of a process on it."""
    return item.name == claims.NAME or item.name.startswith(f"{claims.NAME}-")


def _existing(
    config: RunConfig, path: Path, resume: Resume, entries: list[records.Entry], head: records.Entry
) -> RunFolder:
    status = records.summary(entries)
    if resume == "never":
        raise EpanError(
            "The output folder already holds a run",
            found=f"{status.label or 'a run'}, {status.status} at step {status.step}, in {path}",
            fix="resume it, or give another folder",
        )
    if head.get("config_hash") != config.hash():
        changed = differences(head.get("config", {}), config.to_dict())
        changed = [line for line in changed if line.partition(":")[0] not in OPERATIONAL]
        raise EpanError(
            "The run in the output folder has another config",
            found="; ".join(changed) or f"a config of another version of epan in {path}",
            fix="resume with the config that it was started with, or give another folder",
        )
    return RunFolder(path, "finished" if status.status == "finished" else "started", entries)
