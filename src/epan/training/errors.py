"""Errors that tell a run that went wrong from a setting that is wrong."""

from __future__ import annotations

from epan.errors import EpanError

__all__ = ["TrainingError"]


class TrainingError(EpanError):
    """A run that was set up correctly and failed on the way, such as a loss that is no longer finite.

    The run folder keeps its record (status ``failed``) and its last good checkpoint.
    """
