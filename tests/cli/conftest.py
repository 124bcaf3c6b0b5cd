"""The real command in a process of its own, and a tiny training run."""

from __future__ import annotations

import functools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forking import Forks

Run = Callable[..., subprocess.CompletedProcess[str]]

# What most commands import, when they need it.
MODULES = (
    "torch", "torch._dynamo", "safetensors.torch", "accelerate", "matplotlib.figure", "matplotlib.backends.backend_agg", "rich.live",
    "epan.cli.main", "epan.training", "epan.report", "epan.models",
)  # fmt: skip
TINY = (
    "--task", "copy", "--lengths", "2,4", "--batch", "4", "--test-lengths", "4,8", "--test-sequences", "8",
    "--threads", "1", "--device", "cpu", "--set", "model.options.width=16", "--set", "model.options.heads=2",
    "--set", "model.options.layers=1", "--set", "model.options.persistent_size=4", "--set", "log_every=2",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def epan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """``epan ARGUMENTS`` as a user runs it; gives code and output."""
    cache = tmp_path_factory.mktemp("cache")
    forks = Forks(MODULES, (), {**environment(), "EPAN_CACHE": str(cache)})
    yield functools.partial(forks.run, "epan")
    forks.close()


@pytest.fixture(scope="session")
def on_terminal() -> Callable[..., tuple[int, str]]:
    """``on_terminal("demo", columns=80)``: exit code and output of the command on a pseudo-terminal of that width."""

    def on_terminal(*arguments: str, columns: int, seconds: float = 240.0) -> tuple[int, str]:
        import fcntl
        import pty
        import struct
        import termios

        own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "epan", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**environment(), "TERM": "xterm", "COLUMNS": str(columns)},
            close_fds=True,
        )
        os.close(other)
        said, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            ready, _, _ = select.select([own], [], [], 0.2)
            try:
                data = os.read(own, 65536) if ready else b""
            except OSError:
                break
            said += data
            if not data and process.poll() is not None:
                break
        os.close(own)
        return process.wait(timeout=30), said.decode(errors="replace")

    return on_terminal


@pytest.fixture(scope="session")
def surroundings() -> dict[str, str]:
    """The environment of the commands."""
    return environment()


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def trained(epan: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and output of one tiny training run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, epan("train", *TINY, "--steps", "10", "--out", str(folder))
