"""The house: what importing loads, one version everywhere, and a build that refuses a wrong Python in time."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import epan

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"triton", "matplotlib", "transformers", "sklearn", "accelerate"}
LAB = {"rich", "cyclopts", "safetensors", "plotly", "datasets", "tokenizers", "pandas"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    # A make that runs these tests hands its own flags and variables down; a make that they start must not see them.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "TORCH", "TORCH_INDEX", "VENV"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after running ``code``."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    process = run(sys.executable, "-c", code + report)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1]))


def tracked_files() -> list[Path]:
    """Every file of the repository that is text and not ignored."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    else:
        skipped = {"build", "dist", "runs"}
        files = [
            path
            for path in ROOT.rglob("*")
            if not any(part in skipped or part.startswith(".") for part in path.relative_to(ROOT).parts)
        ]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_importing_epan_loads_nothing_heavy() -> None:
    assert not modules_after("import epan") & (HEAVY | LAB)


def test_attention_needs_torch_alone() -> None:
    """Triton cannot be imported here: where it is installed torch itself imports it with its compiler."""
    code = """
import sys
sys.modules["triton"] = None
import torch, epan, epan.nn, epan.models, epan.tasks
x = torch.randn(1, 1, 4, 8, requires_grad=True)
for backend in ("auto", "eager", "tiled"):
    epan.attention(x, x, x, backend=backend).sum().backward()
try:
    epan.attention(x, x, x, backend="triton")
except epan.errors.UnsupportedError as error:
    assert "Triton is not installed" in str(error) and "pip install triton" in str(error), error
else:
    raise AssertionError("triton ran without Triton")
del sys.modules["triton"]
"""
    assert not modules_after(code) & (HEAVY | LAB)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, to see whether it is imported")
def test_importing_the_operators_loads_no_triton() -> None:
    loaded = modules_after("import epan.ops, epan.nn, epan.models")
    assert "torch" in loaded
    assert "triton" not in loaded
    assert "triton" in modules_after("import epan.ops.triton.operators")


def test_the_import_check_sees_a_heavy_import() -> None:
    assert "sklearn" in modules_after("import sklearn")


def test_metadata_requires_torch_alone() -> None:
    core = [line for line in requires("epan") or [] if "extra ==" not in line]
    assert [re.split(r"[<>=!~ \[]", line)[0] for line in core] == ["torch"]
    # Users get Triton with the CUDA builds of torch; only the tests ask for it, which need it without a GPU.
    triton = [line for line in requires("epan") or [] if line.lower().startswith("triton")]
    assert len(triton) == 1
    assert re.search(r"sys_platform == ['\"]linux['\"].* and extra == ['\"]dev['\"]$", triton[0]), triton


def test_one_version_everywhere() -> None:
    stated = {
        "package": epan.__version__,
        "installed metadata": version("epan"),
        "CITATION.cff": re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)[1],  # type: ignore[index]
        "CHANGELOG.md": re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1],  # type: ignore[index]
    }
    assert set(stated.values()) == {epan.__version__}, stated


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    script = (ROOT / "scripts/check_python.py").read_text("utf-8")
    lowest, beyond = (tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", script)[:2])
    assert project["requires-python"] == f">={lowest[0]}.{lowest[1]},<{beyond[0]}.{beyond[1]}"
    minors = {f"Programming Language :: Python :: 3.{minor}" for minor in range(lowest[1], beyond[1])}
    assert minors <= set(project["classifiers"])


def test_import_contracts_are_kept_in_the_project_file() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    contracts = {contract["type"] for contract in tool["importlinter"]["contracts"]}
    assert {"layers", "forbidden", "independence"} <= contracts


def test_no_path_of_a_machine_in_the_repository() -> None:
    machine = re.compile(r"(?<![\w.~-])(/(?:home|Users)/\w+|/(?:root|work|mnt|scratch)/[\w.]|[A-Z]:\\Users\\\w)")
    assert machine.search("see " + "/".join(["", "home", "someone", "epan"]))
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in tracked_files()
        if path != Path(__file__).resolve()
        and (match := machine.search(path.read_text("utf-8", errors="replace"))) is not None
    }
    assert not found


@pytest.fixture
def old_python(tmp_path: Path) -> Path:
    """A command that runs Python and claims to be 3.9."""
    pretend = (
        "import runpy, sys; sys.version_info = (3, 9, 1, 'final', 0); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = tmp_path / "old-python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$@"\n')
    command.chmod(0o755)
    return command


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@needs_make
def test_make_refuses_a_wrong_python_before_it_downloads(tmp_path: Path, old_python: Path) -> None:
    venv = tmp_path / "venv"
    process = run("make", "test", f"VENV={venv}", f"PYTHON={old_python}")
    assert process.returncode != 0
    assert "needs Python 3.11 to 3.14" in process.stderr
    assert "is Python 3.9.1" in process.stderr
    assert not venv.exists()


@needs_make
def test_make_says_when_the_named_python_does_not_exist(tmp_path: Path) -> None:
    process = run("make", "demo", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python")
    assert process.returncode != 0
    assert "PYTHON=no-such-python is not a command" in process.stderr


def test_this_python_is_accepted() -> None:
    assert run(sys.executable, "scripts/check_python.py").returncode == 0


@needs_make
def test_make_help_names_every_target() -> None:
    process = run("make", "help")
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {"demo", "test", "check", "help", "clean"} <= targets
    assert targets <= set(re.findall(r"^  ([a-z]+) ", process.stdout, re.M))


@needs_make
def test_torch_is_asked_for_first_and_held_by_the_second_step(tmp_path: Path) -> None:
    process = run("make", "--dry-run", "demo", f"VENV={tmp_path / 'venv'}", "TORCH=torch==9.9", "TORCH_INDEX=an-index")
    steps = process.stdout
    wanted = ['install --index-url "an-index" "torch==9.9"', "-e '.[lab]'", "epan demo"]
    positions = [steps.find(step) for step in wanted]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert re.search(r"install -c \S+torch-constraint\.txt\S? -e '\.\[lab\]'", steps)
