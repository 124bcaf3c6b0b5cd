"""The page while runs go on: where each stands, and a script that loads the page again when there is a newer one.

A page that was opened as a file may not read others, but it may run them: ``live.js`` beside it names the newest version
and says where the runs stand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["SIGNAL", "Live", "LiveRun", "overview", "script", "signal"]

#: The file beside the page that says what is new.
SIGNAL = "live.js"

_SCRIPT = """
const version = %VERSION%, keep = "epan-live " + location.pathname;
const kept = JSON.parse(sessionStorage.getItem(keep) || "{}");
const details = [...document.querySelectorAll("details")];
for (const place of kept.open || []) if (details[place]) details[place].open = true;
if (kept.y) window.scrollTo(0, kept.y);
function again(gone) {
  const open = details.flatMap((item, place) => item.open ? [place] : []);
  sessionStorage.setItem(keep, JSON.stringify({ y: window.scrollY, open, gone }));
  location.reload();
}
window.epanLive = (newest, overview) => {
  if (newest !== version) return again(false);
  if (kept.gone) sessionStorage.setItem(keep, JSON.stringify(Object.assign(kept, { gone: false })));
  document.querySelector("section.live").outerHTML = overview;
  age();
};
function ask() {
  const question = document.createElement("script");
  question.src = "live.js?" + Date.now();
  question.onload = () => question.remove();
  // The end of the watch removes the file; where it never was, once is enough.
  question.onerror = () => { question.remove(); if (!kept.gone) again(true); };
  document.body.append(question);
}
function age() {
  for (const item of document.querySelectorAll("[data-time]")) {
    const s = Math.max(0, Math.round(Date.now() / 1000 - item.dataset.time));
    item.textContent = s < 120 ? s + " s" : s < 7200 ? Math.round(s / 60) + " min" : Math.round(s / 3600) + " h";
  }
}
age();
setInterval(age, 1000);
setInterval(ask, 2000);
"""


@dataclass(frozen=True)
class LiveRun:
    """Where a run stands.

    Attributes
    ----------
    name: its name.
    state: ``running``, ``stopped`` (no process trains it and its record has no end), or the status of its end.
    step, steps: optimizer steps done and planned (0: not known yet).
    written: when its record was written last, in seconds since the epoch.
    """

    name: str
    state: str
    step: int
    steps: int
    written: float

    @property
    def going(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Live:
    """What a live page is made of besides the records: a word that tells it from the next one, and where runs stand."""

    version: str
    runs: Sequence[LiveRun]


def overview(runs: Sequence[LiveRun]) -> str:
    """A card with one line for every run that has not finished, running ones first."""
    going = sum(run.going for run in runs)
    ended = len(runs) - going
    head = f"{going} of {len(runs)} runs going on" if len(runs) > 1 else ("The run is going on" if going else "The run")
    lines = [_line(run) for run in sorted(runs, key=lambda run: not run.going) if run.state != "finished"]
    finished = sum(run.state == "finished" for run in runs)
    rest = f'<p class="note">{finished} finished.</p>' if finished and ended else ""
    return (
        f'<section class="card live" aria-live="off"><h2>{escape(head)}</h2>'
        f"{'<ul>' + ''.join(lines) + '</ul>' if lines else ''}{rest}</section>"
    )


def _line(run: LiveRun) -> str:
    of = f" of {run.steps:,}" if run.steps else ""
    age = f'last line <span data-time="{run.written:.0f}">{max(0, time.time() - run.written):.0f} s</span> ago'
    bar = f'<progress max="{max(run.steps, 1)}" value="{run.step}"></progress>'
    return (
        f'<li class="{"going" if run.going else "halted"}"><span class="run">{escape(run.name)}</span>{bar}'
        f"<span>{escape(run.state)}, step {run.step:,}{of}, {age}</span></li>"
    )


def script(live: Live) -> str:
    """The script of that page."""
    return f"<script>{_SCRIPT.replace('%VERSION%', json.dumps(live.version))}</script>"


def signal(live: Live) -> str:
    """The content of :data:`SIGNAL` while that page is the newest one."""
    return f"epanLive({json.dumps(live.version)}, {json.dumps(overview(live.runs))});\n"
