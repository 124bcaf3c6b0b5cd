"""The tables: headline (HTML and Markdown), and every number in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from html import escape

from epan._text import percent
from epan.report.draw import compact
from epan.report.look import Look
from epan.report.summary import Method, Setting, Spread, Summary

__all__ = ["chip", "headline", "headline_html", "headline_markdown", "to_csv"]

MOST_LENGTHS = 8


def chosen(setting: Setting) -> list[int]:
    """The lengths of the headline table: all of them, or eight spread evenly (the CSV has all)."""
    lengths = setting.lengths
    if len(lengths) <= MOST_LENGTHS:
        return lengths
    return [lengths[round(i * (len(lengths) - 1) / (MOST_LENGTHS - 1))] for i in range(MOST_LENGTHS)]


def _support_length(setting: Setting) -> int | None:
    """The longest length at which some method reports its support."""
    known = [n for n in setting.lengths if any(m.at(n, "support_size") for m in setting.methods)]
    return known[-1] if known else None


def _distance_length(setting: Setting) -> int | None:
    """The training length, or else the longest one, where some method reports its total variation distance."""
    known = [n for n in setting.lengths if any(m.at(n, "tvd") for m in setting.methods)]
    return setting.reference if setting.reference in known else known[-1] if known else None


def chip(look: Look) -> str:
    """A short line in the method's colour and dash, as in the figures."""
    dash = f' stroke-dasharray="{" ".join(f"{part * 1.6:g}" for part in look.dash)}"' if look.dash else ""
    return (
        f'<svg class="chip" viewBox="0 0 26 10" width="26" height="10" aria-hidden="true" '
        f'style="--light:{look.colour};--dark:{look.dark}"><path d="M1 5H25" stroke-width="3"{dash}/></svg>'
    )


def score_name(setting: Setting) -> str:
    """What the headline table has of each length."""
    return "loss in nats a token" if setting.is_scored_by_loss else f"{setting.measure.name} in %"


def _score(setting: Setting) -> tuple[str, Callable[[float], str]]:
    """Field of the score, and how it is written."""
    return ("loss", lambda value: f"{value:.4g}") if setting.is_scored_by_loss else (setting.measure.field, percent)


def _cell(value: Spread | None, plain: Callable[[float], str]) -> str:
    if value is None:
        return '<td class="num none">–</td>'
    low, high = escape(plain(value.low)), escape(plain(value.high))
    span = f'<span class="range">{low}–{high}</span>' if value.count > 1 and low != high else ""
    return f'<td class="num">{escape(plain(value.mean))}{span}</td>'


def _status(method: Method) -> str:
    states = [run.status for run in method.runs]
    odd = sorted({state for state in states if state != "finished"})
    return ", ".join(f"{states.count(state)} {state}" for state in odd)


