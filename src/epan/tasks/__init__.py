"""Tasks: synthetic sequences of any length, and the oracle that solves them. One file per task, one line each below.

    task = epan.tasks.get("reverse", symbols=16)
    batch = task.sample(seed=0, step=0, batch=256, lengths=(32, 64))
    print(task.decode(batch.tokens[0]))

A task defined outside this package is an instance of a subclass of :class:`Task`; it passes through :func:`get`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import EpanError, unknown_name
from .overlap import Overlap, expected_overlap, overlap

if TYPE_CHECKING:
    from .base import Batch, Pieces, Sequences, Task
    from .random import Stream

__all__ = ["Batch", "Overlap", "Pieces", "Sequences", "Stream", "Task", "expected_overlap", "get", "names", "overlap"]

# Name of a task: its class, loaded at first use, so that listing the names needs no torch.
_CATALOGUE = {
    "reverse": "reverse:Reverse",
    "sort": "sort:Sort",
    "copy": "copy:Copy",
    "mqmtar": "mqmtar:MQMTAR",
    "mqar": "mqar:MQAR",
    "parity": "parity:Parity",
    "flip-flop": "flip_flop:FlipFlop",
    "local-count": "local_count:LocalCount",
    "n-back": "n_back:NBack",
}

#: What is meant by names that are in use elsewhere.
HINTS = {
    "recall": "use 'mqar' (one-token words, as in Zoology) or 'mqmtar' (two-token words)",
    "associative-recall": "use 'mqar' (one-token words, as in Zoology) or 'mqmtar' (two-token words)",
    "count": "did you mean 'local-count'?",
    "reversal": "did you mean 'reverse'?",
}

# Public names whose modules need torch; loaded at first use.
_HOME = {"Batch": "base", "Pieces": "base", "Sequences": "base", "Task": "base", "Stream": "random"}


def names() -> tuple[str, ...]:
    """The tasks of the catalogue."""
    return tuple(_CATALOGUE)


def get(name: str | Task | Mapping[str, Any], **options: Any) -> Task:
    """The task that ``name`` stands for.

    Parameters
    ----------
    name: a name of :func:`names`, an instance of a :class:`Task`, or what ``task.config()`` returns.
    options: the fields of the task, e.g. ``symbols=16``.

    Raises
    ------
    EpanError: for an unknown task or option (with a suggestion), or a value that the task does not allow.
    """
    from .base import Task

    if isinstance(name, Task):
        if options:
            raise EpanError(
                "Options belong to the name of a task, not to an instance",
                found=options,
                fix=f"pass them to {type(name).__name__}(...), or use dataclasses.replace",
            )
        return name
    if isinstance(name, type) and issubclass(name, Task):
        raise EpanError("A task class was passed", found=name.__name__, fix=f"pass an instance: {name.__name__}()")
    if isinstance(name, Mapping):
        if "name" not in name:
            raise EpanError("The config of a task needs its name", found=dict(name), fix="add 'name': one of the tasks")
        return get(**{**name, **options})
    if not isinstance(name, str):
        raise EpanError("A task is a name, an epan.tasks.Task or its config", found=name, allowed=_CATALOGUE)
    if name not in _CATALOGUE:
        raise unknown_name("task", name, _CATALOGUE, HINTS)
    module, _, attribute = _CATALOGUE[name].partition(":")
    factory = getattr(importlib.import_module(f".{module}", __name__), attribute)
    fields = [field.name for field in dataclasses.fields(factory) if field.init]
    for option in options:
        if option not in fields:
            raise unknown_name(f"option of the task {name!r}:", option, fields)
    task: Task = factory(**options)
    return task


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
