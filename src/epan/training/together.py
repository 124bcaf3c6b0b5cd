"""Several runs in one process on one GPU, each in a thread and on a stream of its own, so that one fills the gaps of another.

A step of a small model is many short kernels, of which few fill a GPU. Processes take turns on it; streams of one process
share it.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from epan.errors import EpanError, UnsupportedError
from epan.training.config import RunConfig
from epan.training.engine import own_settings, recordable
from epan.training.folder import Resume
from epan.training.interruption import Interruption
from epan.training.jobs import MOST_TOGETHER, alike
from epan.training.processes import Processes
from epan.training.progress import EvaluationInfo, Progress, RunResult, StartInfo, StepInfo
from epan.training.starting import Ready, StartingLine
from epan.training.trainer import device_of, run_alone

__all__ = ["train_together"]

# Seconds after which a waiting main thread looks for signals.
_LOOK = 0.2


class _Abortable(Progress):
    """Passes on what a run tells, and ends it at once after a second Ctrl-C, which reaches the main thread alone."""

    def __init__(self, shown: Progress | None, aborted: threading.Event) -> None:
        self.shown, self.aborted = shown or Progress(), aborted

    def _look(self) -> None:
        if self.aborted.is_set():
            raise KeyboardInterrupt

    def on_start(self, info: StartInfo) -> None:
        self.shown.on_start(info)

    def on_step(self, info: StepInfo) -> None:
        self._look()
        self.shown.on_step(info)

    def on_evaluation(self, info: EvaluationInfo) -> None:
        self._look()
        self.shown.on_evaluation(info)

    def on_event(self, message: str) -> None:
        self.shown.on_event(message)

    def on_end(self, result: RunResult) -> None:
        self.shown.on_end(result)


def train_together(
    configs: Sequence[RunConfig],
    outs: Sequence[str | Path],
    *,
    resume: Resume = "auto",
    progress: Sequence[Progress] | None = None,
    claims: Sequence[str] | None = None,
) -> list[RunResult | Exception]:
    """Train every config in the folder beside it, all at once, in this process; what each gave, or the error that ended it.

    Each run has the numbers that it has on its own: weights, data, dropout and records are its own. A signal ends all.

    Parameters
    ----------
    configs: the runs; of one precision, ``accumulation``, ``threads`` and ``deterministic``, without ``track``, all on one
        NVIDIA GPU.
    outs: their run folders.
    resume, progress, claims: as of ``train``, the last two one per run.

    Raises
    ------
    UnsupportedError: runs that cannot share a process; told before any starts.
    """
    if not configs or len(configs) != len(outs):
        raise EpanError("Each run needs a folder", found=f"{len(configs)} runs, {len(outs)} folders")
    for name, given in (("progress", progress), ("claim", claims)):
        if given is not None and len(given) != len(configs):
            raise EpanError(f"Each run needs a {name} of its own", found=f"{len(configs)} runs, {len(given)}")
    if len(configs) > MOST_TOGETHER:
        raise EpanError("Too many runs for one process", found=len(configs), allowed=f"at most {MOST_TOGETHER}")
    device = device_of(configs[0])
    for config in configs:
        reason = recordable(config, device_of(config), Processes())
        if reason is None and (alike(config) is None or alike(config) != alike(configs[0])):
            reason = (
                "they differ in precision, accumulation, threads or deterministic, or it has cuda_graph=false or track"
            )
        if reason is not None:
            fix = "train it in a process of its own"
            raise UnsupportedError(f"{config.label} beside other runs in one process", reason, fix)
    aborted = threading.Event()
    shown = [_Abortable(one, aborted) for one in progress or [Progress()] * len(configs)]
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        stack.enter_context(own_settings(configs[0], device))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(configs), "run"))
        line = StartingLine(len(configs))

        def begin(place: int) -> RunResult:
            def work(ready: Ready) -> RunResult:
                return run_alone(
                    configs[place], outs[place], device, interruption, Processes(),
                    resume=resume, progress=shown[place], claim=claims[place] if claims else None, ready=ready,
                )  # fmt: skip

            return line.run(work)

        futures = [pool.submit(begin, place) for place in range(len(configs))]
        while True:
            try:
                if not concurrent.futures.wait(futures, timeout=_LOOK).not_done:
                    break
            except KeyboardInterrupt:
                aborted.set()
        return [_gave(future) for future in futures]


def _gave(future: concurrent.futures.Future[RunResult]) -> RunResult | Exception:
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, Exception):
        raise error
    return error
