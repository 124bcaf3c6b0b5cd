"""Errors that tell a run that went wrong from a setting that is wrong."""

from __future__ import annotations

from pathlib import Path

from epan.errors import EpanError

__all__ = ["TrainingError", "unusable_folder"]


class TrainingError(EpanError):
    """A run that was set up correctly and failed on the way, such as a loss that is no longer finite.

    The run folder keeps its record (status ``failed``) and its last good checkpoint.
    """


def unusable_folder(path: Path, error: OSError) -> EpanError:
    """What is told of an output folder that cannot be created, read or written."""
    return EpanError(
        f"The output folder cannot be used: {error.strerror}",
        found=str(path),
        fix="give a folder that you may write to",
    )
