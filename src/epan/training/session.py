"""The loop of a run and what it leaves behind: record, checkpoints, evaluations."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from epan.data.shards import publish
from epan.data.text import Text
from epan.data.tokenizing import FILE_NAME as TOKENIZER
from epan.errors import EpanError
from epan.models import LanguageModel
from epan.tasks import Sequences
from epan.training import checkpoint as checkpoints
from epan.training import records
from epan.training.claims import ClaimLost
from epan.training.config import RunConfig
from epan.training.engine import Engine, StepOutcome
from epan.training.environment import commit, data_hash, environment
from epan.training.errors import TrainingError
from epan.training.evaluation import evaluate, lengths_to_test
from epan.training.folder import RunFolder
from epan.training.interruption import Interruption
from epan.training.loading import autocast, best_length, model_facts
from epan.training.memory import MemoryEstimate, PeakMemory
from epan.training.parsing import differences
from epan.training.processes import Processes
from epan.training.progress import Progress, RunResult, StartInfo, StepInfo
from epan.training.retention import own_tests, ranking
from epan.training.saving import save_shards
from epan.training.starting import Ready
from epan.training.tracking import TrackedWriter
from epan.training.writer import BackgroundWriter, snapshot

__all__ = ["Session"]


class Session:
    """One session of a run: from its start or last checkpoint to its end, an interruption or a failure."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        writer: records.RecordWriter | TrackedWriter | records.NoWriter,
        progress: Progress,
        interruption: Interruption,
        task: Sequences,
        model: LanguageModel,
        device: torch.device,
        processes: Processes | None = None,
        check_claim: Callable[[], None] | None = None,
        ready: Ready | None = None,
    ) -> None:
        self.config, self.folder, self.writer = config, folder, writer
        self.progress, self.interruption, self.task, self.device = progress, interruption, task, device
        self.processes, self.agreed = processes or Processes(), False
        # Raises ClaimLost where another process has taken the run over.
        self.check_claim = check_claim or (lambda: None)
        self.began, self.elapsed_before, self.step = time.perf_counter(), 0.0, 0
        self.loss: float | None = None
        self.support: float | None = None
        self.memory: MemoryEstimate | None = None
        self.peak = PeakMemory(device, alone=ready is None)
        # Two writers: of lines, which are short, and of checkpoints, for which training does not wait.
        self.background = BackgroundWriter()
        self.evaluations: list[records.Entry] = []
        self.facts = {
            "config": config.to_dict(),
            "config_hash": config.hash(),
            "model": model_facts(config.model.name, model),
        }
        self.engine = Engine(config, task, model, device, self.processes, ready=ready)
        if folder.state == "started":
            self._restore()
        # What was tested beyond the checkpoint is tested again, and its lines are overtaken.
        self.tests = own_tests(folder.entries, config.evaluation, until=self.step, split=task.tested_split)

    def go(self, command: str | None) -> RunResult:
        """Run to the end and write what the end was, whatever happens."""
        with self.background:
            return self._go(command)

    def _go(self, command: str | None) -> RunResult:
        try:
            self._write_start(command)
            self._loop()
            self.background.wait()
        except KeyboardInterrupt:
            # Parts of a checkpoint are written together, which the others are not asked for here.
            return self._interrupted(save=not self.interruption.wanted() and not self.engine.sharded)
        except ClaimLost:
            # The run is that of another process, and so is its record.
            raise
        except torch.OutOfMemoryError as error:
            failure = self._out_of_memory()
            self._failed(failure)
            raise failure from error
        except Exception as error:
            self._failed(error)
            raise
        if self.interruption.wanted() if self.processes.main else self.agreed:
            try:
                return self._interrupted(save=True)
            except KeyboardInterrupt:
                return self._interrupted(save=False)
        self._end("finished")
        return self._result("finished")

    # ------------------------------------------------------------------ the loop

    def _loop(self) -> None:
        if self.folder.state == "started" and self._evaluation_due():
            self._evaluate()
            self.processes.wait()
        self.first, self.window_tokens, self.window_seconds = self.step, 0, 0.0
        if self.engine.queued:
            self.progress.on_event("recording the step; the first time on a machine its kernels are compiled")
        self.started = time.perf_counter()
        while self.step < self.config.steps and not self._stopping():
            self.mark, before = time.perf_counter(), self.step
            with self.peak.measured():
                for outcome in self.engine.steps(self.step, self._next_stop(), self._is_logged, self._stopping):
                    self._take_in(outcome)
            if self.step == before:
                continue
            if self._saves():
                self._save()
                self.processes.wait()
            if self._evaluation_due() and not self._stopping():
                self._evaluate()
                self.processes.wait()

    def _take_in(self, outcome: StepOutcome) -> None:
        """Tell and write what one step gave."""
        self.check_claim()
        self.step, self.loss = self.step + 1, outcome.loss
        now = time.perf_counter()
        self.window_tokens += outcome.tokens
        self.window_seconds += now - self.mark
        self.mark = now
        # Before a step that saves is told, the checkpoint before it is on the disk: a kill takes one interval at most.
        if self._saves():
            self.background.wait()
        else:
            self.background.poll()
        if outcome.support is not None:
            self.support = outcome.support
        info = StepInfo(
            step=self.step,
            steps=self.config.steps,
            loss=outcome.loss,
            learning_rate=outcome.learning_rate,
            gradient_norm=outcome.norm,
            tokens_per_second=self.window_tokens / max(self.window_seconds, 1e-9),
            elapsed=self._elapsed(),
            remaining=(now - self.started) / (self.step - self.first) * (self.config.steps - self.step),
            support=self.support,
        )
        if outcome.halved:
            self._event("halved", outcome.halved)
        if outcome.skipped:
            self._event("skipped", outcome.skipped)
        if self._is_logged(self.step):
            self._write_step(info, outcome.bandwidths)
            self.window_tokens, self.window_seconds = 0, 0.0
        self.progress.on_step(info)

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _saves(self) -> bool:
        """Whether this step has a checkpoint."""
        every = self.config.checkpoint_every
        due = self.step == self.config.steps or bool(every and self.step % every == 0)
        return due or bool(self.config.keep_best and self._evaluation_due())

    def _next_stop(self) -> int:
        """The next step at which the weights themselves are needed."""
        periods = [period for period in (self.config.checkpoint_every, self.config.evaluation.every) if period]
        return min([self.config.steps, *(self.step - self.step % period + period for period in periods)])

    def _stopping(self) -> bool:
        """Whether the run is to end here: all processes end at the same step, whichever of them got the signal."""
        if self.processes.world == 1:
            return self.interruption.wanted()
        signal = self.processes.largest(self.interruption.signal or 0)
        self.agreed = signal > 0
        if self.agreed:
            self.interruption.signal = signal
        return self.agreed

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation.every
        return self.step == self.config.steps or bool(every and self.step and self.step % every == 0)

    def _evaluate(self) -> None:
        model = self.engine.whole_model()
        if model is None or not self.processes.main:
            return
        chosen = self.config.evaluation
        # A session that resumes at this step leaves out what was tested before it stopped.
        done = [old for old in self.tests if old["step"] == self.step]
        self.evaluations = list(done)
        for length in lengths_to_test(self.task, chosen.lengths):
            if any(old["length"] == length for old in done):
                continue
            self.check_claim()
            with autocast(self.config.precision, self.device):
                found = evaluate(
                    model,
                    self.task,
                    [length],
                    sequences=chosen.sequences,
                    seed=chosen.seed,
                    decoding=chosen.decoding,
                    batch_tokens=chosen.batch_tokens,
                    split=self.task.tested_split,
                    run=self.config,
                    step=self.step,
                    progress=self.progress,
                    should_stop=self.interruption.wanted,
                )
            written = [self.writer.write(**entry) for entry in found]
            self.evaluations += written
            self.tests += written
            if self.interruption.wanted():
                return

    # ------------------------------------------------------------------ record and checkpoints

    def _restore(self) -> None:
        good = self.processes.share(self._last_good)
        if good is None:
            return
        checkpoint = checkpoints.load(good)
        self.engine.restore(checkpoint)
        self.step, self.background.saved = checkpoint.step, good
        self.elapsed_before = float(checkpoint.state["elapsed"])

    def _last_good(self) -> Path | None:
        path = self.folder.path
        checkpoints.clean(path)
        if not checkpoints.list_checkpoints(path):
            return None
        good = checkpoints.latest(path, warn=lambda message: self._event("fallback", message))
        checkpoints.set_aside_newer(path, good)
        return good

    def _write_start(self, command: str | None) -> None:
        config, model, path = self.config, self.engine.model, self.folder.path
        where, count = environment(self.device), model.num_parameters()
        if self.processes.world > 1:
            where["processes"] = self.processes.world
        self.memory, unknown = self.engine.memory()
        if self.folder.state == "started":
            changed = differences(records.header(self.folder.entries, path).get("config", {}), config.to_dict())
            message = f"resumed from step {self.step}" + "".join(f", {line}" for line in changed)
            self._event("resumed", message, environment=where, commit=commit())
        else:
            plain = config.to_dict()
            repeat = shlex.join(["epan", "train", "--config", str(path), "--out", f"{path}-again"])
            self.writer.write(
                "run",
                flush=True,
                schema=records.SCHEMA,
                name=config.label,
                method=config.method,
                seed=config.seed,
                task=plain["task"],
                model=self.facts["model"],
                training={key: plain[key] for key in plain if key not in ("task", "model", "seed", "name")},
                config=plain,
                config_hash=self.facts["config_hash"],
                environment=where,
                commit=commit(),
                data_hash=self.task.data_hash or data_hash(config.task, self.engine.first_batch()),
                command=command or repeat,
                parameters=count,
                memory=self.memory.to_dict(),
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            )
            self._write_bandwidths()
        if isinstance(self.task, Text) and self.processes.main:
            # What the model says can be read without the text.
            publish(path / TOKENIZER, self.task.text_tokenizer.to_json())
        threads, memory = torch.get_num_threads(), str(self.memory)
        start = StartInfo(
            config.label, config.method, self.step, config.steps, count, where["device"], threads, path, memory
        )
        self.progress.on_start(start)
        if unknown is not None:
            self._event("memory", unknown)

    def _write_step(self, info: StepInfo, bandwidths: dict[str, list[float]] | None) -> None:
        self.writer.write(
            "step",
            step=info.step,
            loss=info.loss,
            learning_rate=info.learning_rate,
            gradient_norm=info.gradient_norm,
            tokens_per_second=info.tokens_per_second,
            elapsed=info.elapsed,
            support=info.support,
        )
        self._write_bandwidths(bandwidths)

    def _write_bandwidths(self, found: dict[str, list[float]] | None = None) -> None:
        if found is None:
            found = {name: beta.tolist() for name, beta in self.engine.bandwidths().items()}
        self.writer.write("bandwidth", step=self.step, values=found)

    def _event(self, event: str, message: str, **values: Any) -> None:
        self.writer.write("event", event=event, step=self.step, message=message, **values)
        self.progress.on_event(message)

    def _save(self) -> None:
        """Hand this step's checkpoint to the background writer; parts of one are written here, by all together."""
        if not self.processes.main and not self.engine.sharded:
            return
        self.check_claim()
        # First, so that there is one copy of the numbers at a time.
        self.background.wait()
        engine, step, path = self.engine, self.step, self.folder.path
        tensors: dict[str, Any] = engine.tensors()
        what: dict[str, Any] = {
            "state": {"elapsed": self._elapsed(), "scaler": engine.scaler_state(), "accumulation": engine.accumulation},
            "facts": self.facts,
            "keep": self.config.keep,
            "spare": self._best(),
        }
        if engine.sharded:
            self.background.saved = save_shards(path, step, self.processes, **what, **tensors)
            return
        take: Callable[[], dict[str, Any]] = snapshot(tensors)
        self.background.start(lambda: checkpoints.save(path, step, **what, **take()))

    def _best(self) -> list[int]:
        """The steps of the best checkpoints that are there, as many as are to stay."""
        if not self.config.keep_best:
            return []
        there = {checkpoints.step_of(path) for path in checkpoints.list_checkpoints(self.folder.path)}
        ranked = ranking(self.tests, self.config, best_length(self.config, self.task), self.task.tested_split)
        return [place.step for place in ranked if place.step in there][: self.config.keep_best]

    def _elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.began

    def _interrupted(self, *, save: bool) -> RunResult:
        self.check_claim()
        try:
            # What is told of checkpoints is told when they are there.
            self.background.wait()
            saved = self.background.saved
            if save and not self.engine.updating and (saved is None or saved.name != f"step-{self.step:08d}"):
                self._save()
                self.background.wait()
        except EpanError as error:
            self._end("failed", str(error))
            raise
        kept = f"checkpoint {self.background.saved.name}" if self.background.saved else "no checkpoint"
        self._event("interrupted", f"interrupted at step {self.step}, {kept}")
        self._end("interrupted")
        return self._result("interrupted")

    def _out_of_memory(self) -> TrainingError:
        fix = (
            "start a new run with more accumulation (same result, less memory), or with a lower batch or lower lengths"
        )
        if not self.config.gradient_checkpointing and not self.config.cuda_graph:
            fix = f"resume with gradient_checkpointing=true (same result, slower), or {fix}"
        if self.config.on_out_of_memory == "stop" and self.processes.world == 1:
            fix = f"resume with on_out_of_memory=halve, which splits the batch further, or {fix}"
        return TrainingError(
            f"The memory of {self.device} is used up after step {self.step}",
            found=f"{self.config.batch} sequences in {self.engine.accumulation} parts, in {self.processes.world} processes"
            + ("" if self.memory is None else f"; a step needs {self.memory}"),
            fix=f"{fix}; if a test used it up, lower evaluation.batch_tokens",
        )

    def _failed(self, error: Exception) -> None:
        """Save what is good, and write that and why the run failed; never raises what is less than ``error``."""
        message = str(error) or type(error).__name__
        try:
            self.background.wait()
            if isinstance(error, TrainingError) and not self.engine.updating:
                self._save()
                self.background.wait()
        except EpanError as second:
            message += f" {second}"
        self._end("failed", message)

    def _end(self, status: str, message: str = "") -> None:
        try:
            self.check_claim()
            self.writer.write(
                "end",
                flush=True,
                status=status,
                elapsed=self._elapsed(),
                step=self.step,
                message=message,
                peak_memory=self.peak.bytes,
            )
        except EpanError:
            # On a full disk, or of a run that is no longer ours, the first error is the one to tell.
            if status != "failed":
                raise

    def _result(self, status: Literal["finished", "interrupted"]) -> RunResult:
        result = RunResult(
            status=status,
            signal=self.interruption.signal if status == "interrupted" else None,
            step=self.step,
            steps=self.config.steps,
            loss=self.loss,
            elapsed=self._elapsed(),
            out=self.folder.path,
            checkpoint=self.background.saved,
            evaluations=self.evaluations,
        )
        self.progress.on_end(result)
        return result
