"""``epan verify``: whether checkpoints and records are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["verify"]

MARKS = {"good": "ok", "damaged": "DAMAGED", "note": "note"}


def verify(
    path: Annotated[Path, Parameter(help="A run folder, a checkpoint folder, or a folder of run folders.")], /
) -> int:
    """Check every byte of checkpoints against their hashes, and every line of run records; nothing is changed.

    Exit code 0 if all is whole, 1 if anything is damaged.

    Parameters
    ----------
    path: a run folder, a checkpoint folder, or a folder of run folders.
    """
    from epan.training.verification import verify as verify_all

    count = {"good": 0, "damaged": 0, "note": 0}
    for finding in verify_all(path):
        count[finding.status] += 1
        where = finding.path if finding.path == path else finding.path.relative_to(path)
        print(f"  {MARKS[finding.status]:<7}  {where}: {finding.text}", flush=True)
    if not count["damaged"]:
        print(f"All {count['good']} are whole." if count["good"] > 1 else "It is whole.")
        return 0
    print(f"{count['damaged']} damaged, {count['good']} whole.")
    print("A run goes on from its newest checkpoint that is whole: epan train --out RUN --resume")
    return 1
