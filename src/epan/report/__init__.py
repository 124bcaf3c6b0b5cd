"""Reports: one page with figures and tables, made from run records alone."""

from __future__ import annotations

from epan.report.builder import build
from epan.report.findings import remarks
from epan.report.records import Record, find, read
from epan.report.summary import summarise
from epan.report.tables import headline

__all__ = ["Record", "build", "find", "headline", "read", "remarks", "summarise"]
