"""Kernels as objects: equal, hashable, printable, copied, frozen, and known to operators by one small integer."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch

from epan import Fixed, attention, kernels
from epan._intern import intern, lookup
from epan.errors import EpanError
from epan.kernels import Biweight, Cosine, Epanechnikov, Gaussian, Kernel, Polynomial, Triweight, Uniform

MAKERS = {
    "Gaussian()": Gaussian,
    "Epanechnikov()": Epanechnikov,
    "Biweight()": Biweight,
    "Triweight()": Triweight,
    "Cosine()": Cosine,
    "Uniform(radius=None)": Uniform,
    "Uniform(radius=2.5)": lambda: Uniform(radius=2.5),
    "Polynomial(order=5.0)": lambda: Polynomial(order=5),
    "Polynomial(order=1.5)": lambda: Polynomial(1.5),
}
ALL = pytest.mark.parametrize("text", MAKERS)


@ALL
def test_equal_kernels_are_equal_and_interchangeable(text: str) -> None:
    first, second = MAKERS[text](), MAKERS[text]()
    assert first == second
    assert hash(first) == hash(second)
    assert repr(first) == text
    assert {first: "found"}[second] == "found"
    others = [MAKERS[other]() for other in MAKERS if other != text]
    assert all(first != other for other in others)
    assert first != text


@ALL
def test_copies_are_equal(text: str) -> None:
    kernel = MAKERS[text]()
    for other in (copy.copy(kernel), copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert other == kernel
        assert type(other) is type(kernel)
        assert other.handle == kernel.handle
        x = torch.linspace(-3, 0, 7)
        assert torch.equal(other.profile(x), kernel.profile(x))


@ALL
def test_kernels_do_not_change(text: str) -> None:
    kernel = MAKERS[text]()
    for name in ("order", "radius", "handle", "something_else"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kernel, name, 3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del kernel.handle


@ALL
def test_equal_kernels_share_one_handle_that_leads_back(text: str) -> None:
    kernel = MAKERS[text]()
    assert kernel.handle >= 0
    assert MAKERS[text]().handle == kernel.handle
    assert lookup(kernel.handle) == kernel
    assert intern(kernel) == kernel.handle
    taken = [MAKERS[other]().handle for other in MAKERS if other != text]
    assert kernel.handle not in taken


def test_the_catalogue_hands_out_kernels_with_the_same_handles() -> None:
    for name in kernels.names():
        kernel = kernels.get(name)
        assert kernel is kernels.get(name)
        assert kernel.name == name
        assert type(kernel)().handle == kernel.handle


def test_many_kernels_of_one_parameter_take_one_handle() -> None:
    assert len({Polynomial(7.25).handle for _ in range(100)}) == 1
    assert len({Polynomial(7.25 + i).handle for i in range(100)}) == 100


def test_a_number_is_one_order_whatever_its_type() -> None:
    assert Polynomial(3) == Polynomial(3.0)
    assert Polynomial(3).handle == Polynomial(3.0).handle
    assert isinstance(Polynomial(3).order, float)
    assert isinstance(Uniform(radius=2).radius, float)
    # Order 3 by another name is another object, as its name is reported.
    assert Polynomial(3.0) != Triweight()


def test_changed_copies_are_new_kernels() -> None:
    kernel = Polynomial(3.0)
    changed = dataclasses.replace(kernel, order=4.0)
    assert changed == Polynomial(4.0)
    assert changed.handle == Polynomial(4.0).handle
    assert dataclasses.replace(Uniform(radius=1.0), radius=2.0) == Uniform(radius=2.0)
    with pytest.raises(EpanError):
        dataclasses.replace(kernel, order=0.5)


def test_kernels_with_a_tensor_are_each_their_own() -> None:
    order = torch.tensor([2.0, 3.0], requires_grad=True)
    first, second = Polynomial(order), Polynomial(order)
    assert first == first
    assert first != second
    assert first != Polynomial(2.0)
    assert {first: 1, second: 2}[first] == 1
    assert first.order is order
    # They change in place, so no number may stand for them.
    assert first.handle < 0
    twin = copy.deepcopy(first)
    assert isinstance(twin.order, torch.Tensor)
    assert torch.equal(twin.order, order)
    assert twin.order is not order
    assert twin.order.requires_grad
    stored = pickle.loads(pickle.dumps(first))
    assert torch.equal(stored.order, order)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.order = order  # type: ignore[misc]


def test_tensor_orders_leave_nothing_behind() -> None:
    """A learnt order makes a kernel per step."""
    Polynomial(torch.tensor(2.0))
    before = intern(object())
    for step in range(50):
        Polynomial(torch.tensor(2.0 + step))
    assert intern(object()) == before + 1


def test_kernels_are_abstract_until_they_have_a_profile() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Kernel()  # type: ignore[abstract]


@pytest.mark.parametrize("radius", [0, -1.0, float("nan"), float("inf"), True, "1", torch.tensor(1.0)])
def test_a_radius_is_a_positive_finite_number(radius: object) -> None:
    with pytest.raises(EpanError, match="positive finite number or None") as caught:
        Uniform(radius=radius)  # type: ignore[arg-type]
    assert caught.value.found is radius
    assert "Found: " in str(caught.value)


def test_pickles_are_the_same_kernel_in_another_process() -> None:
    """There, the number that stood for it stands for something else."""
    program = (
        "import pickle, sys, torch, epan\n"
        "others = [epan.Polynomial(40.0 + i) for i in range(50)]\n"
        "kernel, rule = pickle.loads(sys.stdin.buffer.read())\n"
        "q = torch.linspace(-1, 1, 24).reshape(1, 1, 6, 4)\n"
        "for backend in ('eager', 'tiled'):\n"
        "    out = epan.attention(q, q, q, kernel=kernel, normalization=rule, similarity='euclidean', backend=backend)\n"
        "    print(float(out.square().sum()))\n"
    )
    thing = Polynomial(4.25), Fixed(empty="uniform")
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(thing), capture_output=True, check=True)
    q = torch.linspace(-1, 1, 24).reshape(1, 1, 6, 4)
    out = attention(q, q, q, kernel=thing[0], normalization=thing[1], similarity="euclidean")
    expected = [float(out.square().sum())] * 2
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected)


def test_kernels_with_parameters_of_their_own_are_not_confused() -> None:
    """A class that is no dataclass has no equality that knows its parameters, so only itself is equal to it."""

    class Stretched(Kernel):
        name = "stretched"

        def __init__(self, width: float) -> None:
            self.__dict__["width"] = width
            super().__post_init__()

        @property
        def support(self) -> float:
            return float(self.width)

        def profile(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(1 + x / self.width)

        def derivative(self, x: torch.Tensor) -> torch.Tensor:
            return (x > -self.width).to(x.dtype) / self.width

    first, second = Stretched(1.0), Stretched(2.0)
    assert first != second
    assert first == first
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    "order", [float("inf"), 10**400, torch.tensor([2.0, float("inf")])], ids=["float", "integer", "tensor"]
)
def test_infinite_orders_name_the_gaussian(order: float) -> None:
    with pytest.raises(EpanError, match="finite") as caught:
        Polynomial(order)
    assert "gaussian" in str(caught.value.fix)


def test_derivatives_keep_nan() -> None:
    for name in kernels.names():
        kernel = kernels.get(name)
        assert bool(torch.isnan(kernel.profile(torch.tensor(float("nan"))))), name
        assert bool(torch.isnan(kernel.derivative(torch.tensor(float("nan"))))), name
