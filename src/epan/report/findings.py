"""Sentences made from the numbers: what the runs show, and above all what they do not show."""

from __future__ import annotations

from collections.abc import Sequence

from epan.report.draw import compact
from epan.report.records import Record
from epan.report.summary import Method, Setting, differences

__all__ = ["missing", "remarks"]

LEARNT = 0.95


def remarks(setting: Setting) -> list[str]:
    """The findings of one setting, most important first."""
    said = [*_learnt(setting), *_lengths(setting), *_sparsity(setting), *_empty(setting), *_fairness(setting)]
    return said


def _percent(share: float) -> str:
    value = 100 * share
    if value in (0.0, 100.0):
        return f"{value:.0f}%"
    return f"{min(max(value, 0.1), 99.9):.1f}%"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _range(values: Sequence[float]) -> str:
    low, high = _percent(min(values)), _percent(max(values))
    return low if low == high else f"{low} to {high}"


def _learnt(setting: Setting) -> list[str]:
    """Whether the task was learnt where it was trained: beyond that, numbers of a model that did not say little."""
    if not setting.reference or not setting.reference_known:
        return []
    values = [(method, method.at(setting.reference, "exact_match")) for method in setting.methods]
    known = [(method, value) for method, value in values if value is not None]
    if not known:
        where = compact(setting.reference)
        return [f"No run was evaluated at the training length ({where}): whether the task was learnt is unknown."]
    poor = [(method, value) for method, value in known if value.low < LEARNT]
    if not poor:
        every = "every seed of " if any(value.count > 1 for _, value in known) else ""
        subject = f"{every}the method" if len(known) == 1 else f"{every}all {len(known)} methods"
        solves = "solves" if every or len(known) == 1 else "solve"
        share = _range([value.low for _, value in known] + [value.high for _, value in known])
        return [f"At the training length ({compact(setting.reference)}) {subject} {solves} {share} of the sequences."]
    text = _and([f"{method.name} ({_percent(value.low)})" for method, value in poor])
    verb = "have" if len(poor) > 1 else "has"
    return [
        f"{text} {verb} not learnt the task at the training length in every seed: "
        "what these runs do at longer lengths says nothing about generalisation"
        + (", and they are left out of the comparisons below." if len(_learners(setting)) > 1 else ".")
    ]


def _learners(setting: Setting) -> list[Method]:
    """The methods that learnt the task at the training length in every seed; all of them where that is unknown."""
    if not setting.reference or not setting.reference_known:
        return list(setting.methods)
    reached = [(method, method.at(setting.reference, "exact_match")) for method in setting.methods]
    if all(value is None for _, value in reached):
        return list(setting.methods)
    return [method for method, value in reached if value is not None and value.low >= LEARNT]


def _compare(methods: Sequence[Method], length: int) -> tuple[list[Method], list[Method], list[Method]] | None:
    """(best, not told apart from it, clearly below it) at one length, by intervals that do not overlap."""
    known = []
    for method in methods:
        value, interval = method.at(length, "exact_match"), method.interval(length)
        if value is not None and interval is not None:
            known.append((method, value.mean, interval))
    if len(known) < 2:
        return None
    best = max(known, key=lambda item: (item[1], item[2][0]))
    below = [method for method, _, interval in known if interval[1] < best[2][0]]
    near = [method for method, _, _ in known if method is not best[0] and method not in below]
    return [best[0]], near, below


