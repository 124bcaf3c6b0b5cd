"""Small integers that stand for kernel and normalization objects where only numbers may pass, as in custom operators."""

from __future__ import annotations

import threading

import torch

from .errors import EpanError

__all__ = ["intern", "lookup", "restore"]

_OBJECTS: list[object] = []
_HANDLES: dict[object, int] = {}
# Runs that share a process make their models in threads.
_LOCK = threading.Lock()


def intern(thing: object) -> int:
    """The handle of ``thing``; equal objects share one."""
    if torch.compiler.is_compiling():
        # What is traced runs in one thread, and cannot enter a lock.
        return _enter(thing)
    with _LOCK:
        return _enter(thing)


def _enter(thing: object) -> int:
    # A class with an __init__ of its own inherits an equality that does not know its parameters.
    comparable = "__dataclass_fields__" in vars(type(thing))
    try:
        handle = _HANDLES.setdefault(thing, len(_OBJECTS)) if comparable else len(_OBJECTS)
    except TypeError:
        # Unhashable objects of other packages are each their own.
        handle = len(_OBJECTS)
    if handle == len(_OBJECTS):
        _OBJECTS.append(thing)
    return handle


def lookup(handle: int) -> object:
    """The object that ``handle`` stands for."""
    if handle >= len(_OBJECTS):
        # What torch.compile builds while tracing comes into being only after the operators have run.
        raise EpanError(
            "A kernel or normalization was made inside a compiled function",
            fix="make it outside and let the function use it",
        )
    return _OBJECTS[handle]


def restore(thing: object, state: dict[str, object]) -> None:
    """Gives ``thing`` the state of a copy or a pickle; a handle holds in one process only and is made anew."""
    for name, value in state.items():
        object.__setattr__(thing, name, value)
    if state.get("handle", -1) != -1:
        object.__setattr__(thing, "handle", intern(thing))
