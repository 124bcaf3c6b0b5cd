"""The configs of runs side by side: what differs, and what the difference is about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from epan.errors import EpanError
from epan.report.records import Record, number
from epan.tasks import get as get_task

__all__ = [
    "CROSS_ENTROPY",
    "comparable",
    "differences",
    "flatten",
    "is_method_key",
    "is_test_key",
    "loss_of",
    "trained_lengths",
]

# The loss of a run whose record names none.
CROSS_ENTROPY = "gaussian"
# What may differ between runs that repeat one another: it names a run or says where it is kept.
_REPEATS = {"seed", "out", "name", "threads", "log_every", "checkpoint_every", "keep"}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as ``{"model.width": 64, …}``."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def comparable(record: Record) -> dict[str, Any]:
    """The flat config of a run, without what only names it or says where it is kept."""
    flat = flatten({part: record.run.get(part) or {} for part in ("task", "model", "training")})
    kept = {key: value for key, value in flat.items() if not (_repeats(key) or key.startswith("training.loss."))}
    return {**kept, "training.loss": loss_of(record)}


def loss_of(record: Record) -> str:
    """The loss that the run was trained with, such as ``biweight`` or ``polynomial(order=5)``."""
    section = record.run.get("training")
    loss = section.get("loss", CROSS_ENTROPY) if isinstance(section, Mapping) else CROSS_ENTROPY
    if not isinstance(loss, Mapping):
        return str(loss)
    options = ", ".join(f"{key}={value}" for key, value in loss.items() if key != "name")
    return f"{loss.get('name')}({options})"


def _repeats(key: str) -> bool:
    parts = key.split(".")
    # The seed of the test sequences is none of a run.
    return parts[-1] in _REPEATS and parts[0] not in ("task", "model") and not is_test_key(key)


def is_method_key(key: str) -> bool:
    """Whether the config key names the method."""
    return key.startswith("model.") and key.split(".")[1] in ("kernel", "normalization")


def is_test_key(key: str) -> bool:
    """Whether the config key says how a run was tested, which changes nothing that was trained."""
    return key.startswith("training.evaluation")


def differences(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Config keys that are not equal in all ``records``, with the value of every record (seeds and names left out)."""
    flats = [comparable(record) for record in records]
    keys = sorted({key for flat in flats for key in flat})
    found: dict[str, list[Any]] = {}
    for key in keys:
        values = [flat.get(key) for flat in flats]
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            found[key] = values
    return found


def trained_lengths(record: Record) -> tuple[int, int] | None:
    """Shortest and longest training length: those of the run, else those of its task."""
    for part, key in (("training", "lengths"), ("task", "train_lengths")):
        section = record.run.get(part)
        bounds = section.get(key) if isinstance(section, Mapping) else None
        values = [number(bound) for bound in (bounds if isinstance(bounds, list | tuple) else [bounds])]
        known = [int(value) for value in values if value is not None]
        if known:
            return min(known), max(known)
    return _usual_lengths(record)


def _usual_lengths(record: Record) -> tuple[int, int] | None:
    """The training lengths that the task has where nothing else is said; None for a task of somebody else."""
    section = record.run.get("task")
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        return None
    options = section.get("options")
    try:
        task = get_task(section["name"], **(options if isinstance(options, Mapping) else {}))
    except EpanError:
        return None
    return task.train_lengths
