"""Runs of a sweep in a process of its own: ``python -m epan.training.worker CONFIG.json RUN_FOLDER CLAIM …``, three a run.

The sweep has claimed the run folders for this process. What goes wrong is the last line on standard error. Exit code, the
highest of all runs: 0 finished, 1 a run failed, 2 it could not start, :data:`TAKEN` another process has taken it, 128 +
signal interrupted, which ends all.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from epan.errors import EpanError
from epan.training.claims import ClaimLost
from epan.training.config import RunConfig
from epan.training.errors import TrainingError
from epan.training.parsing import load_config
from epan.training.progress import EvaluationInfo, Progress, RunResult, StepInfo

__all__ = ["TAKEN", "main"]

TAKEN = 75


class _StopWithParent(Progress):
    """Ends the run as SIGTERM would, with a checkpoint, when the sweep that started it is gone."""

    def __init__(self) -> None:
        self.parent, self.told = os.getppid(), False

    def _look(self) -> None:
        if not self.told and os.getppid() != self.parent:
            self.told = True
            os.kill(os.getpid(), signal.SIGTERM)

    def on_step(self, info: StepInfo) -> None:
        self._look()

    def on_evaluation(self, info: EvaluationInfo) -> None:
        self._look()


def main(arguments: list[str]) -> int:
    """Train each config in the folder beside it, several at once, resuming what is there."""
    runs = [arguments[place : place + 3] for place in range(0, len(arguments), 3)]
    try:
        configs, outs = [load_config(config) for config, _, _ in runs], [Path(out) for _, out, _ in runs]
        found = _train(configs, outs, [claim for _, _, claim in runs])
    except Exception as error:
        found = [error]
    labels = [Path(out).name for _, out, _ in runs] if len(found) > 1 else [""]
    return max(_code(result, label) for result, label in zip(found, labels, strict=True))


def _train(configs: list[RunConfig], outs: list[Path], held: Sequence[str]) -> list[RunResult | Exception]:
    from epan.training.together import train_together
    from epan.training.trainer import train

    progress = _StopWithParent()
    if len(configs) == 1:
        return [train(configs[0], outs[0], resume="auto", progress=progress, claim=held[0])]
    return train_together(configs, outs, progress=[progress] * len(configs), claims=held)


def _code(result: RunResult | Exception, label: str) -> int:
    """The exit code of what a run gave; an error is told, with the label of the run if there are several."""
    if isinstance(result, RunResult):
        return result.exit_code
    if not isinstance(result, EpanError):
        traceback.print_exception(result)
        return 1
    print(f"{label}: {result}" if label else result, file=sys.stderr)
    return TAKEN if isinstance(result, ClaimLost) else 1 if isinstance(result, TrainingError) else 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
