"""Reports: one page with figures and tables, made from run records alone."""

from __future__ import annotations

from epan.errors import lab_imports

with lab_imports("The report"):
    from epan.report.builder import build
    from epan.report.findings import remarks
    from epan.report.records import Record, find, read
    from epan.report.summary import summarise
    from epan.report.tables import headline

__all__ = ["Record", "build", "find", "headline", "read", "remarks", "summarise"]
