"""Runs scripts of this folder, which choose Triton's interpreter for their whole process, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

from forking import Forks

__all__ = ["Scripts"]

HERE = Path(__file__).parent
MODULES = ("interpreter", "epan.testing.conformance", "epan.nn", "epan.ops.triton.launch", "torch._dynamo")


class Scripts:
    """The process that forks them."""

    def __init__(self) -> None:
        # They import from their own folder.
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        self.forks = Forks(MODULES, ("-W", "ignore"), {**os.environ, "PYTHONPATH": path})

    def run(self, script: str, *arguments: str) -> str:
        """What the script prints; one that fails is an assertion that fails."""
        done = self.forks.run(str(HERE / script), *arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
        return said

    def close(self) -> None:
        self.forks.close()
