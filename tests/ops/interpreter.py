"""Chooses Triton's interpreter; to be imported before anything that imports Triton.

Before every call of a device function, and a kernel makes thousands, the interpreter goes through the whole of
``triton.language`` to put its own functions in the place of the compiler's. They are there since the launch, so that takes
half of its time and changes nothing; here it is done once in a process, which does nothing but interpret.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl
from triton.runtime import interpreter

__all__ = ["spare"]


class Lasting:
    """In the place of what would put the compiler's functions back after a launch."""

    def restore(self) -> None:
        pass


def spare() -> None:
    """Replaces the functions of each module once. A Triton that goes another way is left as it is."""
    replace = getattr(interpreter, "_patch_lang", None)
    if replace is None or not hasattr(interpreter, "_LangPatchScope"):
        return
    done: set[tuple[bool, bool]] = set()

    def once(function: Any) -> Lasting:
        names = function.__globals__.values()
        seen = any(value is tl for value in names), any(value is tl.core for value in names)
        if seen not in done:
            replace(function)
            done.add(seen)
        return Lasting()

    interpreter._patch_lang = once  # type: ignore[attr-defined]


spare()
