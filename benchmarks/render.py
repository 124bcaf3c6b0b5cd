"""Figures, the tables of docs/gpu.md and of the README, from the records alone: the same records give the same bytes.

A table stands between the lines ``<!-- table NAME -->`` and ``<!-- end NAME -->``; whatever is between them is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from epan.errors import EpanError
from figures import FIGURES
from goals import EPAN, TITLES, Record, groups_of, verdicts

__all__ = ["render"]

DOCUMENTS = ("docs/gpu.md", "README.md")
RIVALS = ("fa2", "cudnn", "fa4", "adasplash2")
NOTHING = "*Nothing has been measured with this version yet.*"


def render(records: Sequence[Record], root: Path) -> list[Path]:
    """Writes figures and tables below ``root``; returns the files that it wrote.

    Raises
    ------
    EpanError: a document names a table that does not exist, or does not end one.
    """
    good = [record for record in records if "failed" not in record and str(record["device"]).startswith("NVIDIA")]
    if good:
        # One kind of GPU per page: that of the newest record.
        device = groups_of(good)[0][0]["device"]
        good = [record for record in good if record["device"] == device]
    written = []
    for name, draw in FIGURES.items():
        path = root / "docs" / "figures" / f"{name}.svg"
        if draw(good, path):
            written.append(path)
    for name in DOCUMENTS:
        path = root / name
        text = path.read_text("utf-8")
        path.write_text(_filled(text, good, name, root), "utf-8")
        written.append(path)
    return written


def _filled(text: str, records: Sequence[Record], document: str, root: Path) -> str:
    """``text`` with every table made anew."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("figure "):
            figure = name.removeprefix("figure ")
            there = (root / "docs" / "figures" / f"{figure}.svg").exists() and records
            body = f"![{figure.replace('-', ' ')}](figures/{figure}.svg)" if there else NOTHING
        elif name in TABLES:
            body = TABLES[name](records) if records else NOTHING
        else:
            raise EpanError(f"{document} asks for an unknown table", found=name, allowed=TABLES)
        return f"<!-- table {name} -->\n{body or NOTHING}\n<!-- end {name} -->"

    opened = re.findall(r"^<!-- table ([\w -]+?) -->$", text, re.M)
    filled, count = re.subn(r"^<!-- table ([\w -]+?) -->\n(?:.*?\n)??<!-- end \1 -->$", fill, text, flags=re.M | re.S)
    if count != len(opened):
        raise EpanError(f"A table of {document} has no end", found=", ".join(opened), fix="add <!-- end NAME -->")
    return filled


def _pair(records: Sequence[Record], rival: str, **both: object) -> tuple[Record, Record] | None:
    """(ours, the rival's) of the newest group that has both, adaptive biweight."""
    for group in groups_of(records):
        fitting = [record for record in group if all(record.get(name) == value for name, value in both.items())]
        ours = next((r for r in fitting if all(r.get(name) == value for name, value in EPAN.items())), None)
        other = next((r for r in fitting if r["name"] == rival), None)
        if ours is not None and other is not None:
            return ours, other
    return None


def _ours(records: Sequence[Record], **both: object) -> Record | None:
    wanted = {**EPAN, **both}
    found = [record for record in records if all(record.get(name) == value for name, value in wanted.items())]
    return max(found, key=lambda record: str(record["time"]), default=None)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _beside(records: Sequence[Record], rival: str, quantity: str, **both: object) -> str:
    """``4.41 ms (2.20×)``: the rival's time, and that over ours in the same group."""
    pair = _pair(records, rival, **both)
    if pair is None or pair[0].get(quantity) is None or pair[1].get(quantity) is None:
        return "–"
    ours, other = (record[quantity] for record in pair)
    return f"{_ms(other)} ({_ratio(other / ours)})"


def _speed(records: Sequence[Record], quantity: str) -> str:
    """Adaptive biweight on segments at N = 16,384, by head size and number of clusters."""
    rows = []
    for d in (64, 128):
        for M in (1, 4, 16, 64):
            both = {"workload": "segments", "N": 16384, "d": d, "M": M}
            ours = _ours(records, **both)
            if ours is not None and ours.get(quantity) is not None:
                cells = [_beside(records, rival, quantity, **both) for rival in RIVALS]
                rows.append(
                    [f"{d}", f"{M}", f"{100 * ours['tile_density']:.0f} %", f"**{_ms(ours[quantity])}**", *cells]
                )
    return _table(["d", "M", "tiles with weight", "epan", *(TITLES[rival] for rival in RIVALS)], rows)


def _workloads(records: Sequence[Record]) -> str:
    rows = []
    for workload, M in (("trained", 16), ("unit", 32), ("gaussian", 1)):
        both = {"workload": workload, "M": M, "N": 16384}
        ours = _ours(records, **both)
        if ours is not None:
            cells = [_beside(records, rival, "forward_backward_ms", **both) for rival in RIVALS]
            density = f"{100 * ours['tile_density']:.0f} %"
            rows.append([workload, density, f"**{_ms(ours['forward_backward_ms'])}**", *cells])
    return _table(["workload", "tiles with weight", "epan", *(TITLES[rival] for rival in RIVALS)], rows)


