"""``epan report``: one page from run records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from epan.errors import EpanError

__all__ = ["ReportOptions", "report"]


@Parameter(name="*")
@dataclass(frozen=True)
class ReportOptions:
    """Options of ``epan report``."""

    out: Annotated[
        Path | None, Parameter(help="Folder of the report (default: the folder report in the first path).")
    ] = None
    title: Annotated[str | None, Parameter(help="Heading of the page.")] = None
    watch: Annotated[
        bool, Parameter(negative="", help="Keep it up to date, also in the browser, as long as runs go on.")
    ] = False


def report(
    paths: Annotated[list[Path], Parameter(negative="", help="Run folders, or folders of run folders.")],
    /,
    *,
    options: ReportOptions | None = None,
) -> int:
    """Make one HTML page, PNG figures and tables (CSV, Markdown) from run records alone.

    Parameters
    ----------
    paths: run folders, or folders of run folders.
    """
    options = options or ReportOptions()
    if not paths:
        raise EpanError("No run to report on", fix="give run folders or a folder of them, e.g. epan report runs/demo")
    from epan.report import build

    first = paths[0].parent if paths[0].is_file() else paths[0]
    if options.watch:
        from epan.cli.watch import watch

        return watch(paths, options.out or first / "report", options.title)
    page = build(paths, options.out or first / "report", title=options.title)
    print(f"Report: {page.resolve()}")
    return 0
