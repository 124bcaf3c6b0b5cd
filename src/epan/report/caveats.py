"""What a reader must know before reading a difference into the numbers: unequal runs, unequal tests, gaps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from epan._text import listing
from epan.report.configs import differences, is_method_key, is_test_key
from epan.report.records import Record
from epan.report.summary import Setting

__all__ = ["caveats", "missing"]


def caveats(setting: Setting) -> list[str]:
    """Why the methods of a setting may not be compared without a second look."""
    return [*_seeds(setting), *_runs(setting), *_tests(setting)]


def _seeds(setting: Setting) -> list[str]:
    """How many samples there are of each method; a repeat is none."""
    said = []
    counts = {method.seeds for method in setting.methods}
    if counts == {1}:
        said.append("One seed per method: how much seeds differ is unknown, so small differences may be chance.")
    elif len(counts) > 1:
        text = ", ".join(f"{method.name} {method.seeds}" for method in setting.methods)
        said.append(f"The methods have different numbers of seeds: {text}.")
    for method in setting.methods:
        for seed, runs in method.by_seed().items():
            if len(runs) > 1:
                how = "with the same losses" if _same_losses(runs) else "with different losses"
                text = f"{method.name}: seed {seed} was run {len(runs)} times, {how}"
                said.append(f"{text}. A repeat is no further seed, so it counts once.")
    return said


def _same_losses(runs: Sequence[Record]) -> bool:
    curves = [{line["step"]: json.dumps(line.get("loss")) for line in run.steps} for run in runs]
    shared = set.intersection(*(set(curve) for curve in curves))
    return all(len({curve[step] for curve in curves}) == 1 for step in shared)


def _runs(setting: Setting) -> list[str]:
    """Whether the methods were trained alike."""
    said = []
    sizes = {method.parameters() for method in setting.methods} - {None}
    if len(sizes) > 1:
        text = ", ".join(f"{method.name} {method.parameters() or 0:,}" for method in setting.methods)
        said.append(f"The models differ in size: {text} parameters.")
    keys = [key for key in differences(setting.runs) if not (is_method_key(key) or is_test_key(key))]
    if keys:
        said.append(f"The runs differ in more than the method: {', '.join(keys)} (see the table of differences).")
    return said


def _tests(setting: Setting) -> list[str]:
    """Whether the methods met the same test."""
    said = []
    lines = [line for method in setting.methods for length in method.lengths() for line in method.evals(length)]
    keys = [key.removeprefix("training.") for key in differences(setting.runs) if is_test_key(key)]
    if keys:
        said.append(f"The runs were not set up to be tested alike: {', '.join(keys)} (see the table of differences).")
    steps = {int(line["step"]) for line in lines if isinstance(line.get("step"), int | float)}
    if len(steps) > 1:
        said.append(f"Not all runs were evaluated after the same number of steps ({min(steps):,} to {max(steps):,}).")
    decodings = _values(lines, "decoding")
    if len(decodings) > 1:
        said.append(f"Lengths were evaluated in different ways: {listing(decodings)}.")
    for key, what in (("seed", "seeds of the test sequences"), ("device", "devices"), ("precision", "precisions")):
        values = _values(lines, key)
        if len(values) > 1:
            said.append(f"The evaluations used different {what}: {listing(values)}.")
    other = [split for split in _values(lines, "split") if split != "test"]
    if other:
        said.append(f"Some evaluations are no test: their sequences are of the split {listing(other)}.")
    return said


def _values(lines: Sequence[dict[str, Any]], key: str) -> list[str]:
    return sorted({str(line[key]) for line in lines if line.get(key) is not None})


def missing(records: Sequence[Record]) -> list[str]:
    """What a reader does not see: runs that are not finished, evaluations that are not there, damaged lines."""
    said = []
    for record in records:
        name = record.name
        if not record.run:
            said.append(f"{name}: the header of the record is missing, so task and method are unknown.")
        if record.status != "finished":
            planned = f" of {record.planned_steps:,}" if record.planned_steps else ""
            state = (
                "has no end yet (it is running, or it was killed)"
                if record.status == "unfinished"
                else f"was {record.status}"
            )
            said.append(f"{name}: the run {state}; shown up to step {record.last_step:,}{planned}.")
        if not record.evals:
            said.append(f"{name}: no evaluation yet.")
        if record.damaged:
            lines = ", ".join(str(number) for number in record.damaged[:5]) + (", …" if len(record.damaged) > 5 else "")
            said.append(f"{name}: {len(record.damaged)} damaged line(s) of the record left out (line {lines}).")
        skipped = sum(1 for event in record.events if event.get("event") == "skipped")
        if skipped:
            said.append(f"{name}: {skipped} step(s) with a non-finite loss were skipped.")
    return said
