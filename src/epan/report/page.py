"""The page: one HTML file with its style and figures inside; no script but in a live one, nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from epan._text import duration, percent
from epan.report.configs import differences, flatten, trained_lengths
from epan.report.draw import Picture, compact
from epan.report.findings import OVERLAP, remarks
from epan.report.live import Live, overview, script
from epan.report.records import Record, number
from epan.report.summary import Setting, Summary
from epan.report.tables import MOST_LENGTHS, headline_html, score_name

__all__ = ["Section", "render"]


@dataclass(frozen=True)
class Section:
    """A heading with figures below it; ``note`` says what is missing or how to read them."""

    title: str
    anchor: str
    pictures: tuple[Picture, ...]
    note: str = ""


def _figure(picture: Picture) -> str:
    light, dark = (
        f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}" for data in (picture.light, picture.dark)
    )
    kind = "card wide" if picture.wide else "card"
    return (
        f'<figure class="{kind}"><h3>{escape(picture.title)}</h3><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(picture.alt, quote=True)}"></picture>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _section(section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    # Three in a row only where rows come out full; text in the figures grows with their width.
    columns = (
        "three" if len(section.pictures) % 3 == 0 and not any(picture.wide for picture in section.pictures) else "two"
    )
    inside = "".join(_figure(picture) for picture in section.pictures)
    grid = f'<div class="figures {columns}">{inside}</div>' if inside else ""
    return f'<h2 id="{section.anchor}">{escape(section.title)}</h2>{grid}{note}'


def _list(items: Iterable[str], kind: str) -> str:
    return f'<ul class="card {kind}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def _facts(summary: Summary) -> str:
    records = summary.records
    facts: dict[str, str] = {}
    facts["task"] = ", ".join(setting.title for setting in summary.settings)
    facts["model"] = _values(str(_part(record, "model").get("name", "")).replace("_", " ") for record in records)
    methods = {method.name for setting in summary.settings for method in setting.methods}
    facts["methods"] = str(len(methods))
    seeds = sorted({method.seeds for setting in summary.settings for method in setting.methods})
    facts["seeds per method"] = " to ".join(
        str(count) for count in (seeds if len(seeds) == 1 else [seeds[0], seeds[-1]])
    )
    facts["steps"] = _values(f"{record.planned_steps:,}" if record.planned_steps else None for record in records)
    facts["trained on length"] = _values(_trained(record) for record in records)
    counts = {int(number(line.get("sequences")) or 0) for record in records for line in record.evals} - {0}
    facts["test sequences a length"] = _values(f"{count:,}" for count in sorted(counts))
    facts["device"] = _values(_part(record, "environment").get("device") for record in records)
    total = sum(number(record.end.get("elapsed")) or 0.0 for record in records if record.end)
    unit = "h:min:s" if total >= 3600 else "min:s"
    facts[f"training time, all runs ({unit})"] = duration(total) if total else ""
    cells = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items() if value
    )
    return f'<dl class="facts">{cells}</dl>'


def _part(record: Record, name: str) -> Mapping[str, Any]:
    part = record.run.get(name)
    return part if isinstance(part, Mapping) else {}


def _values(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _trained(record: Record) -> str | None:
    bounds = trained_lengths(record)
    if bounds is None:
        return None
    low, high = bounds
    return compact(low) if low == high else f"{compact(low)} to {compact(high)}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "–" if value is None else str(value)


def _pairs_table(rows: Mapping[str, str]) -> str:
    body = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows.items()
    )
    return f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'


def _overlap(setting: Setting) -> str:
    """How many test sequences training has shown, for lengths where that is recorded."""
    known = [(length, share) for length in setting.lengths if (share := setting.overlap(length)) is not None]
    high = [f"{percent(share)}% at {compact(length)}" for length, share in known if share > OVERLAP]
    low = [compact(length) for length, share in known if share <= OVERLAP]
    least = f"below {100 * OVERLAP:g}% at "
    where = "every length" if len(low) == len(setting.lengths) else ", ".join(low)
    return ", ".join([*high, *([least + where] if low else [])])


def _environment(summary: Summary) -> str:
    records = summary.records
    flats = [flatten(_part(record, "environment")) for record in records]
    keys = dict.fromkeys(key for flat in flats for key in flat if key)
    rows = {key: _values(_text(flat[key]) for flat in flats if flat.get(key) is not None) for key in keys}
    for name in ("commit", "data_hash"):
        rows[name.replace("_", " ")] = _values(record.run.get(name) for record in records)
    several = len(summary.settings) > 1
    for setting in summary.settings:
        rows["test sequences seen in training" + (f", {setting.title}" if several else "")] = _overlap(setting)
    return _pairs_table({key: value for key, value in rows.items() if value})


def _configuration(records: Sequence[Record]) -> str:
    varying = differences(records)
    flats = [flatten({part: _part(record, part) for part in ("task", "model", "training")}) for record in records]
    shared = {key: value for key, value in flats[0].items() if all(flat.get(key, ...) == value for flat in flats)}
    common = {key: _text(value) for key, value in shared.items()}
    parts = []
    if varying:
        head = "".join(f"<th scope='col'>{escape(key)}</th>" for key in varying)
        rows = []
        for index, record in enumerate(records):
            cells = "".join(f"<td>{escape(_text(values[index]))}</td>" for values in varying.values())
            rows.append(f"<tr><th scope='row'>{escape(record.name)}</th>{cells}</tr>")
        table = f"<thead><tr><th scope='col'>run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        parts.append(f'<div class="card scroll"><table class="runs">{table}</table></div>')
    else:
        parts.append("<p>All runs have the same configuration apart from their seeds.</p>")
    parts.append(f'<details class="card"><summary>What all runs share</summary>{_pairs_table(common)}</details>')
    return "".join(parts)


def _commands(records: Sequence[Record], command: str | None, rebuild: str) -> str:
    recorded = {record.name: str(record.run["command"]) for record in records if record.run.get("command")}
    parts = []
    if command:
        parts.append(f"<p>Everything on this page:</p><pre>{escape(command)}</pre>")
    if recorded:
        lines = "\n".join(dict.fromkeys(recorded.values()))
        block = f"<pre>{escape(lines)}</pre>"
        if command or len(recorded) > 3:
            parts.append(
                f'<details class="card"><summary>Each run by itself ({len(recorded)})</summary>{block}</details>'
            )
        else:
            parts.append(f"<p>The runs:</p>{block}")
    parts.append(f"<p>This page, from the records alone:</p><pre>{escape(rebuild)}</pre>")
    return "".join(parts)


def _headline(setting: Setting, several: bool) -> str:
    title = f"Results: {setting.title}" if several else "Results"
    anchor = f"results-{setting.title}" if several else "results"
    best = "lowest" if setting.is_scored_by_loss else "highest"
    name = score_name(setting)
    note = f"{name[0].upper()}{name[1:]}: mean over seeds, below it the lowest and highest seed where they differ; bold: {best}."
    if len(setting.lengths) > MOST_LENGTHS:
        note += f" {MOST_LENGTHS} of {len(setting.lengths)} lengths; table.csv has all."
    if not setting.lengths:
        note = "No run has been evaluated yet."
    found = remarks(setting)
    heading = f"In short: {escape(setting.title)}" if several else "In short"
    return (
        (f"<h2>{heading}</h2>{_list(found, 'remarks')}" if found else "")
        + f'<h2 id="{escape(anchor, quote=True)}">{escape(title)}</h2>'
        + f'<div class="card scroll headline">{headline_html(setting)}</div><p class="note">{note}</p>'
    )


def render(
    summary: Summary,
    sections: Sequence[Section],
    missing: Sequence[str],
    title: str,
    command: str | None,
    rebuild: str,
    version: str,
    live: Live | None = None,
) -> str:
    """The whole page as text; ``live`` is for one that follows runs that go on."""
    records = summary.records
    several = len(summary.settings) > 1
    count = f"{len(records)} run" + ("s" if len(records) != 1 else "")
    style = (files("epan.report") / "page.css").read_text(encoding="utf-8")
    links = [("environment", "Environment"), ("configuration", "Configuration"), ("repeat", "Repeat it")]
    nav = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections) + "".join(
        f'<a href="#{anchor}">{text}</a>' for anchor, text in links
    )
    started = sorted(str(record.run["started"]) for record in records if record.run.get("started"))
    when = f" Started {started[0][:16].replace('T', ' ')}." if started else ""
    body = [
        f'<header><p class="kicker">epan report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{count}, drawn from their records alone.{escape(when)}</p>'
        f"{_facts(summary)}<nav>{nav}</nav></header>",
        overview(live.runs) if live is not None else "",
        f'<h2 id="missing">What is missing</h2>{_list(missing, "remarks missing")}' if missing else "",
        *(_headline(setting, several) for setting in summary.settings),
        *(_section(section) for section in sections),
        f'<h2 id="environment">Environment</h2><div class="card">{_environment(summary)}</div>',
        f'<h2 id="configuration">How the runs differ</h2>{_configuration(records)}',
        f'<h2 id="repeat">Repeat it</h2>{_commands(records, command, rebuild)}',
        f"<footer>Made by epan {escape(version)}. The folder of this page also holds every figure as PNG "
        "(<code>figures</code>) and the numbers (<code>table.csv</code>, <code>table.md</code>).</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>{script(live) if live is not None else ''}</body></html>\n"
    )
