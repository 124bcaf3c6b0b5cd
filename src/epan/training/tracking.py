"""TensorBoard and trackio beside the record, through accelerate's trackers. The record stays the truth.

What is written to the record is passed on, and a tracker that fails is told of in the record and left out from there: it
ends no run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from epan.errors import EpanError
from epan.training import records
from epan.training.config import TRACKERS

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["TrackedWriter", "check_trackers"]

_STEP = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "support")
_EVAL = ("exact_match", "accuracy", "tvd", "kl", "token_accuracy", "loss", "support_size")


def check_trackers(names: Sequence[str]) -> None:
    """Raise if a tracker's package is not installed.

    Raises
    ------
    EpanError: says what to install.
    """
    for name in names:
        if not _installed(name):
            raise EpanError(
                f"Tracking with {name} needs the package {name}, which is not installed",
                fix=f'pip install ".[{name}]" in a checkout of epan, or pip install {name}, or leave it out of track',
            )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _tensorboard(run: Path, begun: int | None) -> GeneralTracker:
    """Event files in ``RUN/tensorboard``; what a resumed run overtook is hidden."""
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", run, purge_step=None if begun is None else begun + 1)


def _trackio(run: Path, begun: int | None) -> GeneralTracker:
    """A run of the project that is named like the folder of the run folder, in trackio's local database."""
    from accelerate.tracking import TrackioTracker

    place = run.resolve()
    # Nothing of the machine is logged, and nothing leaves it unless the user's own settings of trackio say so.
    options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    return TrackioTracker(place.parent.name or "epan", name=place.name, resume="allow", **options)


_MAKE: dict[str, Callable[[Path, int | None], GeneralTracker]] = {"tensorboard": _tensorboard, "trackio": _trackio}
assert tuple(_MAKE) == TRACKERS


class TrackedWriter:
    """Writes lines to a record, and steps and evaluations to trackers, too.

    Parameters
    ----------
    writer: that of the record; closed with this one.
    names: the trackers.
    run: the run folder.
    tell: is told when a tracker fails.
    """

    def __init__(
        self, writer: records.RecordWriter, names: Sequence[str], run: Path, tell: Callable[[str], None]
    ) -> None:
        self.writer, self.names, self.run, self.tell = writer, names, run, tell
        self._trackers: dict[str, GeneralTracker] = {}

    def write(self, kind: str, *, flush: bool = False, **values: Any) -> records.Entry:
        """Append one line of ``kind`` to the record, and pass it on. Returns the line as it is read back."""
        entry = self.writer.write(kind, flush=flush, **values)
        if kind == "run":
            self._begin(entry, None)
        elif entry.get("event") == "resumed":
            self._begin(entry, entry["step"])
        elif kind == "step":
            self._log({f"train/{key}": entry[key] for key in _STEP}, entry["step"])
        elif kind == "eval":
            length = entry["length"]
            self._log({f"eval/{key}/length {length}": entry.get(key) for key in _EVAL}, entry["step"])
        return entry

    def _begin(self, entry: records.Entry, begun: int | None) -> None:
        def begin(name: str) -> None:
            tracker = _MAKE[name](self.run, begun)
            tracker.start()
            self._trackers[name] = tracker
            if begun is None:
                _describe(tracker, entry)

        for name in self.names:
            self._try(name, begun or 0, lambda name=name: begin(name))  # type: ignore[misc]

    def _log(self, values: dict[str, Any], step: int) -> None:
        known = {key: value for key, value in values.items() if value is not None}
        for name, tracker in list(self._trackers.items()):
            self._try(name, step, lambda tracker=tracker: tracker.log(known, step=step))  # type: ignore[misc]

    def _try(self, name: str, step: int, act: Callable[[], None]) -> None:
        try:
            # Some print to where a run shows its progress.
            with contextlib.redirect_stdout(io.StringIO()):
                act()
        except Exception as error:
            self._trackers.pop(name, None)
            message = f"tracking with {name} stopped, the run goes on: {type(error).__name__}: {error}"
            self.writer.write("event", event="tracking", step=step, message=message)
            self.tell(message)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, 0, tracker.finish)
        self._trackers.clear()
        self.writer.close()

    def __enter__(self) -> TrackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _describe(tracker: GeneralTracker, entry: records.Entry) -> None:
    """The config of the run: as settings, or as a text where settings would become a run of their own."""
    if tracker.name == "tensorboard":
        tracker.log({"config": f"```json\n{json.dumps(entry['config'], indent=1)}\n```"}, step=0)
    else:
        tracker.store_init_configuration(entry["config"])
