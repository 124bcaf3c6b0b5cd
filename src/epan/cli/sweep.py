"""``epan sweep``: many runs, several at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from epan.cli.bars import Bars, short_names
from epan.cli.output import is_terminal, notes, number, outcome, share
from epan.training import RunState, SweepProgress, SweepResult

__all__ = ["SweepBars", "SweepLines", "SweepOptions", "show_sweep", "sweep"]

SECONDS = 15.0
# Columns of a terminal that bar, counter, time left and loss take beside the name of a run.
BESIDE = 46


@Parameter(name="*")
@dataclass(frozen=True)
class SweepOptions:
    """Options of ``epan sweep``."""

    runs: Annotated[str, Parameter(help="The function or list of the file that names the runs (default runs).")] = (
        "runs"
    )
    only: Annotated[
        tuple[str, ...],
        Parameter(negative="", consume_multiple=True, help="Only runs whose label fits, such as 'mqmtar-*-seed0'."),
    ] = ()
    out: Annotated[Path | None, Parameter(help="Folder of the runs (default runs/NAME of the file).")] = None
    workers: Annotated[int, Parameter(help="Runs at a time, on each GPU where there are several (default 2).")] = 2
    threads: Annotated[int, Parameter(help="CPU threads of each run (default 1).")] = 1
    gpus: Annotated[
        tuple[str, ...],
        Parameter(negative="", consume_multiple=True, help="GPUs to spread the runs over, such as 0,1 (default all)."),
    ] = ()
    pack: Annotated[
        int, Parameter(help="Runs that a worker trains at once on its GPU; small ones fill it better (default 1).")
    ] = 1
    wait: Annotated[
        bool, Parameter(negative="", help="Stay until the runs of other commands on this folder have ended, too.")
    ] = False


def sweep(
    file: Annotated[
        Path, Parameter(help="Python file with a function runs() that returns a list of RunConfig, or a list runs.")
    ],
    /,
    *,
    options: SweepOptions | None = None,
) -> int:
    """Train the runs that a Python file lists. Finished runs are skipped, interrupted ones go on.

    The same command may run several times at once on one --out, also on other machines that share it: each takes runs that
    no other has, takes over those of one that died, and ends when nothing is left to take.

    Parameters
    ----------
    file: a Python file with a function runs() that returns a list of epan.training.RunConfig, or a list named runs.
    """
    options = options or SweepOptions()
    from epan.training import choose_gpus, load_sweep, run_sweep
    from epan.training.sweepfile import select

    configs = select(load_sweep(file, options.runs), options.only)
    gpus = choose_gpus(configs, [name for part in options.gpus for name in part.replace(",", " ").split()])
    out = options.out or Path("runs") / file.stem
    runs = f"{len(configs)} run{'s' if len(configs) != 1 else ''}"
    at_once = f"{options.workers} at a time" + (f" on each GPU ({', '.join(gpus)})" if gpus else "")
    if options.pack > 1:
        at_once = at_once.replace("at a time", f"times {options.pack} at a time", 1)
    print(f"Sweep {file}: {runs}, {at_once} with {options.threads} thread(s) each, in {out}", flush=True)
    shown = show_sweep()
    try:
        result = run_sweep(
            configs,
            out,
            workers=options.workers,
            threads=options.threads,
            gpus=gpus,
            pack=options.pack,
            wait=options.wait,
            progress=shown,
        )
    finally:
        shown.close()
    if result.interrupted:
        print("Interrupted; every run is saved. The same command goes on.")
    else:
        _conclude(result, out)
    return result.exit_code


def _conclude(result: SweepResult, out: Path) -> None:
    """The last lines of a sweep that went through."""
    failed = [state for state in result.states if state.status == "failed"]
    others = [state for state in result.states if state.status == "elsewhere"]
    for state in failed:
        print(f"FAILED {state.label}{f' ({state.where})' if state.where else ''}: {state.message}")
    for state in others:
        print(f"{state.label}: running elsewhere ({state.where})")
    count = len(result.states)
    going = f", {len(others)} still running elsewhere; --wait stays until they end" if others else ""
    print(f"{count - len(failed) - len(others)} of {count} runs finished{going}.")
    print(f"Look at them with: epan report {out}")


def show_sweep() -> SweepBars | SweepLines:
    """What suits standard output."""
    return SweepBars() if is_terminal() else SweepLines()


def _notes(state: RunState) -> list[str]:
    """Time left, loss, support and speed, as far as they are known."""
    now = state.summary
    if now.step >= state.config.steps:
        return ["testing"]
    if not now.step:
        return ["starting"]
    remaining = now.elapsed / now.step * (now.steps - now.step) if now.elapsed else None
    return notes(remaining, now.loss, now.support, now.tokens_per_second)


def _status(state: RunState) -> str:
    """The status, and where: on which GPU, or with which process of another command."""
    if state.status == "running":
        return f"running on GPU {state.gpu}" if state.gpu else "running"
    if state.status == "elsewhere":
        return f"running elsewhere ({state.where})"
    return f"{state.status} elsewhere ({state.where})" if state.where else state.status


def _tested(state: RunState) -> str:
    tests = state.summary.evaluations
    if not tests:
        return ""
    if any(test.get("accuracy") is not None for test in tests):
        return ", ".join(f"{outcome(test)} at {test.get('length')}" for test in tests)
    exact = "exact_match" in tests[0]
    told = [share(test.get("exact_match")) if exact else number(test.get("loss"), 4) for test in tests]
    listed = ", ".join(f"{value} at {test.get('length')}" for value, test in zip(told, tests, strict=True))
    return f"{'exact match' if exact else 'loss'} {listed}"


class SweepLines(SweepProgress):
    """A line when a run starts or ends, and now and then one for all that are going on."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_run(self, state: RunState) -> None:
        if state.status == "queued":
            return
        detail = {"finished": _tested(state), "failed": state.message}.get(state.status, "")
        print(f"{state.label}: {_status(state)}" + (f"  {detail}" if detail else ""), flush=True)

    def on_update(self, states: Sequence[RunState]) -> None:
        if time.monotonic() - self._last < SECONDS:
            return
        self._last = time.monotonic()
        for state in states:
            if state.status == "running" and state.summary.step:
                print(
                    f"{state.label}: step {state.summary.step}/{state.config.steps}  {'  '.join(_notes(state))}",
                    flush=True,
                )

    def close(self) -> None:
        """Nothing to give back."""


class SweepBars(SweepProgress):
    """One bar for each run; those that wait or are done give way where the terminal has too few lines."""

    def __init__(self) -> None:
        self._bars = Bars()
        self._names: dict[str, str] = {}

    def on_update(self, states: Sequence[RunState]) -> None:
        size = self._bars.console.size
        if not self._names:
            self._names = short_names([state.label for state in states], max(12, size.width - BESIDE))
            for state in states:
                # The room beside a name depends on the longest of all.
                self._bars.update(self._names[state.label], 0, state.config.steps, [])
        crowded = len(states) > size.height - 2
        for state in states:
            steps = state.config.steps
            running = state.status == "running"
            done = steps if state.status in ("finished", "skipped") else state.summary.step
            notes = _notes(state) if running else [_status(state)]
            self._bars.update(self._names[state.label], done, steps, notes, visible=running or not crowded)

    def on_run(self, state: RunState) -> None:
        if state.status == "failed":
            self._bars.print(f"{state.label}: {_status(state)}: {state.message}")

    def close(self) -> None:
        """Give the terminal back."""
        self._bars.close()
