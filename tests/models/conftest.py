"""The methods (kernel × normalization) that every model must take, and a random state per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from epan import kernels, normalizations
from epan.errors import EpanError
from epan.nn import similarity_for

KERNELS = [*kernels.names(), {"name": "polynomial", "order": 4.5}, {"name": "uniform", "radius": 1.2}]
NORMALIZATIONS = [
    *normalizations.names(),
    {"name": "fixed", "empty": "zero"},
    {"name": "fixed", "empty": "uniform"},
    {"name": "nearest", "k": 3},
]


def legal_methods() -> list[tuple[object, object]]:
    """Every pair that the rules themselves accept."""
    found = []
    for kernel in KERNELS:
        for normalization in NORMALIZATIONS:
            try:
                similarity_for(kernels.get(kernel), normalizations.get(normalization))
            except EpanError:
                continue
            found.append((kernel, normalization))
    return found


def label(spec: object) -> str:
    return "-".join(str(part) for part in spec.values()) if isinstance(spec, dict) else str(spec)


METHODS = legal_methods()


@pytest.fixture(params=METHODS, ids=["/".join(map(label, method)) for method in METHODS])
def method(request: pytest.FixtureRequest) -> tuple[object, object]:
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(20240)
        yield