def _family(records: Sequence[Record]) -> str:
    """Kernels and rules beside FlashAttention-2 in the same group."""
    rows = []
    for d in (64, 128):
        for kernel, rule, M in (
            ("epanechnikov", "adaptive", 4), ("biweight", "adaptive", 4), ("triweight", "adaptive", 4),
            *(("biweight", rule, M) for rule in ("anchored", "fixed") for M in (1, 4, 16)),
        ):  # fmt: skip
            wanted = {
                "name": "epan",
                "kernel": kernel,
                "normalization": rule,
                "workload": "segments",
                "M": M,
                "d": d,
                "N": 16384,
            }
            for group in groups_of(records):
                ours = next((r for r in group if all(r.get(key) == value for key, value in wanted.items())), None)
                fa2 = next((r for r in group if r["name"] == "fa2"), None)
                if ours is not None and fa2 is not None:
                    both, other = ours["forward_backward_ms"], fa2["forward_backward_ms"]
                    rows.append(
                        [
                            kernel,
                            rule,
                            f"{d}",
                            f"{M}",
                            _ms(ours["forward_ms"]),
                            _ms(both),
                            f"{_ms(other)} ({_ratio(other / both)})",
                        ]
                    )
                    break
    return _table(["kernel", "normalization", "d", "M", "forward", "forward + backward", TITLES["fa2"]], rows)


def _goals(records: Sequence[Record]) -> str:
    rows = []
    for verdict in verdicts(records):
        if verdict.ratio is not None:
            state = "yes" if verdict.reached else "**no**"
            goal = verdict.goal
            rows.append([goal.part, goal.text, f"{verdict.ratio:.2f}", f"{goal.least:.2f}", state])
    return _table(["", "time of the other over ours", "measured", "aim", "reached"], rows)


def _slower(records: Sequence[Record]) -> str:
    """Every newest pair of forward + backward in which the rival is the faster one."""
    found: dict[tuple[object, ...], str] = {}
    for group in groups_of(records):
        for ours in (r for r in group if r["name"] == "epan" and r.get("forward_backward_ms")):
            for other in (r for r in group if r["name"] in TITLES and r.get("forward_backward_ms")):
                if (ours["workload"], ours["M"]) != (other["workload"], other["M"]):
                    continue
                names = ("kernel", "normalization", "workload", "M", "B", "H", "N", "d")
                key = (*(ours[name] for name in names), other["name"])
                ratio = other["forward_backward_ms"] / ours["forward_backward_ms"]
                what = f"{ours['workload']}, M = {ours['M']}, {ours['kernel']}, {ours['normalization']}"
                shape = f"N = {ours['N']:,}, d = {ours['d']}"
                line = f"| {what} | {shape} | {TITLES[other['name']]} | {ratio:.2f} |"
                found.setdefault(key, line if ratio < 1 else "")
    lines = sorted(line for line in found.values() if line)
    return (
        "\n".join(["| inputs and method | shape | faster | its time over ours |", "|---|---|---|---|", *lines])
        if lines
        else ""
    )


def _errors(records: Sequence[Record]) -> str:
    """The worst errors of epan beside those of the eager backend in the same dtype."""
    rows = []
    for rule in ("adaptive", "anchored", "fixed"):
        ours = [r for r in records if r["name"] == "epan" and r["normalization"] == rule and r.get("error")]
        if ours:
            worst = []
            for name in ("out", "dq", "dk", "dv"):
                error, eager = max(
                    ((r["error"][name], r["error_eager"][name]) for r in ours if name in r["error"]),
                    key=lambda pair: pair[0] / pair[1],
                )
                worst.append(f"{error:.1e} ({error / eager:.2f}×)")
            rows.append([rule, f"{len(ours)}", *worst])
    return _table(["normalization", "records", "out", "dq", "dk", "dv"], rows)


def _source(records: Sequence[Record]) -> str:
    """On what, with what and when the newest records were made."""
    newest = groups_of(records)[0][0]
    versions = {name: value for record in records for name, value in record["versions"].items()}
    listed = ", ".join(f"{name} {value}" for name, value in versions.items())
    commits = sorted({str(record["commit"])[:12] for record in records})
    days = sorted({str(record["time"])[:10] for record in records})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    dtypes = ", ".join(sorted({str(record["dtype"]) for record in records}))
    return f"{newest['device']}; {dtypes}; {listed}; commit {', '.join(commits)}; {span}; {len(records)} records."


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "source": _source,
    "speed": lambda records: _speed(records, "forward_backward_ms"),
    "forward": lambda records: _speed(records, "forward_ms"),
    "family": _family,
    "workloads": _workloads,
    "goals": _goals,
    "slower": _slower,
    "errors": _errors,
}