def _lengths(setting: Setting) -> list[str]:
    """Where methods differ by more than seeds and counting explain, and where they do not."""
    alike: dict[str, list[int]] = {}
    said: list[str] = []
    learners = _learners(setting)
    methods = learners if len(learners) > 1 else list(setting.methods)
    for length in setting.lengths:
        result = _compare(methods, length)
        if result is None:
            continue
        best, near, below = result
        means = [value.mean for value in (m.at(length, "exact_match") for m in methods) if value]
        if not below:
            kind = "none" if max(means) == 0 else "all" if min(means) == 1 else "alike"
            alike.setdefault(kind, []).append(length)
            continue
        top = _and([f"{m.name} ({_percent(v.mean)})" for m in (*best, *near) if (v := m.at(length, "exact_match"))])
        low = _and([f"{m.name} ({_percent(v.mean)})" for m in below if (v := m.at(length, "exact_match"))])
        tied = ", which cannot be told apart," if near else ""
        verb = "lie" if len(best) + len(near) > 1 else "lies"
        said.append(
            f"At {_name(setting, length)} {top}{tied} {verb} above {low} by more than seeds and chance explain."
        )
    head = []
    # A perfect training length has been said already; with other lengths it belongs to the range.
    if "all" in alike and alike["all"] != [setting.reference]:
        where, count = alike["all"], min(_sequences(setting, length) for length in alike["all"])
        # Three over n bounds the error rate when none of n sequences was wrong, with 95 % confidence.
        unseen = f" (with {count:,} sequences, an error rate below {300 / count:.1f}% goes unseen)" if count else ""
        head.append(f"At {_names(setting, where)} every method is right on every test sequence: no difference{unseen}.")
    if "alike" in alike:
        where = alike["alike"]
        means = [v.mean for length in where for v in (m.at(length, "exact_match") for m in methods) if v]
        head.append(
            f"At {_names(setting, where)} the methods differ by no more than the seed spread or binomial interval "
            f"(means {_range(means)})."
        )
    if "none" in alike:
        head.append(
            f"At {_names(setting, alike['none'])} no method solves a single sequence, so nothing can be compared there."
        )
    return [*head, *said]


def _name(setting: Setting, length: int) -> str:
    return f"{setting.times(length)} ({compact(length)})" if setting.reference else f"length {compact(length)}"


def _names(setting: Setting, lengths: Sequence[int]) -> str:
    return _and([_name(setting, length) for length in lengths])


def _sequences(setting: Setting, length: int) -> int:
    return min((method.sequences(length) for method in setting.methods if method.evals(length)), default=0)


def _sparsity(setting: Setting) -> list[str]:
    """Keys per query at the longest length that all sparse methods share."""
    for length in reversed(setting.lengths):
        values = [
            (method, method.at(length, "support_size"), method.at(length, "density")) for method in setting.methods
        ]
        known = [(method, size, share) for method, size, share in values if size is not None]
        if len(known) < len(setting.methods) or not known:
            continue
        parts = []
        for method, size, share in sorted(known, key=lambda item: item[1].mean):
            of = f" ({_percent(share.mean)} of those it may see)" if share is not None else ""
            parts.append(f"{method.name} {size.mean:,.3g}{of}")
        return [f"Mean keys with weight per query at {_name(setting, length)}: {'; '.join(parts)}."]
    return []


def _empty(setting: Setting) -> list[str]:
    said = []
    for method in setting.methods:
        values = [(length, method.at(length, "empty_rows")) for length in method.lengths()]
        worst = max(((v.mean, length) for length, v in values if v is not None), default=(0.0, 0))
        if worst[0] > 0:
            where = _name(setting, worst[1])
            said.append(f"{method.name} leaves up to {_percent(worst[0])} of the queries without any key (at {where}).")
    return said


def _fairness(setting: Setting) -> list[str]:
    """What a reader must know before reading a difference into the table."""
    said = []
    seeds = {method.seeds for method in setting.methods}
    if seeds == {1}:
        said.append("One seed per method: how much seeds differ is unknown, so small differences may be chance.")
    elif len(seeds) > 1:
        said.append(
            "The methods have different numbers of seeds: "
            + ", ".join(f"{m.name} {m.seeds}" for m in setting.methods)
            + "."
        )
    counts = {method.parameters() for method in setting.methods} - {None}
    if len(counts) > 1:
        said.append(
            "The models differ in size: "
            + ", ".join(f"{m.name} {m.parameters() or 0:,}" for m in setting.methods)
            + " parameters."
        )
    keys = [key for key in differences(setting.runs) if not _about_method(key)]
    if keys:
        said.append(f"The runs differ in more than the method: {', '.join(keys)} (see the table of differences).")
    reached = {
        int(line["step"]) for run in setting.runs for line in run.evals if isinstance(line.get("step"), int | float)
    }
    if len(reached) > 1:
        said.append(
            f"Not all runs were evaluated after the same number of steps ({min(reached):,} to {max(reached):,})."
        )
    decodings = {str(line.get("decoding")) for run in setting.runs for line in run.evals if line.get("decoding")}
    if len(decodings) > 1:
        said.append(f"Lengths were evaluated in different ways: {_and(sorted(decodings))}.")
    return said


def _about_method(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "model" and parts[1] in ("kernel", "normalization")


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
