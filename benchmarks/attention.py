"""Attention on a GPU beside its rivals: times, memory, errors and tile densities, as records.

    python benchmarks/attention.py targets                  # the goals of the fused kernels
    python benchmarks/attention.py lengths --budget 500     # 1k to 128k tokens, stop after 500 s
    python benchmarks/attention.py targets --only d=64 --only M=4,16 --peers fa2,cudnn --run last
    python benchmarks/attention.py batches                  # many short sequences
    python benchmarks/attention.py check                    # ratios and goals from the records, nothing is measured
    python benchmarks/attention.py render                   # figures, docs/gpu.md and the README from the records
    python benchmarks/attention.py tiny --device cpu        # tries the machinery

Every line of the output (default benchmarks/records/attention.jsonl) is one JSON object: one method on one workload. Methods
with the same ``run`` and ``group`` were timed alternately, call by call, after a write that empties the cache; only their
times are divided by each other. ``forward_ms`` and ``forward_backward_ms`` are medians between CUDA events, with quartiles;
``…_graph_ms`` is the time of the GPU work alone, replayed from a CUDA graph. ``memory_mb`` is the peak in MiB beyond inputs:
output, gradients and scratch. ``error`` is the relative l2 distance from float64, ``error_eager`` that of the eager backend in
the same dtype, for the output and the gradients. A run that was stopped goes on with ``--run ID``: what has a record is not
measured again, except epan itself, beside whatever is still missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cells import PRESETS, Entry, Group
from epan.errors import EpanError, unknown_name
from epan.training.environment import commit
from goals import verdicts
from keeping import append
from measure import Clock, Context, DeviceLost, common_fields, head, identity, measure, planned
from rivals import RIVALS

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "attention.jsonl"
FIELDS = ("group", "workload", "M", "N", "d", "kernel", "normalization", "rival")


def load(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none if it does not exist. A torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    records = []
    for index, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if index + 1 < len(lines):
                raise EpanError(f"Line {index + 1} of {path} is no JSON", found=line[:60], fix="remove it") from error
    return records


def select(groups: Iterable[Group], conditions: Sequence[str]) -> list[Group]:
    """The groups and entries that meet every condition ``field=value,value``."""
    wanted: list[tuple[str, set[str]]] = []
    for condition in conditions:
        name, _, values = condition.partition("=")
        if name not in FIELDS or not values:
            raise EpanError(
                "--only takes field=value,value", found=condition, allowed=FIELDS, fix="e.g. --only d=64 --only M=4,16"
            )
        wanted.append((name, set(values.split(","))))

    def meets(group: Group, entry: Entry) -> bool:
        known = {"group": group.name, **group.shape._asdict(), **vars(entry)}
        return all(str(known[name]) in values for name, values in wanted)

    chosen = []
    for group in groups:
        entries = tuple(entry for entry in group.entries if meets(group, entry))
        if entries:
            chosen.append(replace(group, entries=entries))
    if not chosen:
        raise EpanError("--only leaves nothing of this preset", found=" ".join(conditions))
    return chosen


def pending(entries: list[Entry], group: Group, context: Context, done: set[tuple[Any, ...]]) -> list[Entry]:
    """What is still to be measured of a group; epan again beside it, since a ratio needs both in turn."""
    missing = [entry for entry in entries if identity(head(entry, group, context)) not in done]
    again = [entry for entry in entries if entry.rival == "epan" and entry not in missing]
    return again + missing if missing else []


def run(options: argparse.Namespace) -> int:
    """Measures a preset; 0, or 1 if the GPU was lost."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EpanError("torch finds no NVIDIA GPU", fix="python benchmarks/attention.py tiny --device cpu")
    dtype = getattr(torch, options.dtype)
    names = None if options.peers is None else [name for name in options.peers.split(",") if name]
    for name in names or ():
        if name not in RIVALS:
            raise unknown_name("method", name, RIVALS)
    groups = select(PRESETS[options.what], options.only)
    known = load(options.out)
    context = Context(
        device, dtype, Clock(options.budget), common_fields(device, _run_id(options.run, known), options.commit or commit()),
        options.seconds, not options.no_graphs,
    )  # fmt: skip
    print(f"run {context.common['run']} on {context.common['device']}, {context.common['versions']}", flush=True)
    mine = [record for record in known if record["run"] == context.common["run"]]
    done = {identity(record) for record in mine}
    told: set[str] = set()
    left_out = 0
    for group in groups:
        entries, reasons = planned(group, context, names)
        for name, reason in reasons.items():
            if (line := f"{name}: {reason}") not in told:
                told.add(line)
                print(f"left out, {line}", flush=True)
        entries = pending(entries, group, context, done)
        if not entries:
            continue
        if context.clock.left() < 30:
            left_out += 1
            continue
        print(
            f"{group.name}: {' '.join(f'{name}={value}' for name, value in group.shape._asdict().items())}", flush=True
        )
        try:
            found = measure(group, entries, context)
        except DeviceLost as lost:
            print(f"attention.py: {lost}; go on with --run {context.common['run']}", file=sys.stderr)
            return 1
        append(found, options.out)
        mine += found
        show(found)
    if left_out:
        print(f"{left_out} groups are left for want of time: go on with --run {context.common['run']}")
    summary(mine)
    return 0


