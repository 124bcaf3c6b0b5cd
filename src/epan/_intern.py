"""Small integers that stand for kernel and normalization objects where only numbers may pass, as in custom operators."""

from __future__ import annotations

__all__ = ["intern", "lookup"]

_OBJECTS: list[object] = []
_HANDLES: dict[object, int] = {}


def intern(thing: object) -> int:
    """The handle of ``thing``; equal objects share one."""
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
    return _OBJECTS[handle]
