"""From records to numbers: runs grouped by task, methods with their seeds, mean and range of everything shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epan.metrics import wilson_interval
from epan.report.configs import comparable, differences, flatten, is_method_key, is_test_key, trained_lengths
from epan.report.look import METHOD_ORDER, Look, looks, method_name
from epan.report.records import Record, eval_rank, number

__all__ = ["ACCURACY", "EXACT", "Measure", "Method", "Setting", "Spread", "Summary", "spread", "summarise"]


@dataclass(frozen=True)
class Measure:
    """What a test of a task counts: a field of its records, what it is called, and what it is a share of."""

    field: str
    name: str
    share: str


EXACT = Measure("exact_match", "exact match", "test sequences whose whole target is right")
ACCURACY = Measure("accuracy", "accuracy", "tokens whose most probable prediction is one that may come")


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of one value per seed."""

    mean: float
    low: float
    high: float
    count: int


def spread(values: Iterable[Any]) -> Spread | None:
    """The spread of the finite values, None where there is none."""
    kept = [v for value in values if (v := number(value)) is not None]
    return Spread(statistics.fmean(kept), min(kept), max(kept), len(kept)) if kept else None


@dataclass(frozen=True)
class Method:
    """One method in one setting: its runs differ by seed and by how they were tested, or repeat one another."""

    name: str
    kernel: Any
    normalization: Any
    runs: tuple[Record, ...]
    look: Look

    def by_seed(self) -> dict[str, list[Record]]:
        """The runs of every seed. One seed is one sample, however often it was run; an unknown seed is one of its own."""
        groups: dict[str, list[Record]] = {}
        for index, run in enumerate(self.runs):
            key = f"unknown {index}" if run.seed is None else str(run.seed)
            groups.setdefault(key, []).append(run)
        return groups

    @property
    def seeds(self) -> int:
        return len(self.by_seed())

    def trained(self) -> list[Record]:
        """One run per seed: the one that came furthest."""
        return [max(runs, key=lambda run: run.last_step) for runs in self.by_seed().values()]

    def lengths(self) -> list[int]:
        return sorted({line["length"] for run in self.runs for line in run.evals})

    def evals(self, length: int) -> list[dict[str, Any]]:
        """The evaluation at ``length`` that counts, of every seed that has one."""
        found = (
            [line for run in runs for line in run.evals if line["length"] == length] for runs in self.by_seed().values()
        )
        return [max(lines, key=eval_rank) for lines in found if lines]

    def at(self, length: int, field_name: str) -> Spread | None:
        """The spread over seeds of one field of the evaluation at ``length``."""
        return spread(line.get(field_name) for line in self.evals(length))

    def interval(self, length: int) -> tuple[float, float] | None:
        """Range over seeds, and binomial interval of all sequences: whichever reaches further."""
        lines = [line for line in self.evals(length) if number(line.get("exact_match")) is not None]
        if not lines:
            return None
        shares = [float(line["exact_match"]) for line in lines]
        counts = [int(number(line.get("sequences")) or 0) for line in lines]
        total = sum(counts)
        if total:
            right = sum(round(share * count) for share, count in zip(shares, counts, strict=True))
            low, high = wilson_interval(right, total)
            return min(low, *shares), max(high, *shares)
        return min(shares), max(shares)

    def sequences(self, length: int) -> int:
        return sum(int(number(line.get("sequences")) or 0) for line in self.evals(length))

    def parameters(self) -> int | None:
        counts = [count for run in self.runs if (count := number(run.run.get("parameters"))) is not None]
        return int(max(counts)) if counts else None

    def steps_per_second(self) -> Spread | None:
        return spread(_speed(run) for run in self.runs)


@dataclass(frozen=True)
class Setting:
    """All methods that were run on one task."""

    title: str
    task: dict[str, Any]
    methods: tuple[Method, ...]
    reference: int | None
    reference_known: bool

    @property
    def lengths(self) -> list[int]:
        return sorted({length for method in self.methods for length in method.lengths()})

    @property
    def measure(self) -> Measure:
        """Exact match; accuracy where the tokens are drawn from distributions that are known, and there is no target."""
        lines = [line for run in self.runs for line in run.evals]
        exact = any(number(line.get(EXACT.field)) is not None for line in lines)
        drawn = any(number(line.get(ACCURACY.field)) is not None for line in lines)
        return ACCURACY if drawn and not exact else EXACT

    def at(self, method: Method, length: int) -> Spread | None:
        """The spread over seeds of what counts here."""
        return method.at(length, self.measure.field)

    def interval(self, method: Method, length: int) -> tuple[float, float] | None:
        """How far it may be off: ``Method.interval``, of anything but exact match the range over seeds alone."""
        if self.measure is EXACT:
            return method.interval(length)
        value = self.at(method, length)
        return None if value is None else (value.low, value.high)

    @property
    def runs(self) -> list[Record]:
        return [run for method in self.methods for run in method.runs]

    @property
    def is_scored_by_loss(self) -> bool:
        """Whether no test has an exact match or an accuracy, as those of text, so that the loss tells how good a method is."""
        values = [(self.at(m, n), m.at(n, "loss")) for m in self.methods for n in m.lengths()]
        return all(exact is None for exact, _ in values) and any(loss is not None for _, loss in values)

    def overlap(self, length: int) -> float | None:
        """Expected share of the test sequences of ``length`` that some run met in training; None where not recorded."""
        shares = [number(line.get("overlap")) for method in self.methods for line in method.evals(length)]
        return max((share for share in shares if share is not None), default=None)

    def times(self, length: int) -> str:
        """``length`` as a multiple of the longest training length, e.g. ``2×``."""
        if not self.reference:
            return str(length)
        return f"{length / self.reference:.3g}×"