def headline_html(setting: Setting) -> str:
    """Method × length: what counts, mean with the range over seeds; size, support and speed."""
    lengths, place = chosen(setting), _support_length(setting)
    field, plain = _score(setting)
    better = min if field == "loss" else max
    best = {n: better((v.mean for m in setting.methods if (v := m.at(n, field))), default=None) for n in lengths}
    head = ['<th scope="col">method</th>']
    for length in lengths:
        times = f"<small>{setting.times(length)}</small>" if setting.reference else ""
        head.append(f'<th scope="col" class="num">{compact(length)}{times}</th>')
    distance = _distance_length(setting)
    if distance is not None:
        head.append(f'<th scope="col" class="num">TVD<small>at {compact(distance)}</small></th>')
    if place is not None:
        head.append(f'<th scope="col" class="num">keys/query<small>at {compact(place)}</small></th>')
        head.append(f'<th scope="col" class="num">density<small>at {compact(place)}</small></th>')
    head.append('<th scope="col" class="num">parameters</th><th scope="col" class="num">steps/s</th>')
    head.append('<th scope="col" class="num">seeds</th>')
    rows = []
    for method in setting.methods:
        note = _status(method)
        label = (
            f"{chip(method.look)}<span>{escape(method.name)}{f'<small>{escape(note)}</small>' if note else ''}</span>"
        )
        cells = [f'<th scope="row"><div class="method">{label}</div></th>']
        for length in lengths:
            value = method.at(length, field)
            text = _cell(value, plain)
            top = best[length]
            if value is not None and top and value.mean == top and len(setting.methods) > 1:
                text = text.replace('class="num"', 'class="num best"', 1)
            cells.append(text)
        if distance is not None:
            far = method.at(distance, "tvd")
            cells.append(f'<td class="num">{far.mean:.3g}</td>' if far else '<td class="num none">–</td>')
        if place is not None:
            size, share = method.at(place, "support_size"), method.at(place, "density")
            cells.append(f'<td class="num">{size.mean:,.3g}</td>' if size else '<td class="num none">–</td>')
            cells.append(
                f'<td class="num">{escape(percent(share.mean))}%</td>' if share else '<td class="num none">–</td>'
            )
        parameters, speed = method.parameters(), method.steps_per_second()
        cells.append(f'<td class="num">{parameters:,}</td>' if parameters else '<td class="num none">–</td>')
        cells.append(f'<td class="num">{speed.mean:,.3g}</td>' if speed else '<td class="num none">–</td>')
        cells.append(f'<td class="num">{method.seeds}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def headline(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """The headline table as plain text: column names and rows."""
    lengths, place = chosen(setting), _support_length(setting)
    field, plain = _score(setting)
    columns = ["method", *(f"{compact(n)} ({setting.times(n)})" if setting.reference else compact(n) for n in lengths)]
    distance = _distance_length(setting)
    columns += [f"TVD at {compact(distance)}"] if distance is not None else []
    if place is not None:
        columns += [f"keys/query at {compact(place)}", f"density at {compact(place)}"]
    columns += ["parameters", "steps/s", "seeds"]
    rows = []
    for method in setting.methods:
        row = [method.name, *(_plain(method.at(n, field), plain) for n in lengths)]
        if distance is not None:
            far = method.at(distance, "tvd")
            row.append(f"{far.mean:.3g}" if far else "–")
        if place is not None:
            size, part = method.at(place, "support_size"), method.at(place, "density")
            row += [f"{size.mean:,.3g}" if size else "–", f"{percent(part.mean)}%" if part else "–"]
        parameters, speed = method.parameters(), method.steps_per_second()
        row += [f"{parameters:,}" if parameters else "–", f"{speed.mean:,.3g}" if speed else "–", str(method.seeds)]
        rows.append(row)
    return columns, rows


def headline_markdown(summary: Summary) -> str:
    """The headline tables in Markdown, one per task."""
    parts = []
    for setting in summary.settings:
        columns, rows = headline(setting)
        lines = [f"### {setting.title}: {score_name(setting)}", "", f"| {' | '.join(columns)} |"]
        lines.append("|---" + "|---:" * (len(columns) - 1) + "|")
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(value: Spread | None, plain: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    low, high = plain(value.low), plain(value.high)
    return f"{plain(value.mean)} ({low}–{high})" if value.count > 1 and low != high else plain(value.mean)


_COLUMNS = ("exact_match", "accuracy", "tvd", "kl", "token_accuracy", "loss", "support_size", "density", "empty_rows")


def to_csv(summary: Summary) -> str:
    """One row per task, method and length: mean, lowest and highest seed of every figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    spans = [f"{name}{part}" for name in _COLUMNS for part in ("", "_min", "_max")]
    writer.writerow(
        [
            "task",
            "method",
            "length",
            "times_training_length",
            "seeds",
            "sequences",
            *spans,
            "parameters",
            "steps_per_second",
            "overlap",
        ]
    )
    for setting in summary.settings:
        for method in setting.methods:
            speed = method.steps_per_second()
            for length in method.lengths():
                row: list[object] = [setting.title, method.name, length]
                row.append(f"{length / setting.reference:.6g}" if setting.reference else "")
                row += [len(method.evals(length)), method.sequences(length)]
                for name in _COLUMNS:
                    value = method.at(length, name)
                    row += (
                        [f"{number:.6g}" for number in (value.mean, value.low, value.high)] if value else ["", "", ""]
                    )
                row += [method.parameters() or "", f"{speed.mean:.6g}" if speed else ""]
                overlap = method.at(length, "overlap")
                row.append(f"{overlap.mean:.6g}" if overlap else "")
                writer.writerow(row)
    return buffer.getvalue()
