"""The README is true: its Python runs and prints what it says, its commands, options, targets and files exist."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import epan

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")
README = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """(line, code) of the fenced blocks in one of ``languages``."""
    return [(text.count("\n", 0, m.start()) + 2, m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def shell_lines(text: str) -> list[tuple[int, str]]:
    """(line, command) of every command in the shell blocks, without comments and continuation."""
    commands = []
    for start, code in blocks(text, "sh", "bat"):
        joined = code.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines()):
            command = re.sub(r"(^|\s)#.*$", "", line).strip()
            if command:
                commands.append((start + offset, command))
    return commands


PYTHON = blocks(README, "python")
COMMANDS = [(name, line, text) for name in DOCUMENTS for line, text in shell_lines((ROOT / name).read_text("utf-8"))]
EPAN_COMMANDS = [(name, line, text) for name, line, text in COMMANDS if re.match(r"(\S*python\S* -m )?epan\b", text)]


@cache
def help_of(*words: str) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "epan", *words, "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 0, f"epan {' '.join(words)} --help: {process.stdout}{process.stderr}"
    return process.stdout


def test_the_documents_have_what_is_checked_here() -> None:
    assert len(PYTHON) >= 3
    assert len(EPAN_COMMANDS) >= 6


@pytest.mark.parametrize(("line", "code"), PYTHON, ids=[f"line {line}" for line, _ in PYTHON])
def test_python_blocks_print_what_they_say(
    line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if ">>>" not in code:
        exec(compile("\n" * (line - 1) + code, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
        return
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest(code, {"__name__": "readme"}, f"line {line}", "README.md", line)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(example, out=output.append)
    assert result.attempted > 0
    assert not result.failed, "".join(output)


def test_the_table_of_combinations_says_what_is_refused() -> None:
    rows = [
        row.strip("|").split("|") for row in README.splitlines() if re.match(r"\| `.*` \|", row) and row.count("|") == 7
    ]
    scores = torch.tensor([0.0, -0.25, -0.5])
    rules = ("adaptive", "anchored", "fixed", epan.Nearest(k=2))
    kernels = {"`Polynomial(order=n)`": epan.Polynomial(order=4)}
    assert len(rows) == 7
    for name, _, *cells in ([cell.strip() for cell in row] for row in rows):
        for rule, cell in zip(rules, cells, strict=True):
            kernel = epan.Uniform(radius=0.8) if "radius" in cell else kernels.get(name, name.strip('`"'))
            if cell == "–":
                with pytest.raises(epan.UnsupportedError):
                    epan.attention_weights(scores, kernel=kernel, normalization=rule)
            else:
                assert epan.attention_weights(scores, kernel=kernel, normalization=rule).sum() == pytest.approx(1)


@pytest.mark.parametrize(("document", "line", "command"), EPAN_COMMANDS, ids=lambda value: str(value))
def test_epan_commands_and_their_options_exist(document: str, line: int, command: str) -> None:
    words = shlex.split(re.sub(r"^(\S*python\S* -m )?epan\b", "", command))
    if not words or words[0].startswith("-"):
        help_of()
        return
    page = help_of(words[0])
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    missing = [option for option in options if not re.search(rf"{re.escape(option)}\b", page)]
    assert not missing, f"{document}:{line}: {missing} not in the help of epan {words[0]}:\n{page}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.M))
    text = (ROOT / document).read_text("utf-8")
    used = re.findall(r"`make ([a-z]+)((?: [A-Z_]+=\S+?)*)`", text)
    used += [m.groups() for _, c in shell_lines(text) if (m := re.match(r"make ([a-z]+)((?: [A-Z_]+=\S+)*)", c))]
    assert used
    for target, settings in used:
        assert target in targets, f"{document}: make {target}"
        assert set(re.findall(r"([A-Z_]+)=", settings)) <= variables, f"{document}: make {target}{settings}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    links = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link}
    run = re.compile(r"\b(?:python|bash|sh) ([\w./-]+\.\w+|\.ci/run)")
    scripts = {path for _, command in shell_lines(text) for path in run.findall(command)}
    quoted = set(re.findall(r"`((?:src|tests|benchmarks|scripts|\.ci)/[\w./-]+)`", text))
    missing = [path for path in sorted(links | scripts | quoted) if not (ROOT / path).exists()]
    assert not missing, f"{document} names files that are not there: {missing}"
