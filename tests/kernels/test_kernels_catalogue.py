"""names() and get(): what a kernel may be called, and what people hear who call it otherwise."""

from __future__ import annotations

import pytest

from epan import kernels
from epan.errors import EpanError
from epan.kernels import Biweight, Cosine, Epanechnikov, Gaussian, Polynomial, Triweight, Uniform

HINTS = {
    "softmax": ("gaussian", "adaptive"),
    "sparsemax": ("epanechnikov", "adaptive"),
    "entmax": ("Polynomial(order=1/(alpha - 1))", "adaptive"),
    "entmax15": ("biweight", "adaptive"),
    "1.5-entmax": ("biweight", "adaptive"),
    "entmax_bisect": ("Polynomial(order=1/(alpha - 1))", "adaptive"),
    "relumax": ("epanechnikov", "anchored"),
    "relu": ("epanechnikov", "fixed", "euclidean"),
    "normrelu": ("epanechnikov", "fixed", "euclidean"),
    "topk": ("Nearest(k=16)", "gaussian", "uniform"),
    "top-k": ("Nearest(k=16)", "gaussian", "uniform"),
    "rbf": ("gaussian",),
    "quartic": ("biweight",),
    "boxcar": ("uniform",),
    "tophat": ("uniform",),
    "adaptive": ("normalization", "adaptive"),
    "anchored": ("normalization", "anchored"),
    "fixed": ("normalization", "fixed"),
    "nearest": ("normalization", "Nearest(k=16)"),
    "polynomial": ("Polynomial(order=5)",),
}
NEAR = {
    "gausian": "gaussian",
    "Gaussian": "gaussian",
    "epanechnikow": "epanechnikov",
    "epanchnikov": "epanechnikov",
    "biwieght": "biweight",
    "BIWEIGHT": "biweight",
    "triwight": "triweight",
    "unifrom": "uniform",
    "cosin": "cosine",
}


def test_every_name_makes_its_kernel() -> None:
    expected = {
        "gaussian": Gaussian(),
        "epanechnikov": Epanechnikov(),
        "biweight": Biweight(),
        "triweight": Triweight(),
        "uniform": Uniform(),
        "cosine": Cosine(),
    }
    assert set(kernels.names()) == set(expected)
    for name, kernel in expected.items():
        assert kernels.get(name) == kernel
        assert kernels.get({"name": name}) == kernel


def test_instances_pass_through() -> None:
    for kernel in (Polynomial(2.5), Uniform(radius=2.0), Gaussian()):
        assert kernels.get(kernel) is kernel


def test_mappings_take_parameters() -> None:
    assert kernels.get({"name": "polynomial", "order": 5}) == Polynomial(5.0)
    assert kernels.get({"name": "uniform", "radius": 2}) == Uniform(radius=2.0)
    assert kernels.get({"name": "uniform"}) == Uniform()
    with pytest.raises(EpanError, match="at least 1"):
        kernels.get({"name": "polynomial", "order": 0.5})


@pytest.mark.parametrize("name", HINTS)
def test_familiar_names_are_answered_with_what_to_write(name: str) -> None:
    for spelling in (name, name.upper()):
        with pytest.raises(EpanError, match="Unknown kernel") as caught:
            kernels.get(spelling)
        assert repr(spelling) in str(caught.value)
        for word in HINTS[name]:
            assert word in str(caught.value.fix)
        assert all(known in str(caught.value) for known in kernels.names())


def test_every_hint_is_tried() -> None:
    assert set(kernels._HINTS) == set(HINTS)
    # A hint for a name that works would never be read.
    assert not set(HINTS) & set(kernels.names())


@pytest.mark.parametrize("misspelt", NEAR)
def test_misspelt_names_are_answered_with_the_nearest(misspelt: str) -> None:
    with pytest.raises(EpanError) as caught:
        kernels.get(misspelt)
    assert "did you mean" in str(caught.value.fix)
    assert repr(NEAR[misspelt]) in str(caught.value.fix)


def test_a_misspelt_mapping_is_answered_with_the_nearest() -> None:
    with pytest.raises(EpanError, match="did you mean 'polynomial'") as caught:
        kernels.get({"name": "polynomal", "order": 5})
    assert str(caught.value).count("uniform") == 1


def test_names_near_nothing_get_the_list() -> None:
    for name in ("xyz", "", "softmax2d-attention"):
        with pytest.raises(EpanError, match="Unknown kernel") as caught:
            kernels.get(name)
        assert "did you mean" not in str(caught.value)
        assert all(known in str(caught.value) for known in kernels.names())


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(EpanError, match="order") as caught:
        kernels.get({"name": "polynomial"})
    assert caught.value.found == {"name": "polynomial"}
    assert "polynomial:order=5" in str(caught.value.fix)
    with pytest.raises(EpanError, match="power"):
        kernels.get({"name": "polynomial", "power": 5})
    with pytest.raises(EpanError, match=r"option of the kernel 'polynomial': 'ordr'.*did you mean 'order'") as caught:
        kernels.get({"name": "polynomial", "ordr": 5})
    assert "__init__" not in str(caught.value)
    with pytest.raises(EpanError, match="'gaussian' takes no parameters") as caught:
        kernels.get({"name": "gaussian", "bandwidth": 1.0})
    assert caught.value.found == {"bandwidth": 1.0}


def test_classes_and_other_things_are_refused() -> None:
    with pytest.raises(EpanError, match="class was passed") as caught:
        kernels.get(Gaussian)  # type: ignore[arg-type]
    assert "epan.Biweight()" in str(caught.value.fix)
    for thing in (3, None, 1.5, ["gaussian"], {"order": 5}, {"name": 3}, Gaussian.profile):
        with pytest.raises(EpanError, match="A kernel is a name") as caught:
            kernels.get(thing)  # type: ignore[arg-type]
        assert caught.value.allowed
