"""Trained runs with β multiplied at test time, and which growth of β with the length validation would have chosen.

A line of kind ``temperature`` in the record of a run is one test with β of all contextual memories, or attention heads, times
``factor`` (``epan.nn.scaled``). What would be chosen is worked out from those lines alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import TEMPERED
from epan._lines import Entry
from epan.training import RunConfig, records
from testing import Clock, Selection, finished

__all__ = ["Ladder", "has_temperature", "temper", "tests_of"]

#: Factor of β at the length L, as a multiple of the longest training length, for a number that is to be chosen.
GROWTH: dict[str, Callable[[float, float], float]] = {
    "constant": lambda number, multiple: number,
    "power": lambda number, multiple: multiple**number,
    "logarithm": lambda number, multiple: 1 + number * math.log(multiple),
}


@dataclass(frozen=True)
class Ladder:
    """Which factors are tried, and what may be chosen on which validation sequences.

    Parameters
    ----------
    factors: of β, at every length. numbers: candidates of each growth of ``GROWTH``; "constant" has the factors.
    trained: the longest training length. longer: validation lengths beyond it.
    lengths: test lengths of a run. sequences: how many sequences of a length, of either split.
    """

    factors: tuple[float, ...]
    numbers: Mapping[str, tuple[float, ...]]
    trained: int
    longer: tuple[int, ...]
    lengths: Callable[[RunConfig], tuple[int, ...]]
    sequences: Callable[[int], int]

    def factor(self, growth: str, number: float, length: int) -> float:
        """The factor of β at a length, to six digits."""
        return float(f"{GROWTH[growth](number, length / self.trained):.6g}")

    def choices(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What is chosen: its name in tables, the growth, and the validation lengths that decide."""
        beyond = f"on validation to {max(self.longer)}"
        return {
            f"constant, on validation at {self.trained}": ("constant", (self.trained,)),
            f"constant, {beyond}": ("constant", self.longer),
            **{f"{growth}, {beyond}": (growth, self.longer) for growth in self.numbers},
        }

    def candidates(self, growth: str) -> tuple[float, ...]:
        return self.factors if growth == "constant" else self.numbers[growth]

    def chosen(self, growth: str, decide: Sequence[int], done: Mapping[tuple[str, int, float], Any]) -> float | None:
        """The candidate with the highest mean exact match at the lengths ``decide``, among equals the lowest mean loss.

        None until all tests of all candidates are there. What changes nothing comes first, so that equals leave β alone.
        """
        still = 1.0 if growth == "constant" else 0.0
        best: tuple[float, float, float] | None = None
        for number in sorted(self.candidates(growth), key=lambda number: abs(number - still)):
            tests = [done.get(("validation", length, self.factor(growth, number, length))) for length in decide]
            if any(test is None for test in tests):
                return None
            exact = math.fsum(test["exact_match"] for test in tests) / len(tests)
            losses = [math.inf if test["loss"] is None else test["loss"] for test in tests]
            if best is None or (exact, -math.fsum(losses)) > best[:2]:
                best = (exact, -math.fsum(losses), number)
        return None if best is None else best[2]

    def wanted(self, run: RunConfig, done: Mapping[tuple[str, int, float], Any]) -> list[tuple[str, int, float]]:
        """Split, length and factor of the tests of a run that are known to be wanted: validation, then test, short first."""
        wanted = [("validation", self.trained, factor) for factor in self.factors]
        for length in self.longer:
            for growth in ("constant", *self.numbers):
                wanted += [
                    ("validation", length, self.factor(growth, number, length)) for number in self.candidates(growth)
                ]
        for length in sorted(self.lengths(run)):
            wanted += [("test", length, factor) for factor in self.factors]
            for growth, decide in self.choices().values():
                number = self.chosen(growth, decide, done)
                if number is not None:
                    wanted.append(("test", length, self.factor(growth, number, length)))
        return list(dict.fromkeys(wanted))


def has_temperature(run: RunConfig) -> bool:
    """Whether β plays a part: not for equal weights on the k nearest keys, whose order it leaves as it is."""
    from epan import kernels, normalizations

    kernel, rule = kernels.get(run.model.kernel), normalizations.get(run.model.normalization)
    return not (isinstance(kernel, kernels.Uniform) and isinstance(rule, normalizations.Nearest))


def tests_of(entries: Iterable[Entry], run: RunConfig, ladder: Ladder) -> dict[tuple[str, int, float], Entry]:
    """The whole tests of kind ``temperature`` of a record at its last step."""
    return {
        (entry["split"], entry["length"], entry["factor"]): entry
        for entry in entries
        if entry["kind"] == "temperature"
        and entry["step"] == run.steps
        and entry["seed"] == run.evaluation.seed
        and entry["sequences"] >= ladder.sequences(entry["length"])
    }


def temper(folders: Iterable[Path], ladder: Ladder, chosen: Selection) -> int:
    """Test with each factor what is missing and write it into the records. Returns 0, or 75 if time ran out.

    Raises
    ------
    EpanError: a folder or checkpoint that cannot be read, or no run fits.
    """
    # Records are read without torch.
    from epan.nn import scaled
    from epan.training.evaluation import evaluate
    from epan.training.loading import autocast, build_task, find_device, load

    clock = Clock(chosen)
    for folder, run, entries in finished(folders, chosen.only):
        if not has_temperature(run):
            print(f"{run.label}: equal weights on the {run.model.normalization} keys do not depend on β; left out")
            continue
        done, model, place = tests_of(entries, run, ladder), None, find_device(chosen.device)
        while True:
            # What validation chooses is known, and wanted, once validation is complete.
            missing = [test for test in ladder.wanted(run, done) if test not in done and clock.fits(test[1])]
            if not missing or not clock.begins(len(missing)):
                break
            start, (split, length, factor) = time.monotonic(), missing[0]
            model = load(folder, device=place) if model is None else model
            with scaled(model, factor), autocast(run.precision, place):
                result = evaluate(
                    model,
                    build_task(run),
                    [length],
                    sequences=ladder.sequences(length),
                    seed=run.evaluation.seed,
                    decoding="teacher-forced",
                    batch_tokens=run.evaluation.batch_tokens,
                    split=split,
                    stats=False,
                    step=run.steps,
                )[0]
            kept = {
                name: result[name] for name in (*TEMPERED, "step", "seed", "precision", "device") if name != "factor"
            }
            with records.RecordWriter(folder) as writer:
                done[split, length, factor] = writer.write("temperature", factor=factor, **kept)
            said = f"{result['exact_match']:.1%} exact  ({time.monotonic() - start:.1f} s)"
            print(f"{run.label}  {split} {length}, β × {factor:g}: {said}", flush=True)
    return clock.end()
