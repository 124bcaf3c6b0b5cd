"""Many runs in several processes: finished ones are skipped, interrupted ones go on, a failing one stops no other.

Needs no torch itself; every run is ``python -m epan.training.worker`` in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from epan.errors import EpanError
from epan.training import records
from epan.training.config import RunConfig
from epan.training.folder import open_folder
from epan.training.interruption import Interruption

__all__ = ["RunState", "SweepProgress", "SweepResult", "load_sweep", "run_sweep"]

Status = Literal["queued", "running", "finished", "skipped", "failed", "interrupted"]

# Seconds between looks at the running processes, and between reports of their progress.
_POLL, _REPORT = 0.1, 0.5


@dataclass
class RunState:
    """One run of a sweep as it stands.

    Attributes
    ----------
    config, out: the run and its folder.
    status: ``queued``, ``running``, ``finished``, ``skipped`` (finished earlier), ``failed``, ``interrupted``.
    summary: step, loss, speed, evaluations and so on, from the record.
    message: why it failed, else "".
    """

    config: RunConfig
    out: Path
    status: Status = "queued"
    summary: records.RunSummary = field(default_factory=records.RunSummary)
    message: str = ""

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def method(self) -> str:
        return self.config.method


class SweepProgress:
    """Receives what a sweep tells; override what is of interest."""

    def on_update(self, states: Sequence[RunState]) -> None:
        """The runs have moved on; called about twice a second."""

    def on_run(self, state: RunState) -> None:
        """A run changed its status."""


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep at its end, and the signal that ended it (None: it went through)."""

    states: list[RunState]
    signal: int | None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0: all runs are finished; 128 + signal: interrupted (130 by Ctrl-C); 1: some failed."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if any(state.status == "failed" for state in self.states) else 0


def load_sweep(path: str | Path) -> list[RunConfig]:
    """The runs of a Python file: what its function ``runs()`` returns, or its list ``runs``. The file is executed.

    Raises
    ------
    EpanError: no such file, an error in it (with the line), no ``runs``, something in it that is no RunConfig.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise EpanError("A sweep is a Python file", found=str(path), fix="give a .py file that defines runs()")
    spec = importlib.util.spec_from_file_location(f"epan_sweep_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses of the file look their module up here.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        found = getattr(module, "runs", None)
        runs = found() if callable(found) else found
    except EpanError:
        raise
    except Exception as error:
        raise EpanError(f"The sweep file fails: {type(error).__name__}: {error}", found=_place(error, path)) from error
    example = "def runs() -> list[RunConfig]: return [RunConfig(seed=seed) for seed in range(3)]"
    if not isinstance(runs, list | tuple) or not runs:
        raise EpanError("The sweep file defines no runs", found=f"runs = {runs!r} in {path}", fix=f"define {example}")
    for run in runs:
        if not isinstance(run, RunConfig):
            raise EpanError("The sweep file lists something that is no RunConfig", found=repr(run), fix=example)
    return list(runs)


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {path}"
    line, trace = 0, error.__traceback__
    while trace is not None:
        # The import system makes a relative path absolute.
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line} of {path}"


def run_sweep(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    workers: int = 2,
    threads: int = 1,
    progress: SweepProgress | None = None,
    validate: bool = True,
) -> SweepResult:
    """Train every config in ``OUT/<label>``, ``workers`` at a time.

    Runs that are finished are skipped, runs that were stopped go on from their last checkpoint. A run that fails is
    reported and the others go on. Ctrl-C or SIGTERM asks the running ones to save and stop, a second one kills them;
    the same call goes on from there.

    Parameters
    ----------
    configs: the runs; their labels must differ.
    out: folder of the run folders; created. Logs of the processes go to ``OUT/.sweep``.
    workers: processes at a time.
    threads: CPU threads of each, where the config does not say.
    progress: receives what happens.
    validate: whether to build every task and model once before the first run starts, so that a misspelt name is found
        at once.

    Raises
    ------
    EpanError: two runs of one label, a run folder with another config, a folder that cannot be written, a config that
        cannot run.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value < 1:
            raise EpanError(f"A sweep needs {name} of at least 1", found=value)
    twice = [label for label, count in Counter(config.label for config in configs).items() if count > 1]
    if twice:
        raise EpanError("Two runs have the same label", found=twice[0], fix="give them different names or seeds")
    if validate:
        from epan.training.trainer import check

        for config in configs:
            check(config)
    states = [_state(config, Path(out) / config.label) for config in configs]
    try:
        (Path(out) / ".sweep").mkdir(exist_ok=True)
    except OSError as error:
        fix = "give a folder that you may write to"
        raise EpanError(f"The output folder cannot be used: {error.strerror}", found=str(out), fix=fix) from error
    return _Sweep(states, Path(out) / ".sweep", workers, threads, progress or SweepProgress()).go()


