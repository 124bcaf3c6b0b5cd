"""The assembler of the kernels: that of CUDA 12.8 gets some of them wrong, so that a later one is taken where there is one.

Triton up to 3.7 assembles for Hopper with ptxas 12.8, which loses descriptors of warp-group products that it keeps in
uniform registers: a kernel then reads shared memory elsewhere. Later ones (12.9 and 13.0 were tried on the same code) do
not; Triton from 3.8 on has one, and 3.6 and 3.7 bring one under the name of another chip.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import triton

__all__ = ["LEAST", "chosen", "entry"]

#: The first release of ptxas that assembles the kernels as they are written.
LEAST = (12, 9)
_lock = threading.RLock()


def _version(tool: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in tool.version.split("."))


@functools.cache
def _driver() -> tuple[int, ...]:
    """The CUDA release of the driver, whose code of a later major release it cannot load; (0, 0) without one."""
    found = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    return found.value // 1000, found.value % 1000 // 10


def chosen() -> tuple[str, tuple[int, ...]]:
    """Path and release of the assembler for the kernels: Triton's own, or if that is too old the other that it brings."""
    tools = triton.knobs.nvidia
    own = tools.ptxas
    if _version(own) < LEAST and "TRITON_PTXAS_PATH" not in os.environ:
        with contextlib.suppress(AttributeError, RuntimeError):
            other = tools.ptxas_blackwell
            if _version(other) >= LEAST and _version(other)[0] <= _driver()[0]:
                return other.path, _version(other)
    return own.path, _version(own)


@contextlib.contextmanager
def _in_use() -> Iterator[None]:
    with _lock, triton.knobs.nvidia.scope():
        triton.knobs.nvidia.ptxas = chosen()[0]
        yield


def entry(function: Callable[..., Any]) -> Any:
    """``triton.jit`` for a kernel that is launched: it is assembled by :func:`chosen`, whatever others are by."""
    made = triton.jit(function)
    compile_one = getattr(made, "_do_compile", None)
    if compile_one is not None:

        def compile_here(*args: Any, **named: Any) -> Any:
            with _in_use():
                return compile_one(*args, **named)

        made._do_compile = compile_here
    return made
