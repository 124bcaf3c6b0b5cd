"""How a run that goes on is shown: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from epan._version import __version__
from epan.cli.bars import Bars
from epan.cli.output import console, duration, evaluation_table, is_terminal, notes, number, share
from epan.training import EvaluationInfo, Progress, RunConfig, RunResult, StartInfo, StepInfo

__all__ = ["BarProgress", "LineProgress", "for_run"]

# Without a terminal: a line at every tenth of the steps or this many seconds, whichever is first, but no flood.
SECONDS, LEAST_SECONDS = 15.0, 1.0


def for_run(config: RunConfig) -> LineProgress | BarProgress:
    """What suits standard output."""
    return BarProgress(config) if is_terminal() else LineProgress(config)


def header(config: RunConfig, info: StartInfo) -> list[str]:
    """The first lines of a run: what is trained, how large it is, where it runs, on which data, where it is kept."""
    from epan.data.text import Text
    from epan.training.loading import build_task

    task = build_task(config)
    low, high = config.lengths or task.train_lengths
    data = f"{config.task.name}, lengths {low}" + (f" to {high}" if high > low else "")
    if isinstance(task, Text):
        corpus = task.corpus
        share = config.batch * config.steps / task.windows("train", task.context)
        data = f"{corpus.count('train'):,} tokens ({corpus.tokenizer.name}), hash {corpus.hash[:12]}, context {high}, {share:.3g} epochs"
    threads = f", {info.threads} thread{'s' if info.threads != 1 else ''}" if info.device == "cpu" else ""
    start = f", resumed from step {info.step:,}" if info.step else ""
    return [
        f"epan {__version__}: {config.model.name} with {config.method} on {config.task.name}, seed {config.seed}",
        f"  parameters  {info.parameters:,}",
        f"  device      {info.device}{threads}, {config.precision}",
        f"  memory      {info.memory}",
        f"  data        {data}, {config.batch} sequences a step, {config.steps:,} steps{start}",
        f"  saved in    {info.out}",
    ]


def step_line(info: StepInfo) -> str:
    eta, *rest = _notes(info)
    return "  ".join([f"step {info.step:>{len(str(info.steps))}}/{info.steps}", *rest, eta])


def _notes(info: StepInfo) -> list[str]:
    return notes(info.remaining, info.loss, info.support, info.tokens_per_second)


def _told(result: Mapping[str, Any]) -> str:
    if "exact_match" in result:
        return f"exact match {share(result['exact_match'])}"
    return f"loss {number(result.get('loss'), 4)}, {number(result.get('bits_per_byte'), 4)} bits a byte"


class LineProgress(Progress):
    """Plain lines, flushed, for logs and pipes."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._time, self._step = 0.0, 0

    def on_start(self, info: StartInfo) -> None:
        print("\n".join(header(self.config, info)), flush=True)
        self._time, self._step = time.monotonic(), info.step

    def on_step(self, info: StepInfo) -> None:
        waited = time.monotonic() - self._time
        tenth = info.step - self._step >= max(info.steps // 10, 1)
        if info.step == info.steps or (tenth and waited >= LEAST_SECONDS) or waited >= SECONDS:
            print(step_line(info), flush=True)
            self._time, self._step = time.monotonic(), info.step

    def on_evaluation(self, info: EvaluationInfo) -> None:
        if info.result is not None:
            print(f"tested at step {info.step}, length {info.length}: {_told(info.result)}", flush=True)

    def on_event(self, message: str) -> None:
        print(message, flush=True)

    def close(self) -> None:
        """Nothing to give back."""


class BarProgress(Progress):
    """A bar with ETA, loss, support and speed, and one for the evaluation."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._bars: Bars | None = None

    def on_start(self, info: StartInfo) -> None:
        print("\n".join(header(self.config, info)), flush=True)
        self._bars = Bars(rate=5)
        self._bars.update("training", info.step, info.steps, [])

    def on_step(self, info: StepInfo) -> None:
        if self._bars is not None:
            self._bars.update("training", info.step, info.steps, _notes(info))

    def on_evaluation(self, info: EvaluationInfo) -> None:
        if self._bars is not None:
            told = [f"length {info.length}"]
            if info.result is not None:
                told.append(_told(info.result))
            self._bars.update("testing", info.done, info.total, told)

    def on_event(self, message: str) -> None:
        if self._bars is not None:
            self._bars.print(message)
        else:
            console().print(message, markup=False)

    def on_end(self, result: RunResult) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; called when a run fails, too."""
        if self._bars is not None:
            self._bars.close()
            self._bars = None


def finish(result: RunResult) -> int:
    """The last lines of a run, and its exit code."""
    if result.status == "interrupted":
        kept = f"; saved in {result.checkpoint}" if result.checkpoint else ""
        print(f"Interrupted at step {result.step:,} of {result.steps:,}{kept}.")
        print(f"Go on with: epan train --resume --out {result.out}")
        return result.exit_code
    if result.evaluations:
        evaluation_table(result.evaluations)
    loss = f", last loss {result.loss:.4f}" if result.loss is not None else ""
    print(f"Finished {result.steps:,} steps in {duration(result.elapsed)}{loss}. Saved in {result.out}")
    print(f"Look at it with: epan report {result.out}")
    return result.exit_code