def _state(config: RunConfig, folder: Path) -> RunState:
    opened = open_folder(config, folder, "auto")
    state = RunState(config, folder, summary=records.summary(opened.entries))
    state.summary.label, state.summary.method, state.summary.steps = config.label, config.method, config.steps
    if opened.state == "finished":
        state.status = "skipped"
    return state


@dataclass
class _Job:
    state: RunState
    process: subprocess.Popen[bytes]
    tail: records.Tail
    log: IO[bytes]


class _Sweep:
    def __init__(self, states: list[RunState], logs: Path, workers: int, threads: int, progress: SweepProgress) -> None:
        self.states, self.logs, self.workers, self.threads = states, logs, workers, threads
        self.progress = progress
        self.jobs: list[_Job] = []

    def go(self) -> SweepResult:
        queue = [state for state in self.states if state.status == "queued"]
        for state in self.states:
            if state.status == "skipped":
                self.progress.on_run(state)
        with Interruption() as interruption:
            asked, reported = False, 0.0
            try:
                while self.jobs or (queue and not interruption.wanted()):
                    while queue and len(self.jobs) < self.workers and not interruption.wanted():
                        self._start(queue.pop(0))
                    if interruption.wanted() and not asked:
                        asked = True
                        for job in self.jobs:
                            job.process.terminate()
                    time.sleep(_POLL)
                    self._look()
                    if time.monotonic() - reported >= _REPORT:
                        reported = time.monotonic()
                        self.progress.on_update(self.states)
            except BaseException:
                for job in self.jobs:
                    job.process.kill()
                    job.process.wait()
                self._look()
                if not interruption.wanted():
                    raise
        self.progress.on_update(self.states)
        return SweepResult(self.states, interruption.signal)

    def _start(self, state: RunState) -> None:
        config = self.logs / f"{state.label}.json"
        config.write_text(json.dumps(state.config.to_dict(), indent=1), encoding="utf-8")
        log = (self.logs / f"{state.label}.log").open("wb")
        count = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        tail = records.Tail(state.out)
        tail.new()
        process = subprocess.Popen(
            [sys.executable, "-m", "epan.training.worker", str(config), str(state.out)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            # Ctrl-C of the terminal must reach the sweep alone, which then asks each run once.
            start_new_session=True,
        )
        self.jobs.append(_Job(state, process, tail, log))
        self._change(state, "running")

    def _look(self) -> None:
        for job in list(self.jobs):
            code = job.process.poll()
            job.state.summary.update(job.tail.new())
            if code is None:
                continue
            self.jobs.remove(job)
            job.log.close()
            if code == 0:
                self._change(job.state, "finished")
            elif code in (130, 143):
                self._change(job.state, "interrupted")
            else:
                job.state.message = self._last_words(job, code)
                self._change(job.state, "failed")

    def _last_words(self, job: _Job, code: int) -> str:
        path = Path(job.log.name)
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
        return f"the process ended with code {code} and said nothing; see {path}"

    def _change(self, state: RunState, status: Status) -> None:
        state.status = status
        self.progress.on_run(state)
