"""Sentences made from the numbers: what the runs show, and above all what they do not show."""

from __future__ import annotations

from collections.abc import Sequence

from epan._text import listing, percent
from epan.report.caveats import caveats
from epan.report.draw import compact
from epan.report.summary import EXACT, Method, Setting

__all__ = ["OVERLAP", "remarks"]

LEARNT = 0.95
OVERLAP = 0.001


def remarks(setting: Setting) -> list[str]:
    """The findings of one setting, most important first."""
    parts = (_learnt, _lengths, _overlap, _sparsity, _empty, caveats)
    return [sentence for part in parts for sentence in part(setting)]


def _percent(share: float) -> str:
    return f"{percent(share)}%"


def _range(values: Sequence[float]) -> str:
    low, high = _percent(min(values)), _percent(max(values))
    return low if low == high else f"{low} to {high}"


def _losses(setting: Setting, length: int) -> list[str]:
    """The loss of each method at the training length."""
    values = [(method.name, value) for method in setting.methods if (value := method.at(length, "loss"))]
    told = listing([f"{name} {value.mean:.4g}" for name, value in sorted(values, key=lambda item: item[1].mean)])
    return (
        [f"Loss at the training length ({compact(length)}), in nats a token, lower is better: {told}."] if told else []
    )


def _learnt(setting: Setting) -> list[str]:
    """Whether the task was learnt where it was trained: beyond that, numbers of a model that did not say little."""
    if not setting.reference or not setting.reference_known:
        return []
    if setting.is_scored_by_loss:
        return _losses(setting, setting.reference)
    if setting.measure is not EXACT:
        return _reached(setting, setting.reference)
    values = [(method, method.at(setting.reference, "exact_match")) for method in setting.methods]
    known = [(method, value) for method, value in values if value is not None]
    where = compact(setting.reference)
    if not known:
        return [f"No run was evaluated at the training length ({where}): whether the task was learnt is unknown."]
    poor = [(method, value) for method, value in known if value.low < LEARNT]
    compared = len(_learners(setting)) > 1
    said = []
    if poor:
        text = listing([f"{method.name} ({_percent(value.low)})" for method, value in poor])
        said.append(
            f"{text} {_have(len(poor))} not learnt the task at the training length in every seed: "
            "what these runs do at longer lengths says nothing about generalisation"
            + (", and they are left out of the comparisons below." if compared else ".")
        )
    else:
        every = "every seed of " if any(value.count > 1 for _, value in known) else ""
        if len(known) > 1:
            subject = f"{every}all {_methods(setting, len(known))}"
        else:
            subject = every + (known[0][0].name if len(setting.methods) > 1 else "the method")
        solves = "solves" if every or len(known) == 1 else "solve"
        share = _range([value.low for _, value in known] + [value.high for _, value in known])
        said.append(f"At the training length ({where}) {subject} {solves} {share} of the sequences.")
    return said + _untested(setting, compared)


def _reached(setting: Setting, length: int) -> list[str]:
    """The accuracy at the training length; there is no level from which a language counts as learnt."""
    values = [value for method in setting.methods if (value := setting.at(method, length)) is not None]
    if not values:
        return [f"No run was evaluated at the training length ({compact(length)})."]
    who = f"all {_methods(setting, len(values))}" if len(values) > 1 else "the method"
    every = "every seed of " if any(value.count > 1 for value in values) else ""
    share = _range([value.low for value in values] + [value.high for value in values])
    have = "have" if len(values) > 1 and not every else "has"
    said = f"At the training length ({compact(length)}) {every}{who} {have} an accuracy of {share}"
    far = [value for method in setting.methods if (value := method.at(length, "tvd")) is not None]
    if far:
        low, high = min(value.low for value in far), max(value.high for value in far)
        span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        said += f" and a total variation distance of {span} from the exact distribution of the next token"
    return [f"{said}."]


def _untested(setting: Setting, compared: bool) -> list[str]:
    """Methods, or seeds of a method, without a test at the training length: whether they learnt the task is unknown."""
    said = []
    counts = {method.name: len(method.evals(setting.reference or 0)) for method in setting.methods}
    names = [name for name, count in counts.items() if not count]
    if names:
        was, it = ("were", "they are") if len(names) > 1 else ("was", "it is")
        said.append(
            f"{listing(names)} {was} not tested at the training length, so whether the task was learnt is unknown"
            + (f"; {it} left out of the comparisons below." if compared else ".")
        )
    some = [method for method in setting.methods if 0 < counts[method.name] < method.seeds]
    if some:
        text = listing([f"{method.name} ({counts[method.name]} of {method.seeds} seeds)" for method in some])
        said.append(f"Not every seed was tested at the training length: {text}.")
    return said


def _have(count: int) -> str:
    return "have" if count > 1 else "has"


