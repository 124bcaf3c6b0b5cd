"""Runs the fused kernels in Triton's interpreter with every address checked; a process of its own, as that is chosen at
import.

python tests/ops/interpreted_memory.py [NAME ...]

An access fails if it is no element of a tensor that the kernel was given, if it reads what nobody wrote, what another
program of the launch writes, or what its own program wrote without a barrier since (on a GPU by other threads).
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

import interpreter  # noqa: F401  isort: skip (before Triton)

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, InterpreterError

import epan
from epan.testing.execution import backend, run
from epan.testing.inputs import LOADED, PER_QUERY, Case

# Of each byte: written before this launch, by nobody, or the moment of this launch at which it was.
BEFORE, NEVER = 0, -1
# What lies in memory that was not written: no number, and no index that could pass for one.
POISON = {torch.int8: 0x55, torch.int32: 0x3BADBEEF, torch.int64: 0x3BADBEEF3BADBEEF}

KINDS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "anchored": {"kernel": "epanechnikov", "normalization": "anchored"},
    "fixed": {"kernel": "triweight", "normalization": "fixed", "similarity": "euclidean"},
    "gaussian": {"kernel": "gaussian", "similarity": "euclidean"},
    "nearest": {"kernel": "gaussian", "normalization": epan.Nearest(k=3)},
    "nearest-euclidean": {"kernel": "uniform", "normalization": epan.Nearest(k=3), "similarity": "euclidean"},
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"scale": "head", "q_len": 12, "k_len": 20, "key_heads": 1, "value_size": 20, "dropout_p": 0.4},
    {**LOADED, "dtype": torch.float16},
    PER_QUERY,
    {"q_len": 40, "k_len": 70, "batch": 1, "heads": 2, "key_heads": 1, "spread": 1.5, "dropout_p": 0.2},
    {"q_len": 150, "k_len": 140, "batch": 1, "heads": 1, "size": 33, "dtype": torch.float16, "window": (70, 3)},
    {"q_len": 1, "k_len": 1, "batch": 1, "heads": 1, "value_size": 40},
)


class Memory:
    """The bytes that a launch may touch, and when each was written."""

    def __init__(self) -> None:
        self.blank: dict[int, tuple[Tensor, np.ndarray]] = {}
        self.starts = self.stops = self.bases = np.zeros(0, np.int64)
        self.own, self.written = np.zeros(0, bool), np.zeros(0, np.int64)
        self.now = self.program = 0
        self.kernel = ""

    def allocate(self, tensor: Tensor) -> Tensor:
        """Fills a new tensor with what must not be read; kept, so that its addresses are not given out again."""
        tensor.fill_(POISON.get(tensor.dtype, torch.nan))
        storage = tensor.untyped_storage()
        self.blank[storage.data_ptr()] = (tensor, np.full(storage.nbytes(), NEVER, np.int64))
        return tensor

    def launch(self, kernel: str, tensors: list[Tensor]) -> None:
        self.kernel, self.now, self.program = kernel, 0, 0
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}
        self.starts = np.array(sorted(storages), np.int64)
        sizes = np.array([storages[start].nbytes() for start in self.starts], np.int64)
        self.stops, self.bases = self.starts + sizes, np.cumsum(sizes) - sizes
        self.own, self.written = np.zeros(sizes.sum(), bool), np.full(sizes.sum(), BEFORE, np.int64)
        for start, base, size in zip(self.starts, self.bases, sizes, strict=True):
            if start in self.blank:
                self.written[base : base + size] = self.blank[start][1]
        for tensor in tensors:
            if tensor.numel():
                # Its elements alone, not what lies between them.
                place = np.array(tensor.data_ptr(), np.int64)
                for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
                    steps = np.arange(length if stride else 1, dtype=np.int64) * stride * tensor.element_size()
                    place = place[..., None] + steps
                for byte in range(tensor.element_size()):
                    self.own[self._find(place.ravel() + byte)] = True

    def finish(self) -> None:
        for start, stop, base in zip(self.starts, self.stops, self.bases, strict=True):
            if start in self.blank:
                part = self.written[base : base + stop - start]
                self.blank[start][1][:] = np.minimum(part, BEFORE)

    def _find(self, address: np.ndarray) -> np.ndarray:
        region = np.searchsorted(self.starts, address, "right") - 1
        if (region < 0).any() or (address >= self.stops[region]).any():
            raise AssertionError(f"{self.kernel} leaves the memory of its arguments")
        return address - self.starts[region] + self.bases[region]

    def _bytes(self, ptrs: Any, mask: Any) -> np.ndarray:
        address, mask = np.broadcast_arrays(ptrs.data, mask.data)
        address = address[mask].astype(np.int64)
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        place = self._find(np.concatenate([address + byte for byte in range(size)]))
        if not self.own[place].all():
            raise AssertionError(f"{self.kernel} touches what is no element of its arguments")
        return place

    def load(self, ptrs: Any, mask: Any) -> None:
        moment = self.written[self._bytes(ptrs, mask)]
        for bad, what in (
            (moment == NEVER, "what nobody wrote"),
            ((moment > BEFORE) & (moment < self.program), "what another program writes"),
            ((moment > BEFORE) & (moment == self.now), "what it wrote without a barrier since"),
        ):
            if bad.any():
                raise AssertionError(f"{self.kernel} reads {what}")

    def store(self, ptrs: Any, mask: Any) -> None:
        self.written[self._bytes(ptrs, mask)] = self.now


MEMORY = Memory()


def watch() -> None:
    """Puts the checks around the interpreter's accesses and torch's uninitialised tensors."""
    empty, call = torch.empty, GridExecutor.__call__
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    step = InterpreterBuilder.set_grid_idx

    def launch(self: Any, *args: Any, **named: Any) -> None:
        MEMORY.launch(self.fn.__name__, [t for t in (*args, *named.values()) if isinstance(t, Tensor)])
        call(self, *args, **named)
        MEMORY.finish()

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        MEMORY.load(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        MEMORY.store(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def next_program(self: Any, *place: int) -> None:
        MEMORY.now += 1
        MEMORY.program = MEMORY.now
        step(self, *place)

    def barrier(self: Any) -> None:
        MEMORY.now += 1

    torch.empty = lambda *shape, **options: MEMORY.allocate(empty(*shape, **options))
    GridExecutor.__call__ = launch
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = checked_load, checked_store
    InterpreterBuilder.set_grid_idx, InterpreterBuilder.create_barrier = next_program, barrier


def attend(kind: dict[str, Any]) -> None:
    for number, settings in enumerate(SETTINGS):
        case = Case(**{"dtype": torch.float32, **kind, **settings})
        run(backend("triton"), case.build(), stats=number % 2 == 1)


def pack(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 5, 5, 45], dtype=torch.int32)
    q, k, v = (torch.randn(48, heads, size, requires_grad=True) for heads, size in ((2, 8), (1, 8), (1, 5)))
    out = epan.attention_varlen(q, k, v, offsets, offsets, 40, 40, is_causal=True, backend="triton", **kind)
    torch.autograd.grad(out.square().sum(), (q, k, v))


@triton.jit
def turn_over(X, Y, N: tl.constexpr, BARRIER: tl.constexpr):
    """Writes X to Y, and Y back to X from its end."""
    here = tl.program_id(0) * N
    index = tl.arange(0, N)
    tl.store(Y + here + index, tl.load(X + index))
    if BARRIER:
        tl.debug_barrier()
    tl.store(X + index, tl.load(Y + N - 1 - index))


def reject() -> None:
    """Each kind of mistake is found."""
    zeros, size = torch.zeros, 16
    launch = functools.partial(turn_over.__getitem__((1,)), N=size)
    launch(zeros(size), zeros(size), BARRIER=True)
    launch(zeros(size), torch.empty(size), BARRIER=True)
    for expected, x, y, barrier in (
        ("leaves the memory", zeros(size - 1), zeros(size), True),
        ("leaves the memory", zeros(size), zeros(size - 1), True),
        ("no element", zeros(3 * size)[::2][: size + 1], zeros(size), True),
        ("nobody wrote", torch.empty(size), zeros(size), True),
        ("without a barrier", zeros(size), zeros(size), False),
    ):
        with pytest.raises(InterpreterError, match=expected):
            launch(x, y, BARRIER=barrier)
    with pytest.raises(InterpreterError, match="another program"):
        turn_over[(2,)](zeros(size), zeros(2 * size), N=size, BARRIER=True)


if __name__ == "__main__":
    watch()
    for name in sys.argv[1:] or ("reject", *KINDS):
        start = time.perf_counter()
        if name == "reject":
            reject()
        else:
            attend(KINDS[name])
            pack(KINDS[name])
        print(f"passed {name} {time.perf_counter() - start:.1f} s", flush=True)
