"""Packages that are not there: one message that names them and says how to get them, from the library and the command."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from epan.cli.main import run
from epan.errors import LAB, EpanError, lab_imports


class Blocker(MetaPathFinder):
    """Makes the import of some packages fail as if they had never been installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``block("accelerate")``; what is imported of it already is forgotten for the test."""

    def block(*names: str, reload: tuple[str, ...] = ()) -> None:
        for module in list(sys.modules):
            if module.partition(".")[0] in names or module.startswith(reload):
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Blocker(names), *sys.meta_path])

    return block


def test_training_names_the_missing_package_and_writes_nothing(block: Any, tmp_path: Path) -> None:
    from epan.training import RunConfig, train

    for package in ("accelerate", "safetensors"):
        block(package)
        with pytest.raises(EpanError, match=rf'Training needs {package}, .*Fix: pip install "\.\[lab\]"'):
            train(RunConfig(steps=1, device="cpu"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_loading_names_the_missing_package(trained: Any, block: Any) -> None:
    import epan

    block("safetensors")
    with pytest.raises(EpanError, match=r'needs safetensors, .*Fix: pip install "\.\[lab\]"'):
        epan.load(trained[0])


def test_the_report_names_the_missing_package(trained: Any, block: Any) -> None:
    block("matplotlib", reload=("epan.report",))
    with pytest.raises(EpanError, match=r'The report needs matplotlib, .*Fix: pip install "\.\[lab\]"'):
        import epan.report  # noqa: F401


def test_a_package_of_somebody_else_stays_what_it_is() -> None:
    with pytest.raises(ModuleNotFoundError), lab_imports("This"):
        import no_such_package  # noqa: F401


@pytest.mark.parametrize("command", [["train", "--steps", "3"], ["demo"], ["sweep", "runs.py"], ["eval", "run"]])
def test_without_torch_a_command_says_so_and_does_nothing(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(command) == 2
    said = capsys.readouterr()
    assert (
        said.err == f"epan: The command {command[0]!r} needs torch, which is not installed. Fix: pip install torch.\n"
    )
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_what_the_project_file_says() -> None:
    import re
    from importlib.metadata import requires

    lines = [line for line in requires("epan") or [] if re.search(r"extra == ['\"]lab['\"]", line)]
    assert sorted(re.split(r"[<>=!~ ;\[]", line)[0] for line in lines) == sorted(LAB)
