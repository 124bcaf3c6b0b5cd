"""Room for a demo: its own folder goes on, that of another demo is moved aside, everything else is left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from epan.errors import EpanError

if TYPE_CHECKING:
    from epan.training import RunConfig

__all__ = ["make_room"]

# What file managers leave in every folder that they show.
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")


def make_room(out: Path, planned: list[RunConfig]) -> None:
    """See to it that ``out`` holds nothing, or runs of ``planned`` alone.

    A folder is moved aside only if every item of it was made by epan: run folders with a record, ``report``,
    ``.sweep``.

    Raises
    ------
    EpanError: ``out`` is a file, holds something else, or cannot be read or moved; nothing has been changed.
    """
    try:
        if not out.exists():
            return
        if not out.is_dir():
            raise EpanError("The output is a file, not a folder", found=str(out), fix="give another one with --out")
        items = sorted(item for item in out.iterdir() if item.name not in LITTER)
        wanted = {config.label: config.hash() for config in planned}
        foreign = [item for item in items if not _of_epan(item, wanted)]
    except OSError as error:
        raise _unusable(out, error) from error
    if not items:
        return
    if foreign or all(item.name == "report" for item in items):
        raise EpanError(
            "The output folder holds something that epan did not make, and is left as it is",
            found=f"{(foreign or items)[0].name!r} in {out}",
            fix="give a new or empty folder with --out",
        )
    if all(_goes_on(item, wanted) for item in items):
        print(f"Going on with the demo in {out}.")
        return
    _move_aside(out)


def _of_epan(item: Path, wanted: dict[str, str]) -> bool:
    from epan.training.records import FILE_NAME

    if not item.is_dir():
        return False
    # A run that was killed at once leaves its folder empty.
    return item.name in ("report", ".sweep") or (item / FILE_NAME).is_file() or _is_empty_run(item, wanted)


def _is_empty_run(item: Path, wanted: dict[str, str]) -> bool:
    from epan.training.folder import is_claim

    return item.name in wanted and all(is_claim(inside) for inside in item.iterdir())


def _goes_on(item: Path, wanted: dict[str, str]) -> bool:
    """Whether ``item`` belongs to this very demo: a run of it with the same config, or what is made from its runs."""
    from epan.training import records

    if item.name in ("report", ".sweep") or _is_empty_run(item, wanted):
        return True
    if item.name not in wanted:
        return False
    try:
        lines = records.read(item)
    except EpanError:
        return False
    head = next((line for line in lines if line["kind"] == "run"), None)
    return head is None or head.get("config_hash") == wanted[item.name]


def _move_aside(out: Path) -> None:
    if Path.cwd().is_relative_to(out.resolve()):
        raise EpanError(
            "The folder that you are in holds another demo", found=str(out.resolve()), fix="give another one with --out"
        )
    # Not resolved: of a link, the link is moved.
    here = Path(os.path.abspath(out))
    number = 1
    while os.path.lexists(aside := here.with_name(f"{here.name}-{number}")):
        number += 1
    try:
        here.rename(aside)
    except OSError as error:
        raise _unusable(out, error) from error
    print(f"{out} held another demo; it is kept as {aside}.")


def _unusable(out: Path, error: OSError) -> EpanError:
    return EpanError(
        f"The output folder cannot be used: {error.strerror}", found=str(out), fix="give another one with --out"
    )
