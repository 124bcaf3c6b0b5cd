"""What a call leaves for the next one like it: the same launches on other tensors, and nothing for calls that differ."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from epan.ops.triton import parameters, plans
from epan.ops.triton.plans import Made, Plan

CONFIG = {"ROWS": 16, "num_warps": 4}


class Kernel:
    """Stands for a compiled kernel, and notes its launches."""

    arg_names = ("A", "size", "B", "ROWS", "C")

    def __init__(self, interpreted: bool = False) -> None:
        self.first: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.later: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        self.interpreted = interpreted

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(**named: Any) -> Any:
            self.first.append((grid, named))
            return None if self.interpreted else Compiled(self)

        return start


class Compiled:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.kernel.later.append((grid, arguments))


@pytest.fixture(autouse=True)
def none_yet() -> Iterator[None]:
    plans.forget()
    yield
    plans.forget()


def test_a_replay_is_the_same_launch_on_other_tensors() -> None:
    plan, kernel = Plan({"B": Made((2, 3), torch.int32, True), "C": None}), Kernel()
    first, second = torch.zeros(4), torch.ones(4)
    tensors = plan.allocate({"A": first}, first)
    assert tensors["A"] is first
    assert tensors["C"] is first
    assert torch.equal(tensors["B"], torch.zeros(2, 3, dtype=torch.int32))
    plan.launch(kernel, 7, CONFIG, tensors, {"size": 4, "unused": 5})
    assert kernel.first == [((7,), {"A": first, "size": 4, "B": tensors["B"], "C": first, **CONFIG})]
    again = plan.allocate({"A": second}, second)
    assert again["B"] is not tensors["B"]
    for _ in range(2):
        plan.replay(again)
    # In the order of the kernel's arguments, without what is none of them.
    assert kernel.later == [((7, 1, 1), (second.data_ptr(), 4, again["B"].data_ptr(), 16, second.data_ptr()))] * 2


def test_a_plan_keeps_no_tensor_alive() -> None:
    plan, kernel, tensor = Plan({}), Kernel(), torch.zeros(4)
    plan.launch(kernel, 1, {}, {"A": tensor}, {"size": 1, "B": 2, "ROWS": 3, "C": 4})
    kernel.first.clear()
    gone = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert gone() is None


def test_what_the_interpreter_runs_is_not_kept() -> None:
    plan = Plan({})
    plan.launch(Kernel(interpreted=True), 1, CONFIG, {}, {"A": 1, "size": 1, "B": 1, "C": 1})
    plans.keep(("key",), plan)
    assert plans.find(("key",)) is None


def test_plans_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST", 3)
    for key in range(4):
        plans.keep((key,), Plan({}))
    assert [plans.find((key,)) is not None for key in range(4)] == [False, False, False, True]


def test_the_form_of_a_tensor_is_all_but_its_numbers() -> None:
    base = torch.zeros(65)
    plain = base[:64].view(8, 8)
    assert plans.form(plain, None) == plans.form(torch.ones(8, 8), None)
    others: list[Tensor | None] = [plain.t(), plain.to(torch.float16), plain[:4], base[1:].view(8, 8), None]
    forms = [plans.form(tensor, None) for tensor in (plain, *others)]
    assert len(set(forms)) == len(forms)


def test_other_launch_parameters_are_another_call() -> None:
    before = parameters.edition()
    with parameters.instead("sweep/64/bfloat16", {"num_warps": 4, "num_stages": 2}):
        within = parameters.edition()
        assert parameters.chosen("sweep", 64, 64, torch.bfloat16) == {"num_warps": 4, "num_stages": 2}
    assert parameters.chosen("sweep", 64, 64, torch.bfloat16) is None
    assert len({before, within, parameters.edition()}) == 3


def test_every_setting_of_a_call_is_in_its_key() -> None:
    """A field that is added to a problem or its masks has to be thought of there."""
    pytest.importorskip("triton")
    launch = importlib.import_module("epan.ops.triton.launch")
    kernels, normalizations, masks = (
        importlib.import_module(f"epan.{name}") for name in ("kernels", "normalizations", "masks")
    )
    packing = masks.Packing(*[torch.tensor([0, 4, 8])] * 2)
    base = {
        "masking": masks.Masking(8, 8, None, None, None), "kernel": kernels.Biweight(),
        "normalization": normalizations.Adaptive(), "euclidean": False, "dropout_p": 0.0, "plain_scale": True,
    }  # fmt: skip
    changes: dict[str, list[Any]] = {
        "masking": [
            masks.Masking(8, 8, None, 3, None), masks.Masking(8, 8, None, None, 0), masks.Masking(8, 8, None, None, None, None, 1),
            masks.Masking(8, 8, torch.ones(8, 8, dtype=torch.bool), None, None), masks.Masking(8, 8, torch.zeros(8, 8), None, None),
            masks.Masking(8, 8, None, None, None, torch.ones(2)), masks.Masking(8, 8, None, None, None, None, 0, packing),
        ],
        "kernel": [kernels.Triweight(), kernels.Gaussian()],
        "normalization": [normalizations.Anchored(), normalizations.Fixed(), normalizations.Fixed(empty="zero")],
        "euclidean": [True], "dropout_p": [0.5], "plain_scale": [False], "short": [True],
    }  # fmt: skip
    assert set(changes) == set(launch.Problem.__dataclass_fields__)
    q, scale, seed = torch.zeros(1, 2, 8, 16), torch.ones(1, 2, 8), torch.zeros((), dtype=torch.long)
    keys = []
    for fields in [base, *({**base, name: value} for name, values in changes.items() for value in values)]:
        problem = launch.Problem(**fields)
        keys.append(
            launch.key_of(problem, launch.given_tensors(problem, q, q, q, scale, seed), "forward", "auto", False)
        )
    assert len(set(keys)) == len(keys)
    assert keys[0] == launch.key_of(
        launch.Problem(**base),
        launch.given_tensors(launch.Problem(**base), q, q, q, scale, seed),
        "forward",
        "auto",
        False,
    )