@dataclass(frozen=True)
class Summary:
    """Everything the report shows, grouped by task."""

    settings: tuple[Setting, ...]
    records: tuple[Record, ...]


def _speed(record: Record) -> float | None:
    """Steps per second: the median over the pairs of neighbouring step lines, so that pauses do not count."""
    rates = []
    for before, after in zip(record.steps, record.steps[1:], strict=False):
        start, stop = number(before.get("elapsed")), number(after.get("elapsed"))
        if start is not None and stop is not None and stop > start:
            rates.append((after["step"] - before["step"]) / (stop - start))
    return statistics.median(rates) if rates else None


def _pair(record: Record) -> tuple[Any, Any]:
    model = record.run.get("model")
    model = model if isinstance(model, Mapping) else {}
    kernel, normalization = model.get("kernel"), model.get("normalization")
    if kernel is None:
        return str(record.run.get("method") or "unknown"), normalization or "adaptive"
    return kernel, normalization or "adaptive"


def _bare(value: Any) -> str:
    return str(value.get("name", "?")) if isinstance(value, Mapping) else str(value)


def _rank(pair: tuple[Any, Any]) -> tuple[int, str]:
    key = (_bare(pair[0]), _bare(pair[1]))
    return (METHOD_ORDER.index(key) if key in METHOD_ORDER else len(METHOD_ORDER), json.dumps(pair, default=str))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _variants(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs of one method and task, split where more than seed and test differ: {suffix: runs}."""
    keys = [
        key for key in differences(records) if not (is_method_key(key) or is_test_key(key) or key.startswith("task."))
    ]
    groups: dict[str, list[Record]] = {}
    for record in records:
        flat = comparable(record)
        suffix = ", ".join(f"{key.rsplit('.', 1)[-1]}={_short(flat.get(key))}" for key in keys)
        groups.setdefault(suffix, []).append(record)
    return groups


def _reference(records: Sequence[Record], lengths: Sequence[int]) -> tuple[int | None, bool]:
    """The longest training length and whether a record states it (else the shortest test length stands in)."""
    trained = [bounds[1] for record in records if (bounds := trained_lengths(record))]
    if trained:
        return max(trained), True
    return (min(lengths), False) if lengths else (None, False)


def summarise(records: Sequence[Record]) -> Summary:
    """Group ``records`` by task, then by method; one look per method across all tasks."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        task = record.run.get("task")
        by_task.setdefault(json.dumps(task, sort_keys=True, default=str), []).append(record)
    named: dict[str, list[tuple[tuple[Any, Any], str, list[Record]]]] = {}
    for task_key, group in by_task.items():
        by_method: dict[str, list[Record]] = {}
        for record in group:
            by_method.setdefault(json.dumps(_pair(record), default=str), []).append(record)
        ordered = sorted(by_method.values(), key=lambda runs: _rank(_pair(runs[0])))
        for runs in ordered:
            pair = _pair(runs[0])
            for suffix, repeats in sorted(_variants(runs).items()):
                name = method_name(*pair) + (f" · {suffix}" if suffix else "")
                named.setdefault(task_key, []).append((pair, name, repeats))
    every = {name: pair for rows in named.values() for pair, name, _ in rows}
    order = sorted(every, key=lambda name: (_rank(every[name]), name))
    look_of = dict(zip(order, looks([every[name] for name in order]), strict=True))
    settings = []
    titles = _titles([by_task[key][0].run.get("task") for key in named])
    for (_, rows), title in zip(named.items(), titles, strict=True):
        task = rows[0][2][0].run.get("task")
        task = dict(task) if isinstance(task, Mapping) else {}
        methods = tuple(
            Method(name, pair[0], pair[1], tuple(sorted(runs, key=lambda run: str(run.seed))), look_of[name])
            for pair, name, runs in rows
        )
        lengths = [length for method in methods for length in method.lengths()]
        reference, known = _reference([run for method in methods for run in method.runs], lengths)
        settings.append(Setting(title, task, methods, reference, known))
    return Summary(tuple(settings), tuple(records))


def _titles(tasks: Sequence[Any]) -> list[str]:
    """A title for every task; where two share a name, what differs is added."""
    flats = [flatten(task if isinstance(task, Mapping) else {"name": task or "unknown task"}) for task in tasks]
    keys = sorted({key for flat in flats for key in flat if key != "name"})
    titles = []
    for flat in flats:
        twins = [other for other in flats if other.get("name") == flat.get("name")]
        extra = [f"{key}={_short(flat.get(key))}" for key in keys if len({str(other.get(key)) for other in twins}) > 1]
        titles.append(f"{flat.get('name', 'unknown task')}" + (f" ({', '.join(extra)})" if extra else ""))
    return titles
