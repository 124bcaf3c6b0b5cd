"""Which checkpoints of a run are the best: a function of its record alone, so that a resumed run keeps the same ones.

Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from epan._lines import Entry, number
from epan.training.config import EvaluationConfig, RunConfig

__all__ = ["Place", "own_tests", "ranking"]


class Place(NamedTuple):
    """A step that was tested, and what decides how good it is: ``value`` of ``metric`` at ``length``."""

    step: int
    metric: str
    length: int
    value: float

    def __str__(self) -> str:
        return f"{self.metric.replace('_', ' ')} {self.value:.4g} at length {self.length}"


def own_tests(
    entries: Iterable[Entry], chosen: EvaluationConfig, until: float = math.inf, split: str = "test"
) -> list[Entry]:
    """The ``eval`` lines up to a step that the run itself wrote or might have written; a quick look is none of them.

    ``split`` is that on which a run of this task is tested.
    """
    wanted = {"seed": chosen.seed, "split": split}
    tests = [entry for entry in entries if entry["kind"] == "eval" and wanted.items() <= entry.items()]
    # A text may have fewer windows than are asked for.
    tests = [test for test in tests if test.get("asked", test.get("sequences")) == chosen.sequences]
    tests = [test for test in tests if chosen.decoding in ("auto", test.get("decoding"))]
    return [test for test in tests if (number(test.get("step")) or 0) <= until]


def ranking(entries: Iterable[Entry], config: RunConfig, length: int, split: str = "test") -> list[Place]:
    """The tested steps of a run, the best first, by ``config.best_by`` at ``length``.

    Exact match and token accuracy count upwards, the loss downwards. Of steps with the same accuracy that with the lower
    loss is better, then the later one. A number that is not finite is no rank.
    """
    best, order = {}, {}
    for test in own_tests(entries, config.evaluation, split=split):
        step, value, loss = number(test.get("step")), number(test.get(config.best_by)), number(test.get("loss"))
        if test.get("length") != length or step is None or value is None or step in best:
            continue
        sign = -1 if config.best_by == "loss" else 1
        best[step] = Place(int(step), config.best_by, length, value)
        order[step] = (sign * value, -math.inf if loss is None else -loss, step)
    return [best[step] for step in sorted(best, key=order.__getitem__, reverse=True)]
