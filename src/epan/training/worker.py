"""One run of a sweep in a process of its own: ``python -m epan.training.worker CONFIG.json RUN_FOLDER``.

What goes wrong is the last line on standard error. Exit code: 0 finished, 1 the run failed, 2 it could not start, 128 +
signal interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback

from epan.errors import EpanError
from epan.training.errors import TrainingError
from epan.training.parsing import load_config
from epan.training.progress import EvaluationInfo, Progress, StepInfo

__all__ = ["main"]


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
    """Train the config of the first argument in the folder of the second, resuming what is there."""
    from epan.training.trainer import train

    config, out = arguments
    try:
        return train(load_config(config), out, resume="auto", progress=_StopWithParent()).exit_code
    except EpanError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
