"""Help, speed, lazy imports, missing extra."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import epan
from epan.cli.catalogue import COMMANDS
from epan.cli.main import run
from epan.errors import LAB

SOURCE = str(Path(epan.__file__).parents[1])


def test_help_lists_every_command(epan: Any) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        result = epan(*arguments)
        assert result.returncode == 0
        assert result.stderr == ""
        for name, command in COMMANDS.items():
            assert f"  {name} " in result.stdout
            assert command.summary in result.stdout


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from epan.cli.main import run; run(['--help']);"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    best = float("inf")
    # The fastest of five: other processes of a busy machine are not the command's fault.
    for _ in range(5):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
        if best < 0.5:
            break
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "numpy", "triton", "transformers", "sklearn", *LAB}
    assert best < 0.5


def test_version(epan: Any) -> None:
    from epan._version import __version__

    assert epan("--version").stdout.strip() == f"epan {__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_without_torch(name: str) -> None:
    code = f"import sys; from epan.cli.main import run; c = run([{name!r}, '--help']); print('torch' in sys.modules, c)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False 0"
    assert f"Usage: epan {name}" in result.stdout


def _bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command without site-packages (-S), and so without torch and every package of the extra."""
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); from epan.cli.main import run; sys.exit(run({arguments!r}))"
    return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)


def test_without_the_extra_a_command_says_what_to_install() -> None:
    result = _bare("train", "--steps", "3")
    assert result.returncode == 2
    assert 'pip install ".[lab]"' in result.stderr
    assert "cyclopts" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_doctor_works_without_the_extra_and_says_what_is_missing() -> None:
    result = _bare("doctor")
    assert result.returncode == 1
    assert 'pip install ".[lab]"' in result.stdout
    assert "pip install torch" in result.stdout
    assert "Traceback" not in result.stderr
    as_json = _bare("doctor", "--json")
    assert as_json.returncode == 1
    assert "pip install torch" in json.loads(as_json.stdout)["environment"]["torch"]


def test_a_misspelt_command_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    said = capsys.readouterr()
    assert "did you mean 'train'" in said.err
    assert said.out == ""


def test_an_option_before_the_command_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--kernel", "biweight"]) == 2
    assert "The command comes first" in capsys.readouterr().err


def test_an_error_of_epan_itself_is_short_and_debug_shows_it_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(importlib.import_module("epan.cli.report"), "report", broken)
    assert run(["report", "somewhere"]) == 1
    assert "epan failed unexpectedly: RuntimeError: a bug" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        run(["report", "somewhere", "--debug"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m epan --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="closes a pipe of POSIX")
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--keys"], ["demo", "--quick", "--out", "out"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    own, other = os.pipe()
    os.close(own)
    # What a buffer holds back meets the closed pipe only at exit.
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "epan", *arguments]
    result = subprocess.run(
        command, stdout=other, stderr=subprocess.PIPE, env=surroundings, text=True, cwd=tmp_path, timeout=120
    )
    os.close(other)
    assert result.returncode == 0
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval", "The run folder, or one of its checkpoint folders"),
        ("report", "Run folders, or folders of run folders"),
    ],
)
def test_positional_arguments_have_a_help(command: str, words: str, epan: Any) -> None:
    assert words in " ".join(epan(command, "--help").stdout.split())


def test_the_keys_that_set_takes_are_listed_and_taken(epan: Any) -> None:
    from epan.training import RunConfig, override

    result = epan("train", "--keys", "--task", "mqar", "--model", "transformer", "--steps", "7")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    values = {row[0]: row[1] for row in rows}
    assert values["steps"] == "7"
    assert values["optimizer.clip"] == "1.0"
    assert values["task.options.words"] == "1024"
    assert values["model.options.feed_forward"] == "swiglu"
    assert all(len(row) > 3 for row in rows)
    config = override(RunConfig(), [f"{key}={value}" for key, value in values.items() if key != "optimizer.betas"])
    assert (config.steps, config.task.name, config.model.name) == (7, "mqar", "transformer")
