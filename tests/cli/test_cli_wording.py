"""Hints of the library as options of the command line."""

from __future__ import annotations

import pytest

from epan.cli.main import run
from epan.cli.wording import as_options

HINTS = {
    'sparsemax is kernel="epanechnikov", normalization="adaptive"': (
        "sparsemax is --kernel epanechnikov --normalization adaptive"
    ),
    'normalised ReLU is kernel="epanechnikov", normalization="fixed", similarity="euclidean"': (
        "normalised ReLU is --kernel epanechnikov --normalization fixed"
    ),
    "top-k is normalization=epan.Nearest(k=16) with kernel='gaussian'": (
        "top-k is --normalization nearest:k=16 with --kernel gaussian"
    ),
    'alpha-entmax is kernel=epan.Polynomial(order=1/(alpha - 1)), normalization="adaptive"': (
        "alpha-entmax is --kernel polynomial:order=1/(alpha - 1) --normalization adaptive"
    ),
    "pass kernel=epan.Uniform(radius=h), or epan.Nearest(k)": (
        "pass --kernel uniform:radius=h, or --normalization nearest:k=16"
    ),
    "give it as model.kernel": "give it as model.kernel",
}


@pytest.mark.parametrize("hint", HINTS)
def test_hints_become_options(hint: str) -> None:
    assert as_options(hint) == HINTS[hint]


@pytest.mark.parametrize(
    "arguments",
    [["--kernel", name] for name in ("softmax", "sparsemax", "entmax", "topk", "relu", "cosine", "polynom")],
)
def test_no_hint_of_the_command_is_python(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *arguments]) == 2
    said = capsys.readouterr().err
    for python in ("epan.", "kernel=", "normalization=", "similarity="):
        assert python not in said
