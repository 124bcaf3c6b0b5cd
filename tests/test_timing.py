"""Times are taken in turn, and a median is a median."""

from __future__ import annotations

import gc

import pytest
import torch

from epan._timing import alternate, captured, peak_memory, quartiles

CPU = torch.device("cpu")


def test_functions_are_called_in_turn_and_no_one_is_always_first() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = alternate(functions, CPU, 0.0, least=3)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(min(found) for found in times.values()) >= 0


def test_rounds_end_with_the_time_and_with_the_limit() -> None:
    assert len(alternate({"a": lambda: None}, CPU, 60.0, least=2, most=7)["a"]) == 7
    assert len(alternate({"a": lambda: None}, CPU, 0.0, least=4, most=9)["a"]) == 4


def test_garbage_is_collected_again_after_a_failure() -> None:
    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        alternate({"a": fail}, CPU, 0.0)
    assert gc.isenabled()


def test_quartiles_of_known_numbers() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_memory_of_a_cpu_is_not_guessed() -> None:
    assert peak_memory(lambda: torch.zeros(10), CPU) is None


@pytest.mark.gpu
def test_memory_times_and_replays_on_a_gpu() -> None:
    device = torch.device("cuda")
    x = torch.zeros(1 << 20, device=device)
    assert peak_memory(lambda: torch.empty(4 << 20, dtype=torch.uint8, device=device), device) == 4.0
    replay = captured(lambda: x.add_(1.0), device)
    x.zero_()
    replay(), replay()
    assert float(x[0]) == 2.0
    assert all(ms > 0 for ms in alternate({"a": replay}, device, 0.0)["a"])