def _methods(setting: Setting, count: int) -> str:
    """``3 methods``, or ``2 compared methods`` where the setting has more."""
    return f"{count} methods" if count == len(setting.methods) else f"{count} compared methods"


def _learners(setting: Setting) -> list[Method]:
    """The methods that learnt the task at the training length in every seed; all of them where that is unknown."""
    if not setting.reference or not setting.reference_known or setting.measure is not EXACT:
        return list(setting.methods)
    reached = [(method, method.at(setting.reference, "exact_match")) for method in setting.methods]
    if all(value is None for _, value in reached):
        return list(setting.methods)
    return [method for method, value in reached if value is not None and value.low >= LEARNT]


def _compare(
    setting: Setting, methods: Sequence[Method], length: int
) -> tuple[list[Method], list[Method], list[Method]] | None:
    """(best, not told apart from it, clearly below it) at one length, by intervals that do not overlap."""
    known = []
    for method in methods:
        value, interval = setting.at(method, length), setting.interval(method, length)
        if setting.measure is not EXACT and value is not None and value.count < 2:
            # One seed says nothing of how far seeds are apart.
            return None
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
    alike: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    said: list[str] = []
    learners = _learners(setting)
    methods = learners if len(learners) > 1 else list(setting.methods)
    for length in setting.lengths:
        result = _compare(setting, methods, length)
        if result is None:
            continue
        best, near, below = result
        values = [(method, value) for method in methods if (value := setting.at(method, length))]
        if not below:
            means = [value.mean for _, value in values]
            kind = "none" if max(means) == 0 else "all" if min(means) == 1 else "alike"
            kind = kind if setting.measure is EXACT else "alike"
            alike.setdefault((kind, tuple(method.name for method, _ in values)), []).append(length)
            continue
        top = listing([f"{m.name} ({_percent(v.mean)})" for m in (*best, *near) if (v := setting.at(m, length))])
        low = listing([f"{m.name} ({_percent(v.mean)})" for m in below if (v := setting.at(m, length))])
        tied = ", which cannot be told apart," if near else ""
        verb = "lie" if len(best) + len(near) > 1 else "lies"
        said.append(
            f"At {_name(setting, length)} {top}{tied} {verb} above {low} by more than {_noise(setting)} explain."
        )
    order = ("all", "alike", "none")
    groups = sorted(alike.items(), key=lambda item: (order.index(item[0][0]), item[1]))
    head = [_equal(setting, methods, kind, names, where) for (kind, names), where in groups]
    return [*(text for text in head if text), *said]


def _equal(setting: Setting, methods: Sequence[Method], kind: str, names: Sequence[str], where: list[int]) -> str:
    """One sentence on lengths where the methods ``names`` cannot be told apart."""
    absent = [method.name for method in methods if method.name not in names]
    who = _methods(setting, len(names)) + (f" (not {listing(absent)}, untested there)" if absent else "")
    present = [method for method in methods if method.name in names]
    if kind == "none":
        return f"At {_names(setting, where)} none of the {who} solves a single sequence: nothing can be compared there."
    if kind == "all":
        # A perfect training length has been said already; with other lengths it belongs to the range.
        if where == [setting.reference] and not absent:
            return ""
        count = min(method.sequences(length) for method in present for length in where)
        # Three over n bounds the error rate when none of n sequences was wrong, with 95 % confidence.
        unseen = f" (with {count:,} sequences, an error rate below {300 / count:.1f}% goes unseen)" if count else ""
        return f"At {_names(setting, where)} all {who} are right on every test sequence: no difference{unseen}."
    means = [v.mean for length in where for m in present if (v := setting.at(m, length))]
    spread = "seed spread or binomial interval" if setting.measure is EXACT else "seed spread"
    return f"At {_names(setting, where)} the {who} differ by no more than the {spread} (means {_range(means)})."


def _noise(setting: Setting) -> str:
    return "seeds and chance" if setting.measure is EXACT else "seeds"


def _name(setting: Setting, length: int) -> str:
    return f"{setting.times(length)} ({compact(length)})" if setting.reference else f"length {compact(length)}"


def _names(setting: Setting, lengths: Sequence[int]) -> str:
    return listing([_name(setting, length) for length in lengths])


def _overlap(setting: Setting) -> list[str]:
    """Test sequences that training has shown: a right answer to these may be remembered."""
    shares = [(length, share) for length in setting.lengths if (share := setting.overlap(length)) is not None]
    seen = [(length, share) for length, share in shares if share > OVERLAP]
    if not seen:
        return []
    parts = [f"{_percent(share)} of the test sequences at {_name(setting, length)}" for length, share in seen]
    return [f"About {listing(parts)} also occur in training: the answers to these may have been remembered."]


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
