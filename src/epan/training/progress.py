"""What a run tells while it goes on, and what it gives back. Needs no torch."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["EvaluationInfo", "Progress", "RunResult", "StartInfo", "StepInfo"]


@dataclass(frozen=True)
class StartInfo:
    """A run that is about to take its first step; ``step`` is above 0 where it resumes, ``memory`` what a step needs."""

    label: str
    method: str
    step: int
    steps: int
    parameters: int
    device: str
    threads: int
    out: Path
    memory: str


@dataclass(frozen=True)
class StepInfo:
    """One optimizer step; times in seconds, ``remaining`` by the mean speed so far, ``support`` as last measured."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    elapsed: float
    remaining: float
    support: float | None


@dataclass(frozen=True)
class EvaluationInfo:
    """Progress of one test length: ``done`` of ``total`` sequences; ``result`` is the eval record at its end."""

    step: int
    length: int
    done: int
    total: int
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes
    ----------
    status: ``finished`` or ``interrupted`` (a run that fails raises instead).
    signal: the number of the signal that interrupted it, else None.
    step, steps: optimizer steps done and planned.
    loss: training loss of the last step, None where none was taken.
    elapsed: seconds of training and testing, all sessions of the run together.
    out, checkpoint: the run folder and its newest checkpoint.
    evaluations: the eval records of the last evaluation, one per length.
    """

    status: Literal["finished", "interrupted"]
    signal: int | None
    step: int
    steps: int
    loss: float | None
    elapsed: float
    out: Path
    checkpoint: Path | None
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 for a finished run; of an interrupted one 130 after Ctrl-C, 143 after another signal, as of a shell."""
        if self.status == "finished":
            return 0
        return 128 + int(signals.SIGINT if self.signal in (None, signals.SIGINT) else signals.SIGTERM)


class Progress:
    """Receives what a run tells; override what is of interest. Methods are called in the training process."""

    def on_start(self, info: StartInfo) -> None:
        """The run starts or resumes."""

    def on_step(self, info: StepInfo) -> None:
        """An optimizer step is done."""

    def on_evaluation(self, info: EvaluationInfo) -> None:
        """A batch of test sequences is done, or a test length is complete."""

    def on_event(self, message: str) -> None:
        """Something happened that the record keeps as an event."""

    def on_end(self, result: RunResult) -> None:
        """The run finished or was interrupted."""
