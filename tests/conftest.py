"""Shared by all tests: fixed seeds, poisoned memory where operators are tested, and honest skips."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Where there are several GPUs (EPAN_TEST_GPUS), the processes of pytest-xdist share them out; torch has not looked yet.
_worker, _gpus = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("EPAN_TEST_GPUS")
if _worker and _gpus:
    os.environ["CUDA_VISIBLE_DEVICES"] = str(int(_worker.removeprefix("gw")) % int(_gpus))

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
    parser.addoption("--outcomes", metavar="FILE", help="write each outcome at once, for a session that may be cut off")


class Outcomes:
    """A line per test that has ended, followed by why it failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not report.failed:
            return
        lines = [f"{report.outcome} {report.duration:.1f} s {report.nodeid}"]
        if report.failed:
            text = str(report.longrepr).splitlines()
            lines += [f"    {line}" for line in [line for line in text if line.startswith("E ")][:12] or text[-12:]]
        with self.path.open("a", encoding="utf-8") as file:
            print(*lines, sep="\n", file=file)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    # A process of pytest-xdist reports to the one that started it.
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(path)))


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
