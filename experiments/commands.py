"""What the commands of every study have in common: folders of runs, tests within some time, rules, records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import collecting
import testing
from epan._lines import Entry
from epan.errors import EpanError
from epan.training import RunConfig

__all__ = ["COMMON", "add_commands", "common", "records_of", "run", "selection"]

#: What every study does alike, with ``common``.
COMMON = ("test", "pack", "collect")
RECORDS = "records.jsonl"


def add_commands(
    what: Any, tests: Mapping[str, str], rules: Mapping[str, str], example: str, results: Path
) -> dict[str, argparse.ArgumentParser]:
    """Adds the commands of ``tests``, ``collect``, ``pack``, then those of ``rules``; the parser of each by name.

    Parameters
    ----------
    what: the subparsers of a study's parser.
    tests: help by name, of commands that add to the records of trained runs.
    rules: help by name, of commands that read records.
    example: labels such as ``--only`` takes.
    results: folder of records, tables and figures.
    """
    folders = {
        **tests,
        "collect": "add the runs below the folders to the records",
        "pack": "pack run folders for another machine",
    }
    part: dict[str, argparse.ArgumentParser] = {
        name: what.add_parser(name, help=text) for name, text in folders.items()
    }
    for name in folders:
        part[name].add_argument("folders", nargs="+", type=Path, help="run folders, or folders of run folders")
    for name in tests:
        part[name].add_argument("--only", nargs="+", default=[], help=f"runs whose label fits, such as '{example}'")
        part[name].add_argument("--longest", type=int, help="leave out test lengths above this")
        part[name].add_argument("--seconds", type=float, help="start no test after so many seconds")
        part[name].add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    part["collect"].add_argument("--commit", help="the commit of the code, where a run was trained without git")
    part["pack"].add_argument("--out", type=Path, required=True, help="folder for the archives")
    part["pack"].add_argument("--whole", action="store_true", help="also the checkpoints of runs that are tested")
    for name, text in rules.items():
        part[name] = what.add_parser(name, help=text)
        part[name].add_argument("folders", nargs="*", type=Path, help="run folders to read beside the records")
    for name in ("collect", *rules):
        part[name].add_argument("--results", type=Path, default=results, help="folder of records, tables and figures")
    return part


def run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    do: Callable[[argparse.Namespace], int],
    file: str,
) -> int:
    """The exit status of ``do`` with the arguments; 2 after an error that is told to the user, with the name of ``file``."""
    options = parser.parse_args(arguments)
    try:
        return do(options)
    except EpanError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2


def selection(options: argparse.Namespace) -> testing.Selection:
    """Which tests the options of a command choose."""
    return testing.Selection(options.only, options.longest, options.seconds, options.device)


def common(
    options: argparse.Namespace,
    study: testing.Tests,
    runs: Sequence[RunConfig],
    method_of: Callable[[RunConfig], str],
    file: str,
) -> int:
    """Does one of ``COMMON``; the exit status. ``file`` lists ``runs`` for a sweep."""
    if options.what == "test":
        return testing.test(options.folders, study, selection(options))
    if options.what == "pack":
        for path in collecting.pack(options.folders, options.out, None if options.whole else study.is_tested):
            print(path)
        return 0
    repeat = f"epan sweep experiments/{file} --only"
    path, known = options.results / RECORDS, map(collecting.identity, runs)
    print(collecting.collect(options.folders, path, method_of, known, repeat, options.commit))
    return 0


def records_of(
    options: argparse.Namespace, runs: Sequence[RunConfig], method_of: Callable[[RunConfig], str]
) -> list[Entry]:
    """The records of ``runs`` in the file and in the folders of the options; says what was found."""
    path, known = options.results / RECORDS, map(collecting.identity, runs)
    records, told = collecting.gather(path, options.folders, method_of, known)
    print(told)
    return records
