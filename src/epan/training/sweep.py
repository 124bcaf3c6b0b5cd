"""Many runs in several processes: finished ones are skipped, interrupted ones go on, a failing one stops no other.

Several sweeps may share a folder, on one machine or on many: each claims a run before it starts it (``claims.py``), shows
what the others do, and takes over the runs of one that died. Needs no torch itself; every run is trained by
``python -m epan.training.worker`` in a process of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epan.errors import EpanError
from epan.training import claims
from epan.training.config import RunConfig
from epan.training.errors import unusable_folder
from epan.training.folder import open_folder
from epan.training.gpus import visible_gpus
from epan.training.interruption import Interruption
from epan.training.jobs import MOST_TOGETHER, Job, Run, RunState, alike
from epan.training.sweepfile import load_sweep

__all__ = ["RunState", "SweepProgress", "SweepResult", "load_sweep", "run_sweep"]

# Seconds between looks at the own processes, between reports of progress, and between looks at what others do.
_POLL, _REPORT, _SCAN = 0.1, 0.5, 2.0


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
        """0: all are finished or trained by others; 128 + signal: interrupted (130 by Ctrl-C); 1: some failed."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if any(state.status == "failed" for state in self.states) else 0


def run_sweep(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    workers: int = 2,
    threads: int = 1,
    gpus: Sequence[str] = (),
    pack: int = 1,
    wait: bool = False,
    progress: SweepProgress | None = None,
    validate: bool = True,
) -> SweepResult:
    """Train every config in ``OUT/<label>``, ``workers`` at a time.

    Runs that are finished are skipped, runs that were stopped go on from their last checkpoint. A run that fails is
    reported and the others go on. Ctrl-C or SIGTERM asks the running ones to save and stop, a second one kills them;
    the same call goes on from there.

    The folder may be shared: of several calls, on this machine or on others, each takes runs that no other has. A call
    that dies is noticed (at once on the same machine, after a minute and a half without a sign of life on another) and
    its runs are taken over. A run that fails during this call, in whichever process, is not tried again by it.

    Parameters
    ----------
    configs: the runs; their labels must differ.
    out: folder of the run folders; created. Logs of the processes go to ``OUT/.sweep``.
    workers: processes at a time, on each GPU if there are ``gpus``.
    threads: CPU threads of each, where the config does not say.
    gpus: names for CUDA_VISIBLE_DEVICES; each process sees one of them. None: all see what this process sees.
    pack: runs that a process trains at once, on streams of its GPU (``train_together``), where they can be.
    wait: whether to stay, with nothing left to take, until the runs of other calls have ended.
    progress: receives what happens.
    validate: whether to build every task and model once before the first run starts, so that a misspelt name is found
        at once.

    Raises
    ------
    EpanError: two runs of one label, a run folder with another config, a folder that cannot be written, a config that
        cannot run.
    """
    for name, value in (("workers", workers), ("threads", threads), ("pack", pack)):
        if value < 1:
            raise EpanError(f"A sweep needs {name} of at least 1", found=value)
    if pack > MOST_TOGETHER:
        raise EpanError("Too many runs for one process", found=f"pack={pack}", allowed=f"at most {MOST_TOGETHER}")
    if pack > 1 and not (gpus or visible_gpus()):
        raise EpanError(
            "Runs share a process on an NVIDIA GPU alone", found=f"pack={pack}, no GPU", fix="raise workers instead"
        )
    twice = [label for label, count in Counter(config.label for config in configs).items() if count > 1]
    if twice:
        raise EpanError("Two runs have the same label", found=twice[0], fix="give them different names or seeds")
    if validate:
        from epan.training.trainer import check

        for config in configs:
            check(config)
    for config in configs:
        open_folder(config, Path(out) / config.label, "auto")
    logs = Path(out) / ".sweep"
    try:
        logs.mkdir(exist_ok=True)
    except OSError as error:
        raise unusable_folder(Path(out), error) from error
    runs = [Run(config, Path(out) / config.label) for config in configs]
    return _Sweep(runs, logs, workers, threads, gpus or [None], pack, wait, progress or SweepProgress()).go()


