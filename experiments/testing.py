"""Tests of trained runs at the lengths of a study, added to their records, as far as they are not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import folders_below
from epan._lines import Entry
from epan.errors import EpanError
from epan.training import RunConfig, evaluate_run, records
from epan.training.sweepfile import select

__all__ = ["Clock", "Selection", "Study", "Tests", "TextStudy", "finished", "test"]


class Tests:
    """Which tests the runs of a study are to have, and how one is taken."""

    def missing(self, run: RunConfig, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        """Split and length of the tests that a finished run lacks."""
        raise NotImplementedError

    def take(self, folder: Path, split: str, length: int, device: str) -> str:
        """Take one and write it into the record; what came out, for people."""
        raise NotImplementedError

    def is_tested(self, folder: Path) -> bool:
        """Whether a run is finished and tested, so that nothing is left to do with its weights."""
        entries = records.read(folder)
        run = RunConfig.from_dict(records.header(entries, folder)["config"])
        return records.summary(entries).status == "finished" and not self.missing(run, entries)


@dataclass(frozen=True)
class Study(Tests):
    """What the runs of a study are tested on.

    Parameters
    ----------
    lengths: test lengths of a run. sequences: how many sequences of a length.
    validation: lengths of the validation split, for choices that the test is not to make.
    few: how many sequences are enough where not one of all those of a shorter length was right; None: all of them.
    """

    lengths: Callable[[RunConfig], tuple[int, ...]]
    sequences: Callable[[int], int]
    validation: tuple[int, ...] = ()
    few: int | None = None

    def wanted(self, split: str, length: int, tests: Iterable[Mapping[str, Any]]) -> int:
        """Sequences that a test is to have at least, by the tests that its run has had."""
        full = self.sequences(length)
        hopeless = split == "test" and any(
            test.get("split") == "test"
            and test["length"] < length
            and test["exact_match"] == 0
            and test["sequences"] >= self.sequences(test["length"])
            for test in tests
        )
        return min(full, self.few) if hopeless and self.few is not None else full

    def missing(self, run: RunConfig, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        """Split and length of the tests that a finished run lacks, the short ones first."""
        there = {
            (entry["split"], entry["length"])
            for entry in entries
            if entry["kind"] == "eval"
            and entry["step"] == run.steps
            and entry["seed"] == run.evaluation.seed
            and entry["sequences"] >= self.wanted(entry["split"], entry["length"], entries)
        }
        wanted = [("validation", length) for length in self.validation]
        wanted += [("test", length) for length in sorted(self.lengths(run))]
        return [test for test in wanted if test not in there]

    def take(self, folder: Path, split: str, length: int, device: str) -> str:
        """Exact match, or accuracy and distance to the exact distribution."""
        sequences = self.wanted(split, length, records.read(folder))
        result = evaluate_run(folder, [length], sequences=sequences, split=split, device=device)[0]
        if result["exact_match"] is None:
            return f"accuracy {result['accuracy']:.1%}, TVD {result['tvd']:.3f}"
        return f"{result['exact_match']:.1%} exact"


@dataclass(frozen=True)
class TextStudy(Tests):
    """What language models are tested on: the test text, and another text.

    Parameters
    ----------
    lengths: lengths of the windows for a run. other: the other text; None: any will do, and none can be taken.
    """

    lengths: Callable[[RunConfig], tuple[int, ...]]
    other: Path | None = None

    def missing(self, run: RunConfig, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        """Split and length of the tests that a finished run lacks; another text has its name as split."""
        there = {
            (entry["split"], entry["length"])
            for entry in entries
            if entry["kind"] == "eval" and entry["step"] == run.steps
        }
        if self.other is None:
            there |= {("other", length) for split, length in there if split not in ("train", "validation", "test")}
        wanted = ("test", "other" if self.other is None else self.other.name)
        return [(split, length) for split in wanted for length in self.lengths(run) if (split, length) not in there]

    def take(self, folder: Path, split: str, length: int, device: str) -> str:
        """The loss in nats a token."""
        text = None if split == "test" else str(self.other)
        return f"{evaluate_run(folder, [length], text=text, device=device)[0]['loss']:.4f} nats a token"


@dataclass(frozen=True)
class Selection:
    """Of what is missing: runs whose label fits ``only``, lengths up to ``longest``, begun within ``seconds``."""

    only: Sequence[str] = ()
    longest: int | None = None
    seconds: float | None = None
    device: str = "auto"


class Clock:
    """Says whether another test may begin, and counts those that may not."""

    def __init__(self, chosen: Selection) -> None:
        self._began, self._chosen, self.left = time.monotonic(), chosen, 0

    def fits(self, length: int) -> bool:
        """Whether tests of this length are asked for at all."""
        return self._chosen.longest is None or length <= self._chosen.longest

    def begins(self, waiting: int = 1) -> bool:
        """Whether a test may begin now; if not, so many are left."""
        late = self._chosen.seconds is not None and time.monotonic() - self._began > self._chosen.seconds
        self.left += waiting * late
        return not late

    def end(self, what: str = "tests") -> int:
        """The exit status: 0, or 75 if time ran out and something is left."""
        if self.left:
            print(f"The time is over; {self.left} {what} are left. The same command goes on.")
        return 75 if self.left else 0


def finished(folders: Iterable[Path], only: Sequence[str]) -> Iterator[tuple[Path, RunConfig, list[Entry]]]:
    """Folder, config and record of the finished runs whose label fits ``only``.

    Raises
    ------
    EpanError: a folder or record that cannot be read, or no run fits.
    """
    found = {folder: records.read(folder) for folder in folders_below(folders)}
    done = {folder: entries for folder, entries in found.items() if records.summary(entries).status == "finished"}
    if not done:
        raise EpanError("No run is finished", found=f"{len(found)} run folders", fix="let the sweep go on first")
    configs = {folder: RunConfig.from_dict(records.header(done[folder], folder)["config"]) for folder in done}
    labels = {run.label for run in select(list(configs.values()), only)}
    for folder, entries in done.items():
        if configs[folder].label in labels:
            yield folder, configs[folder], entries


def test(folders: Iterable[Path], study: Tests, chosen: Selection) -> int:
    """Test what is missing and write it into the records. Returns 0, or 75 if time ran out and something is left.

    Raises
    ------
    EpanError: a folder or checkpoint that cannot be read, or no run fits.
    """
    clock = Clock(chosen)
    for folder, run, entries in finished(folders, chosen.only):
        for split, length in study.missing(run, entries):
            if not (clock.fits(length) and clock.begins()):
                continue
            start = time.monotonic()
            found = study.take(folder, split, length, chosen.device)
            print(f"{run.label}  {split} {length}: {found}  ({time.monotonic() - start:.1f} s)", flush=True)
    return clock.end()
