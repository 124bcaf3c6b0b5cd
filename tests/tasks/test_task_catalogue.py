"""Finding tasks by name, and the errors of those who misspell or ask for the impossible."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from epan import tasks
from epan.errors import EpanError
from epan.tasks.flip_flop import FlipFlop
from epan.tasks.reverse import Reverse

TEN = ("reverse", "sort", "copy", "mqmtar", "mqar", "parity", "flip-flop", "local-count", "n-back", "regbench")


def test_the_catalogue() -> None:
    assert tasks.names() == TEN
    for name in TEN:
        task = tasks.get(name)
        assert task.name == name
        assert tasks.get(task) is task
        assert task.config()["name"] == name


def test_options_reach_the_task() -> None:
    assert tasks.get("reverse", symbols=16) == Reverse(symbols=16)
    assert tasks.get({"name": "reverse", "symbols": 16}) == Reverse(symbols=16)
    assert tasks.get({"name": "reverse", "symbols": 16}, symbols=8) == Reverse(symbols=8)
    assert FlipFlop(write=0.2).config() == {"name": "flip-flop", "write": 0.2, "read": 0.1}
    with pytest.raises(FrozenInstanceError):
        tasks.get("reverse").symbols = 3  # type: ignore[attr-defined]


REVERSE = tasks.get("reverse")
MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: tasks.get("revers"), r"Unknown task 'revers'.*did you mean 'reverse'"),
    (lambda: tasks.get("flip_flop"), r"did you mean 'flip-flop'"),
    (lambda: tasks.get("nback"), r"did you mean 'n-back'"),
    (lambda: tasks.get("mqmatr"), r"did you mean 'mqmtar'"),
    (lambda: tasks.get("recall"), r"use 'mqar'"),
    (lambda: tasks.get("zzz"), r"Allowed: copy, flip-flop.*use one of the allowed"),
    (lambda: tasks.get(7), r"A task is a name"),  # type: ignore[arg-type]
    (lambda: tasks.get(Reverse), r"pass an instance: Reverse\(\)"),  # type: ignore[arg-type]
    (lambda: tasks.get(REVERSE, symbols=3), r"Options belong to the name.*dataclasses.replace"),
    (lambda: tasks.get({"symbols": 3}), r"needs its name"),
    (lambda: tasks.get("reverse", symbol=3), r"option of the task 'reverse'.*did you mean 'symbols'"),
    (lambda: tasks.get("mqmtar", query=3), r"did you mean 'queries'"),
    (lambda: tasks.get("parity", lengths=3), r"Allowed: running"),
    (lambda: tasks.get("reverse", symbols=1), r"'symbols' of the task 'reverse'.*Found: 1.*at least 2"),
    (lambda: tasks.get("sort", symbols=3.5), r"'symbols'.*Found: 3.5"),
    (lambda: tasks.get("copy", symbols="32"), r"'symbols'.*an integer"),
    (lambda: tasks.get("n-back", n=0), r"'n' of the task 'n-back'.*at least 1"),
    (lambda: tasks.get("n-back", n=True), r"'n'.*Found: True"),
    (lambda: tasks.get("local-count", repeats=1), r"'repeats'.*at least 2"),
    (lambda: tasks.get("mqar", words=9), r"odd"),
    (lambda: tasks.get("mqar", words=2), r"'words'.*at least 4"),
    (lambda: tasks.get("mqmtar", words=70_000), r"'words'.*from 1 to 65536"),
    (lambda: tasks.get("mqmtar", queries=0), r"'queries'.*at least 1"),
    (lambda: tasks.get("mqmtar", vocabulary_seed="x"), r"'vocabulary_seed' is no integer"),
    (lambda: tasks.get("parity", running=1), r"'running'.*True or False"),
    (lambda: tasks.get("flip-flop", write=0), r"'write'.*above 0"),
    (lambda: tasks.get("flip-flop", read=float("nan")), r"'read'.*no probability"),
    (lambda: tasks.get("icll"), r"did you mean 'regbench'"),
    (lambda: tasks.get("regbench", automata=0), r"'automata' of the task 'regbench'.*at least 1"),
    (lambda: tasks.get("regbench", data_seed="x"), r"'data_seed' of the task 'regbench' is no integer"),
    (lambda: tasks.get("regbench", batch=4), r"Allowed: automata, data_seed"),
    (lambda: tasks.get("regbench", automata=1).sample(0, 0, 4, 0), r"'regbench' cannot have the length 0"),
    (lambda: tasks.get("regbench", automata=1).sample(0, 0, 0, 1), r"batch is out of range"),
    (lambda: tasks.get("regbench", automata=1).sample(0, 0, 4, 1, split="tset"), r"did you mean 'test'"),
    (lambda: tasks.get("regbench").automaton(500, "test"), r"test split has no such automaton.*0 to 499"),
    (lambda: tasks.get("regbench").automaton(0, "trian"), r"did you mean 'train'"),
    (lambda: tasks.get("regbench").decode([20]), r"No token of the task 'regbench'.*0 to 19"),
    (lambda: tasks.get("flip-flop", write=0.8, read=0.3), r"write \+ read.*exceeds 1"),
    (lambda: REVERSE.sample(0, 0, 4, 0), r"cannot have the length 0.*ask for a length of at least 1"),
    (lambda: REVERSE.sample(0, 0, 4, -3), r"cannot have the length -3"),
    (lambda: REVERSE.sample(0, 0, 4, (0, 8)), r"cannot have the length 0"),
    (lambda: REVERSE.sample(0, 0, 4, (9, 8)), r"shortest length exceeds.*lengths=\(8, 9\)"),
    (lambda: REVERSE.sample(0, 0, 4, (1, 2, 3)), r"one length or \(shortest, longest\)"),  # type: ignore[arg-type]
    (lambda: REVERSE.sample(0, 0, 4, 8.0), r"length is out of range.*Found: 8.0"),  # type: ignore[arg-type]
    (lambda: REVERSE.sample(0, 0, 4, True), r"length is out of range"),
    (lambda: REVERSE.sample(0, 0, 4, "64"), r"length is out of range"),  # type: ignore[arg-type]
    (lambda: REVERSE.sample(0, 0, 0, 8), r"batch is out of range.*at least 1"),
    (lambda: REVERSE.sample(0, -1, 4, 8), r"step is out of range.*at least 0"),
    (lambda: REVERSE.sample(0.5, 0, 4, 8), r"seed is out of range"),  # type: ignore[arg-type]
    (lambda: REVERSE.sample(0, 0, 4, 8, split="trian"), r"Unknown split 'trian'.*did you mean 'train'"),
    (lambda: REVERSE.sample(0, 0, 4, 8, first=-1), r"first is out of range"),
    (lambda: tasks.get("mqmtar").sample(0, 0, 4, 7), r"'mqmtar' cannot have the length 7.*at least 8"),
    (lambda: tasks.get("flip-flop").sample(0, 0, 4, 3), r"at least 4"),
    (lambda: tasks.get("n-back", n=8).sample(0, 0, 4, 8), r"at least 9"),
    (lambda: tasks.get("mqar").sample(0, 0, 4, 513), r"length 513 \(in pairs\).*1 to 512.*larger alphabet"),
]


@pytest.mark.parametrize("index", range(len(MISTAKES)))
def test_a_mistake_gets_one_clear_message(index: int) -> None:
    mistake, message = MISTAKES[index]
    with pytest.raises(EpanError, match=message):
        mistake()


def test_numbers_of_other_libraries_are_welcome() -> None:
    class Index:
        def __index__(self) -> int:
            return 8

    batch = REVERSE.sample(Index(), Index(), Index(), Index())  # type: ignore[arg-type]
    assert batch.tokens.shape == (8, 8 + 8 + 3)


def test_listing_the_names_needs_no_torch() -> None:
    code = "import sys, epan.tasks as t; t.names(); t.overlap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_public_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bach'"):
        _ = tasks.Bach
    assert all(hasattr(tasks, name) for name in tasks.__all__)
