"""make and an environment that is there already: another interpreter is never ignored in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    os.name == "nt" or not shutil.which("make") or not (ROOT / "Makefile").exists(), reason="needs make and a checkout"
)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that make takes for finished."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    for stamp in (".torch", ".lab", ".dev"):
        (folder / stamp).touch()
    return folder


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A command that runs Python and claims to be installed elsewhere."""
    pretend = (
        "import runpy, sys; sys.base_prefix = '/elsewhere'; sys.argv = sys.argv[1:]; "
        "exec(sys.argv[1]) if sys.argv[0] == '-c' else runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = tmp_path / "other-python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$@"\n')
    command.chmod(0o755)
    return command


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "TORCH", "TORCH_INDEX", "VENV"}
    surroundings = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["make", "env", *arguments], cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=60
    )


def test_another_python_is_refused_and_the_environment_stays(environment: Path, other_python: Path) -> None:
    result = _make(f"VENV={environment}", f"PYTHON={other_python}")
    assert result.returncode != 0
    assert f"not with PYTHON={other_python}" in result.stderr
    assert "make distclean" in result.stderr
    assert (environment / "pyvenv.cfg").exists()


def test_a_python_that_does_not_exist_is_refused(environment: Path) -> None:
    result = _make(f"VENV={environment}", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "no-such-python is not a command" in result.stderr


def test_the_same_python_and_no_python_go_on(environment: Path) -> None:
    for arguments in ([f"PYTHON={sys.executable}"], ["PYTHON="], []):
        result = _make(f"VENV={environment}", *arguments)
        assert result.returncode == 0, result.stderr
        assert "pip" not in result.stdout
