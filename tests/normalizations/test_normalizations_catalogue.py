"""Normalizations by name and as objects: get() and its answers, equality, copies, handles."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from epan import kernels, normalizations
from epan._intern import lookup
from epan.errors import EpanError
from epan.normalizations import Adaptive, Anchored, Fixed, Nearest, Normalization

HINTS = {
    "nearest": ("Nearest(k=16)",),
    "topk": ("Nearest(k=16)", "gaussian", "uniform"),
    "top-k": ("Nearest(k=16)", "gaussian", "uniform"),
    "knn": ("Nearest(k=16)",),
    "softmax": ("adaptive", "gaussian"),
    "entmax": ("adaptive", "Polynomial(order=1/(alpha - 1))"),
    "entmax15": ("adaptive", "biweight"),
    "sparsemax": ("adaptive", "epanechnikov"),
    "relumax": ("anchored", "epanechnikov"),
    "normrelu": ("fixed", "epanechnikov", "euclidean"),
    **{name: ("that is a kernel", name) for name in kernels.names()},
    "polynomial": ("that is a kernel", "epan.Polynomial(order=5)"),
}
NEAR = {"adaptve": "adaptive", "Adaptive": "adaptive", "ancored": "anchored", "fixd": "fixed", "FIXED": "fixed"}
TEXTS = {
    "Adaptive()": Adaptive,
    "Anchored()": Anchored,
    "Fixed(empty='nearest')": Fixed,
    "Fixed(empty='zero')": lambda: Fixed(empty="zero"),
    "Nearest(k=3)": lambda: Nearest(k=3),
    "Nearest(k=4)": lambda: Nearest(k=4),
}
ALL = pytest.mark.parametrize("text", TEXTS)


def test_every_name_makes_its_rule() -> None:
    expected = {"adaptive": Adaptive(), "anchored": Anchored(), "fixed": Fixed()}
    assert set(normalizations.names()) == set(expected)
    for name, rule in expected.items():
        assert normalizations.get(name) == rule
        assert normalizations.get({"name": name}) == rule
        assert rule.name == name
    assert normalizations.get({"name": "nearest", "k": 5}) == Nearest(k=5)
    assert normalizations.get({"name": "fixed", "empty": "zero"}) == Fixed(empty="zero")
    rule = Nearest(k=7)
    assert normalizations.get(rule) is rule


@pytest.mark.parametrize("name", HINTS)
def test_familiar_names_are_answered_with_what_to_write(name: str) -> None:
    for spelling in (name, name.upper()):
        with pytest.raises(EpanError, match="Unknown normalization") as caught:
            normalizations.get(spelling)
        assert repr(spelling) in str(caught.value)
        for word in HINTS[name]:
            assert word in str(caught.value.fix)


def test_every_hint_is_tried() -> None:
    assert set(normalizations._HINTS) == set(HINTS)
    assert not set(HINTS) & set(normalizations.names())


@pytest.mark.parametrize("misspelt", NEAR)
def test_misspelt_names_are_answered_with_the_nearest(misspelt: str) -> None:
    with pytest.raises(EpanError, match="did you mean") as caught:
        normalizations.get(misspelt)
    assert repr(NEAR[misspelt]) in str(caught.value.fix)
    assert all(known in str(caught.value) for known in normalizations.names())


def test_a_misspelt_mapping_is_answered_with_the_nearest() -> None:
    with pytest.raises(EpanError, match="did you mean 'nearest'") as caught:
        normalizations.get({"name": "nearst", "k": 5})
    assert str(caught.value).count("fixed") == 1


def test_the_number_of_neighbours_is_any_kind_of_integer() -> None:
    numpy = pytest.importorskip("numpy")
    rule = Nearest(k=numpy.int64(3))
    assert rule == Nearest(k=3)
    assert type(rule.k) is int
    for wrong in (True, 3.0, "3", None, numpy.float64(3.0)):
        with pytest.raises(EpanError, match="must be an integer"):
            Nearest(k=wrong)  # type: ignore[arg-type]


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(EpanError, match="'k'") as caught:
        normalizations.get({"name": "nearest"})
    assert caught.value.found == {"name": "nearest"}
    assert "nearest:k=16" in str(caught.value.fix)
    with pytest.raises(EpanError, match="neighbours"):
        normalizations.get({"name": "nearest", "neighbours": 5})
    with pytest.raises(EpanError, match=r"option of the normalization 'fixed': 'emty'.*did you mean 'empty'") as caught:
        normalizations.get({"name": "fixed", "emty": "zero"})
    assert "__init__" not in str(caught.value)
    with pytest.raises(EpanError, match="at least 1"):
        normalizations.get({"name": "nearest", "k": 0})
    with pytest.raises(EpanError, match="'adaptive' takes no parameters") as caught:
        normalizations.get({"name": "adaptive", "alpha": 1.5})
    assert caught.value.found == {"alpha": 1.5}


def test_classes_and_other_things_are_refused() -> None:
    with pytest.raises(EpanError, match="class was passed") as caught:
        normalizations.get(Nearest)  # type: ignore[arg-type]
    assert "Nearest(k=16)" in str(caught.value.fix)
    for thing in (3, None, ["fixed"], {"k": 5}, {"name": 3}):
        with pytest.raises(EpanError, match="A normalization is a name") as caught:
            normalizations.get(thing)  # type: ignore[arg-type]
        assert caught.value.allowed


@ALL
def test_equal_rules_are_equal_copied_frozen_and_share_a_handle(text: str) -> None:
    rule: Normalization = TEXTS[text]()
    assert repr(rule) == text
    for other in (TEXTS[text](), copy.copy(rule), copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert other == rule
        assert hash(other) == hash(rule)
        assert other.handle == rule.handle
    assert lookup(rule.handle) == rule
    for different in (TEXTS[other]() for other in TEXTS if other != text):
        assert different != rule
        assert different.handle != rule.handle
    for name in ("k", "empty", "handle"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, name, 5)
    assert dataclasses.replace(Nearest(k=3), k=4) == Nearest(k=4)
