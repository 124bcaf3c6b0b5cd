"""Shared by all tests: fixed seeds, poisoned memory where operators are tested, and honest skips."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# The same examples on every machine and in every run, without a database beside the tests.
hypothesis.settings.register_profile(
    "epan",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("epan")

# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Folders whose tests run operators; there, memory that was never written reads as NaN.
POISONED = {"conformance", "kernels", "masks", "normalizations", "ops"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out: dict[str, str] = {}
    if not torch.cuda.is_available():
        left_out["gpu"] = "needs an NVIDIA GPU, and torch finds none"
    if not config.getoption("--slow"):
        left_out["slow"] = "slow: make test ARGS=--slow"
    for item in items:
        for marker, reason in left_out.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its relatives return NaN (the largest number, for integers) instead of whatever was there."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def _poison(request: pytest.FixtureRequest) -> None:
    if request.path.parent.name in POISONED:
        request.getfixturevalue("poisoned_memory")