def _run_id(asked: str | None, known: list[dict[str, Any]]) -> str:
    if asked is None:
        return uuid.uuid4().hex[:12]
    if asked == "last":
        if not known:
            raise EpanError("There is no last run to go on with", fix="leave out --run last")
        return str(max(known, key=lambda record: str(record["time"]))["run"])
    return asked


def show(records: list[dict[str, Any]]) -> None:
    """The records of one group as a table, with the time of each method over that of the first."""
    first = next((record for record in records if "forward_ms" in record), None)
    print(f"  {'method':44s} {'forward':>9s} {'fwd+bwd':>9s} {'graph':>9s} {'ratio':>6s} {'MiB':>8s} {'tiles':>6s}")
    for record in records:
        name = f"{record['name']} {record['kernel']} {record['normalization']} {record['workload']} M={record['M']}"
        if "failed" in record:
            print(f"  {name:44s} {record['failed']}")
            continue
        both = record.get("forward_backward_ms")
        base = None if first is None else first.get("forward_backward_ms")
        cells = [
            f"{_cell(record.get('forward_ms')):>9s}", f"{_cell(both):>9s}",
            f"{_cell(record.get('forward_backward_graph_ms')):>9s}",
            f"{_cell(both / base if both and base else None, 2):>6s}", f"{_cell(record.get('memory_mb'), 0):>8s}",
            f"{_cell(record.get('tile_density'), 2):>6s}",
        ]  # fmt: skip
        print(f"  {name:44s} {' '.join(cells)}", flush=True)


def _cell(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def summary(records: list[dict[str, Any]]) -> None:
    """Every goal with its ratio, and the errors that exceed what is allowed."""
    found = verdicts(records)
    measured = [verdict for verdict in found if verdict.ratio is not None]
    print(
        f"\ngoals: {sum(v.reached is True for v in measured)} reached of {len(measured)} measured, {len(found)} in all"
    )
    for verdict in measured:
        state = "reached" if verdict.reached else "MISSED"
        name = f"{verdict.goal.part}: {verdict.goal.text}"
        print(f"  {name:76s} {_cell(verdict.ratio, 2):>7s}  at least {verdict.goal.least:.2f}  {state}")
    for record in records:
        for name, error in (record.get("error") or {}).items() if record["name"] == "epan" else ():
            allowed = (2 if name == "out" else 3) * record["error_eager"][name]
            if not error <= allowed:
                print(f"  error of {name} {error:.1e}, allowed {allowed:.1e}: {identity(record)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=(*PRESETS, "check", "render", "methods"), help="a preset, or what to do with records"
    )
    parser.add_argument("--only", action="append", default=[], metavar="FIELD=VALUES", help=f"of {', '.join(FIELDS)}")
    parser.add_argument("--peers", metavar="NAMES", help="only these methods beside epan, e.g. fa2,cudnn; '' for none")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop in time; the rest goes on with --run")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing per group and direction (default 4)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--out", type=Path, default=RECORDS, help="where records are appended, or read")
    parser.add_argument("--run", metavar="ID", help="go on with this run; 'last' for the newest of --out")
    parser.add_argument("--commit", help="the commit of the code, where git does not know it")
    parser.add_argument("--no-graphs", action="store_true", help="do not replay from CUDA graphs")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the documents that render writes")
    options = parser.parse_args(arguments)
    try:
        if options.what == "methods":
            for rival in RIVALS.values():
                print(
                    f"{rival.name:16s} {rival.title:36s} {rival.missing(torch.device(options.device)) or 'available'}"
                )
            return 0
        if options.what == "check":
            summary(load(options.out))
            return 0
        if options.what == "render":
            from render import render

            for path in render(load(options.out), options.root):
                print(path)
            return 0
        return run(options)
    except EpanError as error:
        print(f"attention.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
