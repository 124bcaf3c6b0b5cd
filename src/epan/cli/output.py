"""What the commands print: lines, tables, numbers; rich where there is a terminal, plain text elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from epan._text import duration, percent
from epan.errors import EpanError

__all__ = [
    "console",
    "cores",
    "duration",
    "evaluation_table",
    "is_main",
    "is_terminal",
    "lengths",
    "notes",
    "number",
    "outcome",
    "print_table",
    "share",
]

# Spaces between two columns of a table.
GAP = 3


def is_main() -> bool:
    """Whether this is the first process that ``torchrun`` started, the one that speaks; True without it."""
    return os.environ.get("RANK", "0") == "0"


def is_terminal() -> bool:
    return sys.stdout.isatty()


def cores() -> int:
    """The CPU cores that this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def console() -> Any:
    """A rich console on standard output; wide enough for every table where there is no terminal to wrap at."""
    from rich.console import Console

    width = None if is_terminal() else max(160, shutil.get_terminal_size().columns)
    return Console(width=width, highlight=False, soft_wrap=not is_terminal())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with the first column to the left and numbers to the right; headers break where the line is too short."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows, shown = list(rows), console()
    width = sum(max(map(len, cells)) + GAP for cells in zip(columns, *rows, strict=True))
    if width > shown.width:
        columns = [column.replace(" ", "\n") for column in columns]
    table = Table(box=box.SIMPLE if is_terminal() else box.ASCII2, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    shown.print(table)


def share(value: Any) -> str:
    """``0.984`` → ``98.4%``; never rounded up to 100 % or down to 0 %."""
    if not isinstance(value, int | float):
        return "-"
    return f"{percent(value)}%"


def number(value: Any, digits: int = 3) -> str:
    return f"{value:,.{digits}g}" if isinstance(value, int | float) else "-"


def notes(
    remaining: float | None, loss: float | None, support: float | None, tokens_per_second: float | None
) -> list[str]:
    """What is told of a run that goes on, most important first; None is left out."""
    told = []
    if remaining is not None:
        told.append(f"ETA {duration(remaining)}")
    if loss is not None:
        told.append(f"loss {loss:.4f}")
    if support is not None:
        told.append(f"{number(support)} keys/query")
    if tokens_per_second:
        told.append(f"{tokens_per_second:,.0f} tokens/s")
    return told


def outcome(entry: Mapping[str, Any]) -> str:
    """What counts of an eval record: ``exact match 98.4%``, ``accuracy 93.4%, TVD 0.215``, of text the loss."""
    if "exact_match" not in entry:
        return f"loss {number(entry.get('loss'), 4)}, {number(entry.get('bits_per_byte'), 4)} bits a byte"
    if entry.get("exact_match") is None and entry.get("accuracy") is not None:
        return f"accuracy {share(entry['accuracy'])}, TVD {number(entry.get('tvd'))}"
    return f"exact match {share(entry.get('exact_match'))}"


def evaluation_table(entries: Sequence[Mapping[str, Any]]) -> None:
    """The eval records of one run as a table."""
    if entries and "exact_match" not in entries[0]:
        _text_table(entries)
        return
    columns = [
        "length",
        "exact match",
        "95% interval",
        "accuracy",
        "TVD",
        "KL",
        "token accuracy",
        "loss",
        "targets with p=0",
        "keys/query",
        "density",
        "empty rows",
        "sequences",
    ]
    if not any(entry.get("empty_rows") for entry in entries):
        columns.remove("empty rows")
    # Of tasks without a target, or without known distributions, there is nothing to tell there.
    drawn = any(entry.get("accuracy") is not None for entry in entries)
    exact = any(entry.get("exact_match") is not None for entry in entries) or not drawn
    unknown = (() if exact else ("exact match", "95% interval")) + (() if drawn else ("accuracy", "TVD", "KL"))
    columns = [column for column in columns if column not in unknown]
    if not any("zero_probability" in entry for entry in entries):
        columns.remove("targets with p=0")
    rows = []
    for entry in entries:
        low, high = entry.get("exact_match_low"), entry.get("exact_match_high")
        cells = {
            "length": f"{entry.get('length', '-')}",
            "exact match": share(entry.get("exact_match")),
            "95% interval": f"{share(low)}-{share(high)}" if low is not None and high is not None else "-",
            "accuracy": share(entry.get("accuracy")),
            "TVD": number(entry.get("tvd")),
            "KL": number(entry.get("kl")),
            "token accuracy": share(entry.get("token_accuracy")),
            "loss": number(entry.get("loss")),
            "targets with p=0": share(entry.get("zero_probability")),
            "keys/query": number(entry.get("support_size")),
            "density": share(entry.get("density")),
            "empty rows": share(entry.get("empty_rows")),
            "sequences": number(entry.get("sequences"), 6),
        }
        rows.append([cells[column] for column in columns])
    print_table(columns, rows)


def _text_table(entries: Sequence[Mapping[str, Any]]) -> None:
    """The eval records of a run that learnt from text."""
    # The loss of a sparse output distribution is in no unit, and its cross-entropy may be infinite.
    sparse = any("zero_probability" in entry for entry in entries)
    unit = "loss" if sparse else "nats"
    cells = {
        "length": lambda entry: f"{entry.get('length', '-')}",
        f"{unit}/token": lambda entry: number(entry.get("loss"), 4),
        f"{unit}/byte": lambda entry: number(entry.get("loss_per_byte"), 4),
        "bits/byte": lambda entry: number(entry.get("bits_per_byte"), 4),
        "perplexity": lambda entry: number(entry.get("perplexity"), 4),
        **({"targets with p=0": lambda entry: share(entry.get("zero_probability"))} if sparse else {}),
        "keys/query": lambda entry: number(entry.get("support_size")),
        "density": lambda entry: share(entry.get("density")),
        "tokens": lambda entry: f"{entry.get('tokens', 0):,}",
        "text": lambda entry: str(entry.get("split", "-")),
    }
    print_table([*cells], [[cell(entry) for cell in cells.values()] for entry in entries])


def lengths(values: Sequence[str], option: str, example: str = "64,128,256") -> tuple[int, ...]:
    """``["64,128", "256"]`` → ``(64, 128, 256)``; ``option`` and ``example`` are for the message.

    Raises
    ------
    EpanError: something that is no whole number of at least 1.
    """
    parts = [part for value in values for part in value.replace(",", " ").split()]
    found = []
    for part in parts:
        try:
            length = int(part.replace("_", ""))
        except ValueError:
            length = 0
        if length < 1:
            raise EpanError(f"{option} takes whole numbers of at least 1", found=part, fix=f"e.g. {option} {example}")
        found.append(length)
    return tuple(found)
