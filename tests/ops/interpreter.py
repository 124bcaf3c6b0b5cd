"""Chooses Triton's interpreter; to be imported before anything that imports Triton.

The interpreter spends nearly all of its time on things that are the same each time: before every call of a device function,
and a kernel makes thousands, it goes through the whole of ``triton.language`` to put its own functions in the place of the
compiler's; it describes the shape of every tile anew; and it computes whether a sum of integers overflows, for an assertion
that only its debug mode makes. Here the first is done once in a process, which does nothing but interpret, shapes are
remembered, and the sums are left out. No number of a kernel depends on any of it.
"""

from __future__ import annotations

import math
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

__all__ = ["remember", "spare"]


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
    known: set[Any] = set()
    lasting = Lasting()

    def once(function: Any) -> Lasting:
        if function not in known:
            names = function.__globals__.values()
            seen = any(value is tl for value in names), any(value is tl.core for value in names)
            if seen not in done:
                replace(function)
                done.add(seen)
            known.add(function)
        return lasting

    interpreter._patch_lang = once  # type: ignore[attr-defined]


def remember() -> None:
    """Describes each type and shape once, and leaves out what debug mode alone looks at; for the Triton that is known."""
    if not triton.__version__.startswith("3.6."):
        return
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    dtype_of, dtypes = interpreter._get_np_dtype, {}

    def numpy_dtype(kind: Any) -> Any:
        found = dtypes.get(kind.name)
        if found is None:
            found = dtypes[kind.name] = dtype_of(kind)
        return found

    interpreter._get_np_dtype = numpy_dtype

    make_block, blocks = core.block_type.__init__, {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        found = blocks.get((element_ty.name, sizes))
        if found is None:
            make_block(self, element_ty, shape)
            blocks[element_ty.name, sizes] = self.shape, self.numel, self.name
        else:
            self.element_ty = element_ty
            self.shape, self.numel, self.name = found

    core.block_type.__init__ = block

    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape.values) if type.is_block() else ()
        found = shapes.get(sizes)
        if found is None:
            found = core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])
            shapes[sizes] = found
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = found

    core.tensor.__init__ = tensor


spare()
remember()
