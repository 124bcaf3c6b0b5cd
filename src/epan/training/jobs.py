"""A job of a sweep: a worker process and the runs that it trains. Needs no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from epan.training import claims, records
from epan.training.config import RunConfig
from epan.training.worker import TAKEN

__all__ = ["MOST_TOGETHER", "Job", "Run", "RunState", "Status", "alike"]

Status = Literal["queued", "running", "elsewhere", "finished", "skipped", "failed", "interrupted"]

_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


#: Runs of one process at most: each takes two of the 32 streams of a GPU.
MOST_TOGETHER = 12


def alike(config: RunConfig) -> tuple[object, ...] | None:
    """What runs of one process must have in common; None for one that needs a process of its own."""
    # What trackers print is caught for the whole process.
    if config.cuda_graph is False or config.plain_steps or config.track or config.device in ("cpu", "mps"):
        return None
    return (config.precision, config.accumulation, config.threads, config.deterministic)


@dataclass
class RunState:
    """One run of a sweep as it stands.

    Attributes
    ----------
    config, out: the run and its folder.
    status: ``queued``, ``running``, ``elsewhere`` (another command trains it), ``finished``, ``skipped`` (finished
        earlier), ``failed``, ``interrupted``.
    summary: step, loss, speed, evaluations and so on, from the record.
    message: why it failed, else "".
    where: the process of another command that trains it, or trained it, else "".
    gpu: the GPU that it was given, else "".
    """

    config: RunConfig
    out: Path
    status: Status = "queued"
    summary: records.RunSummary = field(default_factory=records.RunSummary)
    message: str = ""
    where: str = ""
    gpu: str = ""

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def method(self) -> str:
        return self.config.method


class Run:
    """What a sweep keeps of a run besides its state: how far its record was read, and who has claimed it.

    Attributes
    ----------
    outcome: ``finished``, ``failed`` or ``interrupted`` as the record says of a session that ended since the sweep began
        (or since its own job did), else "".
    seen: what the last look at its claim found.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self.state, self.outcome = RunState(config, out), ""
        self.tail, self.watch = records.Tail(out), claims.Watch(out)
        self.seen = claims.Sighting("unknown", None)
        summary = self.state.summary
        self.read()
        summary.label, summary.method, summary.steps = config.label, config.method, config.steps
        if self.outcome == "finished":
            self.state.status = "skipped"
        # What failed or was stopped before is tried again.
        self.outcome = ""

    def read(self) -> None:
        """Take in what is new in the record."""
        new = self.tail.new()
        self.state.summary.update(new)
        status = self.state.summary.status
        if status == "running":
            self.outcome = ""
        elif any(entry["kind"] == "end" for entry in new):
            self.outcome = status

    def look(self) -> claims.Sighting:
        """Look at its claim."""
        self.seen = self.watch.look()
        return self.seen


class Job:
    """A worker process that trains ``runs``, which this process has claimed for it.

    Parameters
    ----------
    runs: each with its claim.
    logs: folder of configs and logs.
    threads: CPU threads of the process.
    gpu: the one GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None for what this process sees.
    """

    def __init__(self, runs: Sequence[tuple[Run, claims.Claim]], logs: Path, threads: int, gpu: str | None) -> None:
        self.runs, self.claims, self.gpu = [run for run, _ in runs], [claim for _, claim in runs], gpu
        arguments: list[str] = []
        for run, claim in runs:
            config = logs / f"{run.state.label}.json"
            config.write_text(json.dumps(run.state.config.to_dict(), indent=1), encoding="utf-8")
            arguments += [str(config), str(run.state.out), claim.holder.name]
            run.state.gpu, run.state.where, run.state.message = gpu or "", "", ""
            run.outcome = ""
        count = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self.log = logs / f"{self.runs[0].state.label}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "epan.training.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                # Ctrl-C of the terminal must reach the sweep alone, which then asks each run once.
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether the process is no more; then every run has its outcome and no claim."""
        code = self.process.poll()
        for run in self.runs:
            run.read()
        if code is None:
            return False
        for run, claim in zip(self.runs, self.claims, strict=True):
            claim.release()
            claims.discard(run.state.out)
            self._judge(run, code)
        return True

    def _judge(self, run: Run, code: int) -> None:
        state = run.state
        if run.outcome:
            state.status = cast(Status, run.outcome)
            state.message = state.summary.message
        elif code == TAKEN:
            state.status = "queued"
        elif code in _STOPPED:
            state.status = "interrupted"
        else:
            # It had no chance to say it in its record.
            state.status, state.message = "failed", self._last_words(code)

    def _last_words(self, code: int) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with code {code} and said nothing; see {self.log}"

    def stop(self) -> None:
        """Ask it to save and end."""
        self.process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
