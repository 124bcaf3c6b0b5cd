"""Runs of a sweep in a process of its own: ``python -m epan.training.worker CONFIG.json RUN_FOLDER CLAIM …``, three a run.

The sweep has claimed the run folders for this process. What goes wrong is the last line on standard error. Exit code, the
highest of all runs: 0 finished, 1 a run failed, 2 it could not start, :data:`TAKEN` another process has taken it, 128 +
signal interrupted, which ends all.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from epan.errors import EpanError
from epan.training.claims import ClaimLost
from epan.training.errors import TrainingError
from epan.training.parsing import load_config
from epan.training.progress import EvaluationInfo, Progress, StepInfo

__all__ = ["TAKEN", "main"]

TAKEN = 75


class _StopWithParent(Progress):
    """Ends the run as Ctrl-C would when the sweep that started it is gone."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    def _look(self) -> None:
        if os.getppid() != self.parent:
            raise KeyboardInterrupt

    def on_step(self, info: StepInfo) -> None:
        self._look()

    def on_evaluation(self, info: EvaluationInfo) -> None:
        self._look()


def main(arguments: list[str]) -> int:
    """Train each config in the folder beside it, one after the other, resuming what is there."""
    progress, worst = _StopWithParent(), 0
    for place in range(0, len(arguments), 3):
        config, out, claim = arguments[place : place + 3]
        code = _train(config, Path(out), claim, progress)
        worst = max(worst, code)
        if code > 128:
            break
    return worst


def _train(config: str, out: Path, claim: str, progress: Progress) -> int:
    from epan.training.trainer import train

    try:
        return train(load_config(config), out, resume="auto", progress=progress, claim=claim).exit_code
    except EpanError as error:
        print(error, file=sys.stderr)
        return TAKEN if isinstance(error, ClaimLost) else 1 if isinstance(error, TrainingError) else 2
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
