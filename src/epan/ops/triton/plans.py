"""A call like one before is launched from what that one left: nothing is worked out twice.

Binding, specialising and hashing the seventy arguments of a fused kernel takes the host longer than the GPU needs for a
short sequence. All of that depends on shapes, strides, dtypes, alignments and settings alone. A :class:`Plan` keeps, for
one combination of them, what a call allocates and how its kernels start; only the tensors are new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Made", "Plan", "find", "forget", "form", "keep", "on_device_of"]

#: So many plans are kept at most; then all are dropped, which costs the time of making them again.
MOST = 2048
# Pointers that Triton takes for aligned are multiples of so many bytes.
ALIGNED = 16
_plans: dict[tuple[Any, ...], Plan] = {}


class Made(NamedTuple):
    """A tensor that a call makes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    zero: bool = False


class _Launch(NamedTuple):
    """A compiled kernel on its grid, its arguments, and which of them are tensors of what name."""

    run: Callable[..., object]
    arguments: list[Any]
    places: list[tuple[int, str]]


class Plan:
    """What a call makes and launches.

    Parameters
    ----------
    made: the tensors that it makes by name; None for one that no kernel of the call touches.
    """

    def __init__(self, made: Mapping[str, Made | None]) -> None:
        self._made = [
            (name, torch.zeros if what.zero else torch.empty, what.shape, what.dtype)
            for name, what in made.items()
            if what is not None
        ]
        self._blank = [name for name, what in made.items() if what is None]
        self._launches: list[_Launch] = []
        #: Whether :meth:`replay` can stand for the launches; the interpreter compiles nothing that could be kept.
        self.whole = True

    def allocate(self, given: Mapping[str, Tensor], blank: Tensor) -> dict[str, Tensor]:
        """The tensors of a call by name: those that it is given, new ones on the device of ``blank``, and that where none
        is touched.
        """
        tensors, device = dict(given), blank.device
        for name, make, shape, dtype in self._made:
            tensors[name] = make(shape, dtype=dtype, device=device)
        for name in self._blank:
            tensors[name] = blank
        return tensors

    def launch(
        self,
        kernel: Any,
        programs: int,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        constants: Mapping[str, Any],
    ) -> None:
        """Starts ``kernel`` with what it takes of tensors and constants, and keeps how."""
        named = {name: tensors.get(name, constants.get(name)) for name in kernel.arg_names if name not in config}
        compiled = kernel[(programs,)](**named, **config)
        if compiled is None:
            self.whole = False
            return
        named.update(config)
        arguments = [None if name in tensors else named[name] for name in kernel.arg_names]
        places = [(place, name) for place, name in enumerate(kernel.arg_names) if name in tensors]
        self._launches.append(_Launch(compiled[(programs, 1, 1)], arguments, places))

    def replay(self, tensors: Mapping[str, Tensor]) -> None:
        """Starts the same kernels on other tensors of the same form."""
        # As numbers, because of a tensor the launcher asks the driver at every launch whether it is on the device.
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        for run, arguments, places in self._launches:
            filled = arguments.copy()
            for place, name in places:
                filled[place] = pointers[name]
            run(*filled)


def form(*tensors: Tensor | None) -> tuple[Any, ...]:
    """All of tensors that launches depend on, but for their device."""
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % ALIGNED == 0) for t in tensors)


def find(key: tuple[Any, ...]) -> Plan | None:
    """The plan of a call; None if there was none like it."""
    return _plans.get(key)


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The device of a tensor is the current one: that is where Triton starts kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def keep(key: tuple[Any, ...], plan: Plan) -> None:
    """Keeps the plan of a call for the next one like it."""
    if plan.whole:
        if len(_plans) >= MOST:
            _plans.clear()
        _plans[key] = plan


def forget() -> None:
    """Every call is worked out again."""
    _plans.clear()