class _Sweep:
    def __init__(
        self,
        runs: list[Run],
        logs: Path,
        workers: int,
        threads: int,
        gpus: Sequence[str | None],
        pack: int,
        wait: bool,
        progress: SweepProgress,
    ) -> None:
        self.runs, self.logs, self.workers, self.threads, self.gpus = runs, logs, workers, threads, gpus
        self.pack, self.wait, self.progress = pack, wait, progress
        self.states = [run.state for run in runs]
        self.jobs: list[Job] = []
        # What the progress was told last of every run.
        self.told = {run.state.label: "queued" for run in runs}
        self.next_scan = 0.0

    def go(self) -> SweepResult:
        with Interruption() as interruption:
            asked, reported = False, 0.0
            try:
                while True:
                    stopping = interruption.wanted()
                    if not stopping:
                        self._scan()
                        self._fill()
                    elif not asked:
                        asked = True
                        for job in self.jobs:
                            job.stop()
                    if not self.jobs and (stopping or not self._more()):
                        break
                    self._tell()
                    time.sleep(_POLL)
                    self.jobs = [job for job in self.jobs if not job.ended()]
                    if time.monotonic() - reported >= _REPORT:
                        reported = time.monotonic()
                        self.progress.on_update(self.states)
            except BaseException:
                for job in self.jobs:
                    job.kill()
                    job.ended()
                if not interruption.wanted():
                    raise
        self._tell()
        self.progress.on_update(self.states)
        return SweepResult(self.states, interruption.signal)

    # ------------------------------------------------------------------ which runs there are to take

    def _scan(self) -> None:
        """Now and then, find out what others do; large sweeps on slow file systems take less often a look."""
        if time.monotonic() < self.next_scan:
            return
        began = time.monotonic()
        for run in self.runs:
            if run.state.status in ("queued", "elsewhere"):
                self._learn(run)
        self.next_scan = time.monotonic() + max(_SCAN, 10 * (time.monotonic() - began))

    def _learn(self, run: Run) -> None:
        """Where a run stands that is not ours: to be taken, trained elsewhere, or ended there."""
        state, holder = run.state, run.look().holder
        # Read after the look: whoever has let the run go has written what became of it.
        run.read()
        if holder is not None:
            state.where = str(holder)
        if run.outcome in ("finished", "failed"):
            state.status, state.message = run.outcome, state.summary.message  # type: ignore[assignment]
        else:
            state.status = "queued" if run.seen.state in ("free", "stale") else "elsewhere"

    def _more(self) -> bool:
        """Whether there may be something to take yet."""
        others = [run for run in self.runs if run.state.status == "elsewhere"]
        return any(state.status == "queued" for state in self.states) or any(
            self.wait or run.seen.state == "unknown" for run in others
        )

    def _fill(self) -> None:
        """Start jobs as long as there are free workers and runs to take."""
        while True:
            load = Counter(job.gpu for job in self.jobs)
            gpu = min(self.gpus, key=lambda gpu: load[gpu])
            if load[gpu] >= self.workers:
                return
            taken = self._take(self._share(sum(self.workers - load[one] for one in self.gpus)))
            if not taken:
                return
            self._start(taken, gpu)

    def _share(self, places: int) -> int:
        """How many runs the next job may take, so that all free places get some."""
        queued = sum(state.status == "queued" for state in self.states)
        return max(1, min(self.pack, -(-queued // places)))

    def _take(self, most: int) -> list[tuple[Run, claims.Claim]]:
        """The runs of the next job, at most so many, claimed; none if there is nothing to take."""
        taken: list[tuple[Run, claims.Claim]] = []
        for run in self.runs:
            if len(taken) == most:
                break
            if run.state.status != "queued":
                continue
            if taken:
                common = alike(taken[0][0].state.config)
                if common is None or alike(run.state.config) != common:
                    continue
            claim = self._claim(run)
            if claim is not None:
                taken.append((run, claim))
        return taken

    def _claim(self, run: Run) -> claims.Claim | None:
        """The claim on a queued run; None where another was faster, or it cannot be."""
        try:
            claim = claims.take(run.state.out, run.seen.holder)
        except EpanError as error:
            run.state.status, run.state.message = "failed", str(error)
            return None
        if claim is None:
            self._learn(run)
            return None
        # Another may have trained it to its end since the last look.
        run.read()
        if run.outcome in ("finished", "failed"):
            claim.release()
            self._learn(run)
            return None
        return claim

    def _start(self, taken: list[tuple[Run, claims.Claim]], gpu: str | None) -> None:
        try:
            self.jobs.append(Job(taken, self.logs, self.threads, gpu))
        except BaseException:
            for _, claim in taken:
                claim.release()
            raise
        for run, _ in taken:
            run.state.status = "running"

    def _tell(self) -> None:
        for state in self.states:
            if self.told[state.label] != state.status:
                self.told[state.label] = state.status
                self.progress.on_run(state)
