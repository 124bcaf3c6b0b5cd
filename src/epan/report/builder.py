"""From record folders to the report folder: page, pictures, tables."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from epan._version import __version__
from epan.errors import EpanError
from epan.report import figures_kernels, figures_lengths, figures_positions, figures_training
from epan.report.caveats import missing
from epan.report.draw import RC, Picture
from epan.report.live import SIGNAL, Live, signal
from epan.report.page import Section, render
from epan.report.records import find
from epan.report.summary import Setting, Summary, summarise
from epan.report.tables import headline_markdown, to_csv

__all__ = ["build", "publish"]


def build(
    paths: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    title: str | None = None,
    command: str | None = None,
    live: Live | None = None,
) -> Path:
    """Write the report on all runs at or below ``paths`` into the folder ``out``.

    Parameters
    ----------
    paths: a run folder, a folder of run folders, or several of them.
    out: gets ``index.html`` (self-contained), ``figures/*.png``, ``table.csv`` and ``table.md``.
    title: heading of the page; from the tasks if None.
    command: the command that repeats everything, shown on the page.
    live: where each run stands, for a page that shows it and loads itself again when there is a newer one.

    Returns
    -------
    The path of ``index.html``.

    Raises
    ------
    EpanError: no record is found, or ``out`` cannot be written.
    """
    records = find(paths)
    out = Path(out)
    figures = out / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
        summary = summarise(records)
        with matplotlib.rc_context(RC):
            sections = _sections(summary, figures)
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        rebuild = shlex.join(["epan", "report", *(str(path) for path in listed), "--out", str(out)])
        page = render(
            summary, sections, missing(records), title or _title(summary), command, rebuild, __version__, live
        )
        _write(out / "table.csv", to_csv(summary))
        _write(out / "table.md", headline_markdown(summary))
        _write(out / "index.html", page)
        if live is None:
            # What tells an open page of a watch that this one is the last.
            (out / SIGNAL).unlink(missing_ok=True)
    except OSError as error:
        raise EpanError(
            f"The report cannot be written: {error.strerror or error}",
            found=str(out),
            fix="give a folder that you may write, with --out",
        ) from error
    return out / "index.html"


def publish(live: Live, out: Path) -> None:
    """Tell open pages in the folder ``out`` what the newest one is and where the runs stand."""
    _write(out / SIGNAL, signal(live))


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, so that an open page is never half written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _title(summary: Summary) -> str:
    tasks = ", ".join(setting.title for setting in summary.settings)
    methods = len({method.name for setting in summary.settings for method in setting.methods})
    return (
        f"{methods} attention methods on {tasks}"
        if methods > 1
        else f"{summary.settings[0].methods[0].name} on {tasks}"
    )


def _sections(summary: Summary, folder: Path) -> list[Section]:
    several = len(summary.settings) > 1
    sections = []
    for setting in summary.settings:
        stem = f"{_slug(setting.title)}-" if several else ""
        suffix = f": {setting.title}" if several else ""
        sections += _setting_sections(setting, stem, suffix, folder)
    weights, undrawn = figures_kernels.weights(summary.settings, folder)
    note = f"Not drawn, because the weights depend on more than scores: {', '.join(undrawn)}." if undrawn else ""
    sections.append(Section("Kernels", "kernels", (figures_kernels.profiles(summary.settings, folder), weights), note))
    return sections


def _setting_sections(setting: Setting, stem: str, suffix: str, folder: Path) -> list[Section]:
    def drawn(*pictures: Picture | None) -> tuple[Picture, ...]:
        return tuple(picture for picture in pictures if picture is not None)

    if setting.is_scored_by_loss:
        lengths = drawn(figures_lengths.loss(setting, stem, folder))
    else:
        lengths = drawn(
            figures_lengths.heat_map(setting, stem, folder), figures_lengths.accuracy(setting, stem, folder)
        )
    sparsity = drawn(
        figures_lengths.support(setting, stem, folder),
        figures_lengths.density(setting, stem, folder),
        figures_lengths.empty_rows(setting, stem, folder),
    )
    training = drawn(
        figures_training.loss(setting, stem, folder), figures_training.training_support(setting, stem, folder)
    )
    context = drawn(figures_positions.distance(setting, stem, folder))
    memories = tuple(figures_training.bandwidths(setting, stem, folder))
    return [
        Section(
            f"Longer sequences{suffix}",
            f"{stem}lengths",
            lengths,
            "" if lengths else "No evaluation has been recorded.",
        ),
        *([Section(f"Learning in context{suffix}", f"{stem}context", context)] if context else []),
        Section(
            f"Sparsity{suffix}", f"{stem}sparsity", sparsity, "" if sparsity else "No support sizes have been recorded."
        ),
        Section(
            f"Training{suffix}",
            f"{stem}training",
            training,
            "" if training else "No training steps have been recorded.",
        ),
        Section(
            f"Bandwidth of each head{suffix}",
            f"{stem}bandwidth",
            memories,
            figures_training.bandwidth_note(setting) if memories else "No bandwidths have been recorded.",
        ),
    ]


def _slug(text: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in text.lower()).split())
