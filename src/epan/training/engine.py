"""One optimizer step on accelerate: data, loss, gradient, clipping, update; and what a step that went wrong does.

Several processes share the sequences of a step, a function of (seed, step, rank), and add up their gradients; so all have
the same weights, and take the same decisions.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from epan.errors import EpanError, UnsupportedError, lab_imports
from epan.metrics import next_token_loss
from epan.models import LanguageModel
from epan.tasks import Batch, Sequences
from epan.training import checkpoint as checkpoints
from epan.training.config import RunConfig
from epan.training.errors import TrainingError
from epan.training.evaluation import add_support
from epan.training.exclusive import exclusive
from epan.training.faults import blame_forward, blame_gradient
from epan.training.loading import build_model
from epan.training.memory import MemoryEstimate, estimate
from epan.training.optimization import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from epan.training.processes import Processes
from epan.training.resident import RecordingError, ResidentStep
from epan.training.sharding import gather_weights, shard, whole
from epan.training.starting import Ready
from epan.training.stream import micro_batches, step_seed, trim

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MOST_SKIPS", "Engine", "StepOutcome", "own_settings"]

# A run whose steps are skipped this often in a row will not recover.
MOST_SKIPS = 20


@contextmanager
def own_settings(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Random state, threads and accelerate's global state are the run's own, and afterwards what they were."""
    with lab_imports("Training"):
        # A run that could not be saved must not start.
        import safetensors.torch  # noqa: F401
        from accelerate.state import AcceleratorState, GradientState, PartialState

    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if config.deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # accelerate keeps the first device and precision of a process for good; the next run may have others.
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        try:
            for state in shared:
                state.clear()
            if config.threads is not None:
                torch.set_num_threads(config.threads)
            if config.deterministic:
                torch.use_deterministic_algorithms(True)
                # Nothing here reads what it has not written.
                torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
            for state, content in zip(shared, before, strict=True):
                state.clear()
                state.update(content)


class StepOutcome(NamedTuple):
    """What one step gave: ``norm`` before clipping, ``tokens`` with padding, ``skipped`` None or the reason.

    All but ``support``, which is that of this process, are those of all processes. ``halved`` says that the memory was
    used up and into how many parts the batch is split from this step on, else None. ``bandwidths`` are those after the step
    by layer where the engine was ahead of it already when it was told, else None: then they are those of the model.
    """

    loss: float
    norm: float
    learning_rate: float
    tokens: int
    support: float | None
    skipped: str | None
    halved: str | None = None
    bandwidths: dict[str, list[float]] | None = None


def recordable(config: RunConfig, device: torch.device, processes: Processes) -> str | None:
    """Why steps cannot be recorded as a CUDA graph, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if processes.world > 1:
        return "several processes add up their gradients"
    return config.plain_steps


class Engine:
    """Model, optimizer and precision of a run, and its steps.

    Attributes
    ----------
    model: the model itself, weights in float32; with ``sharded`` this process's part of them.
    sharded: whether the processes share the weights, too (``parallel`` is fsdp, and there are several).
    updating: True while weights are being changed, when no checkpoint may be taken.
    accumulation: micro-batches of a step; more than in the config where the memory was too small.
    queued: whether steps are recorded and started ahead of their results (``cuda_graph``).
    """

    def __init__(
        self,
        config: RunConfig,
        task: Sequences,
        model: LanguageModel,
        device: torch.device,
        processes: Processes | None = None,
        *,
        ready: Ready | None = None,
    ) -> None:
        self.config, self.task, self.device = config, task, device
        self.processes = processes or Processes()
        self.lengths = config.lengths or task.train_lengths
        self.sharded = config.parallel == "fsdp" and self.processes.world > 1
        obstacle = recordable(config, device, self.processes)
        if config.cuda_graph and obstacle is not None:
            raise UnsupportedError("cuda_graph=true", obstacle, "leave cuda_graph out")
        self.queued = config.cuda_graph is not False and obstacle is None
        self._resident: ResidentStep | None = None
        # Plain steps draw from the random numbers of the process, which runs in other threads would disturb.
        self._must_record = bool(config.cuda_graph) or ready is not None
        self._ready = ready
        self.model = model.train()
        self.model.gradient_checkpointing = config.gradient_checkpointing
        if self.sharded:
            shard(model, device, compiled=config.compile)
        else:
            model.to(device)
        self.updating, self.accumulation = False, config.accumulation
        self._skips = 0
        self._adamw = build_optimizer(model, config.optimizer, device)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._forward: Any = None
        with exclusive:
            self._prepare()
        if not self.queued:
            self._compile_forward()

    def _prepare(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        config = self.config
        threads = torch.get_num_threads()
        with warnings.catch_warnings():
            # On several CPU processes accelerate chooses the threads, and says so; they are the run's.
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS", category=UserWarning)
            self._accelerator: Accelerator = Accelerator(
                cpu=self.device.type == "cpu",
                mixed_precision="no" if config.precision == "fp32" else config.precision,
                gradient_accumulation_steps=config.accumulation,
                # Gradients are views of what is sent: no copy. A static graph would gain nothing beside that, as long as
                # unused parameters are not searched for, and would forbid to change the accumulation on the way.
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
        torch.set_num_threads(threads)
        # accelerate's own way to FSDP2 casts the weights and is set up by variables of the process; of a model that is split
        # already it has to know no more than the precision.
        self._forward = self._accelerator.prepare_model(self.model, evaluation_mode=self.sharded)
        self._optimizer = self._accelerator.prepare_optimizer(self._adamw)

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Take over weights, moments and loss scale; EpanError if they belong to another model."""
        checkpoints.load_into(self.model, checkpoint.model, checkpoint.path)
        restore_optimizer(self.model, self._adamw, checkpoint.optimizer)
        parts = checkpoint.state.get("accumulation", self.accumulation)
        if isinstance(parts, int) and parts > self.accumulation and self._rows(1) % parts == 0:
            # The same parts again: another order of adding up gives other bits.
            self._split(parts)
        if self._accelerator.scaler is not None:
            try:
                self._accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
            except (KeyError, RuntimeError, TypeError) as error:
                fix = "resume with the precision that it was trained with"
                raise EpanError(
                    "The checkpoint has no loss scale of fp16", found=str(checkpoint.path), fix=fix
                ) from error

    def whole_model(self) -> LanguageModel | None:
        """The model with all weights, in the main process; the others, which must ask with it, may get None.

        With ``sharded`` it is a copy: a test asks one process alone, for as many passes as its answers take.
        """
        if not self.sharded:
            return self.model
        weights = gather_weights(self.model, keep=self.processes.main)
        if not self.processes.main:
            return None
        with torch.random.fork_rng(devices=[]):
            copy = build_model(self.config, self.task).to(self.device)
        copy.load_state_dict(weights)
        return copy

    def bandwidths(self) -> dict[str, torch.Tensor]:
        """β of each head by layer; all processes must ask together."""
        return {name: whole(beta) for name, beta in self.model.bandwidths().items()}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint keeps, as ``model`` and ``optimizer``."""
        return {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self._adamw)}

    def scaler_state(self) -> dict[str, Any] | None:
        """The loss scale of fp16, None in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else None

    def first_batch(self) -> Batch:
        """The data of step 0, padding included, on the CPU."""
        config = self.config
        return micro_batches(self.task, config.seed, 0, config.batch, self.lengths, cut=False)[0]

    def memory(self) -> tuple[MemoryEstimate, str | None]:
        """What a step needs, and why activations could not be measured; all processes ask together."""
        config, longest = self.config, self.lengths[1]
        rows = self._rows(self.accumulation)
        batch = self.task.sample(config.seed, 0, 3, (longest, longest), device=self.device, split="train")
        batch = trim(batch) if self._cuts else batch

        def loss_of(count: int) -> torch.Tensor:
            part = Batch(*(values[:count] for values in batch))
            # accelerate has put autocast around the forward pass of the model itself.
            logits = self.model(part.tokens[:, :-1])
            return next_token_loss(logits, part.tokens, part.loss_mask, self.model.output_kernel)[0]

        with exclusive:
            return estimate(self.model, loss_of, rows, self.device)

    def steps(
        self, first: int, last: int, measured: Callable[[int], bool], stopping: Callable[[], bool]
    ) -> Iterator[StepOutcome]:
        """Do optimizer steps ``first`` … ``last`` − 1 (from 0), and tell their outcomes in order.

        Ends early, after a step, where ``stopping`` says yes. Once it has ended, the weights are those after the last outcome;
        before that they may be ahead.

        Parameters
        ----------
        measured: whether the support after step number n (from 1) is wanted.

        Raises
        ------
        TrainingError, torch.OutOfMemoryError: as :meth:`take_step`.
        """
        parts = self.accumulation
        resident = self._recorded() if self.queued else None
        if self._ready is not None:
            self._ready(stopping)
        if resident is not None:
            halved = self._halved(first, parts) if self.accumulation > parts else None
            yield from self._queued_steps(resident, halved, first, last, measured, stopping)
            return
        for step in range(first, last):
            # Whoever asks for steps has looked before the first one.
            if step > first and stopping():
                return
            yield self.take_step(step, measure=measured(step + 1))

    def _queued_steps(
        self,
        resident: ResidentStep,
        halved: str | None,
        first: int,
        last: int,
        measured: Callable[[int], bool],
        stopping: Callable[[], bool],
    ) -> Iterator[StepOutcome]:
        step, tokens = first, resident.tokens
        # Until the last result is there, the weights are ahead of what is told.
        self.updating = True
        while step < last:
            for result in resident.run(step, last, measured, stopping):
                skipped, step = None, result.step + 1
                if result.finite:
                    self._skips = 0
                else:
                    self.updating = False
                    skipped = self._skip(result.step, result.loss)
                    self.model.zero_grad(set_to_none=True)
                    self.updating = True
                rate = learning_rate(self.config.optimizer, result.step, self.config.steps)
                yield StepOutcome(
                    result.loss, result.norm, rate, tokens, result.support, skipped, halved, result.bandwidths
                )
                halved = None
            if stopping():
                break
        self.updating = False

    def _recorded(self) -> ResidentStep | None:
        """The recorded step; None, from then on, where it cannot be recorded."""
        while self._resident is None:
            try:
                self._resident = ResidentStep(
                    self.config, self.task, self.model, self._adamw, self.lengths, self.device, self.accumulation
                )
            except torch.OutOfMemoryError:
                if not self._may_split():
                    raise
            except RecordingError as error:
                if self._must_record:
                    raise TrainingError(
                        "A step of this run cannot be recorded",
                        found=str(error),
                        fix="train it in a process of its own, without cuda_graph, where it takes plain steps",
                    ) from error
                warnings.warn(
                    f"Plain steps are taken, because a step cannot be recorded: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._take_plain_steps()
                return None
            if self._resident is None:
                self._split_further()
        return self._resident

    def _take_plain_steps(self) -> None:
        """Undoes what a recorded step needs of the optimizer and the forward pass."""
        self.queued = False
        for name in ("found_inf", "grad_scale"):
            if hasattr(self._adamw, name):
                delattr(self._adamw, name)
        self.model.zero_grad(set_to_none=True)
        self._compile_forward()

    def _compile_forward(self) -> None:
        """For plain steps; blocks that share their weights are compiled one by one, and a recorded step has its own code."""
        if self.config.compile and not self.sharded:
            self._forward = torch.compile(self._forward, dynamic=True)

    def take_step(self, step: int, *, measure: bool) -> StepOutcome:
        """Do optimizer step ``step`` (from 0); ``measure`` also finds the support size.

        Raises
        ------
        TrainingError: loss or gradient is not finite, and the config says stop or too many steps were skipped in a row.
            The weights are those before the step.
        torch.OutOfMemoryError: the memory is used up, and the config says stop or the batch cannot be split further.
        """
        config = self.config
        rate = learning_rate(config.optimizer, step, config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        parts = self.accumulation
        loss, norm, tokens, support = self._backward(step, measure)
        skipped = halved = None
        if self.accumulation > parts:
            halved = self._halved(step, parts)
        if math.isfinite(loss) and math.isfinite(norm):
            self.updating = True
            self._optimizer.step()
            self.updating = False
            self._skips = 0
        else:
            skipped = self._skip(step, loss)
        self._optimizer.zero_grad()
        return StepOutcome(loss, norm, rate, tokens, support, skipped, halved)

    def _backward(self, step: int, measure: bool) -> tuple[float, float, int, float | None]:
        """Gradient of the step's mean loss, clipped: loss, norm before clipping, tokens, support size."""
        clip = self.config.optimizer.clip
        loss, tokens, support = self._fitting_gradient(step, measure)
        norm = whole(self._accelerator.clip_grad_norm_(self._parameters, math.inf if clip is None else clip))
        if self.processes.world > 1:
            # The norm is that of the gradient of all already.
            loss, count = self.processes.total(torch.stack([loss, loss.new_tensor(tokens)]))
            tokens = int(count)
        loss_value, norm_value = torch.stack([loss, norm]).tolist()
        return loss_value, norm_value, tokens, support

    def _rows(self, parts: int) -> int:
        """Sequences of a micro-batch of this process where its share of the batch is split into ``parts``."""
        return self.config.batch // (self.processes.world * parts)

    def _split(self, parts: int) -> None:
        self.accumulation = parts
        self._accelerator.gradient_accumulation_steps = parts
        # Where the step stopped, accelerate counts from.
        self._accelerator.step = 0

    def _halved(self, step: int, before: int) -> str:
        return (
            f"the memory of {self.device} was used up in step {step + 1}; its batch is split into {self.accumulation} parts "
            f"of {self._rows(self.accumulation)} from here on, not {before}"
        )

    def _may_split(self) -> bool:
        return self.config.on_out_of_memory == "halve" and self._rows(self.accumulation) > 1

    def _split_further(self) -> None:
        """Halve the micro-batches; outside of the handler of the error, whose traceback would keep the activations."""
        rows = self._rows(self.accumulation)
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            with exclusive:
                torch.cuda.empty_cache()
        self._split(self.accumulation * next(factor for factor in range(2, rows + 1) if rows % factor == 0))

    def _fitting_gradient(self, step: int, measure: bool) -> tuple[torch.Tensor, int, float | None]:
        """As ``_gradient``; as often as the memory is too small, the micro-batches are halved first, if they may be."""
        while True:
            try:
                return self._gradient(step, measure)
            except torch.OutOfMemoryError:
                if not self._may_split():
                    raise
            self._split_further()

    def _gradient(self, step: int, measure: bool) -> tuple[torch.Tensor, int, float | None]:
        """Gradient of the step's mean loss: loss, tokens, support size."""
        config, world = self.config, self.processes.world
        parts = self._data(step)
        torch.manual_seed(step_seed(config.seed, step, self.processes.rank))
        count = self.processes.total(torch.stack([part.loss_mask[:, 1:].sum() for part in parts]).sum()).clamp(min=1)
        losses, support = [], None
        for index, part in enumerate(parts):
            with self._accelerator.accumulate(self._forward):
                inputs = part.tokens[:, :-1]
                # Statistics would compile the model twice.
                if measure and index == 0 and not config.compile:
                    logits, stats = self._forward(inputs, return_stats=True)
                    support = add_support(self.model, stats, part).overall()["support_size"]
                else:
                    logits = self._forward(inputs)
                loss = next_token_loss(logits, part.tokens, part.loss_mask, self.model.output_kernel)[0] / count
                # accelerate divides by the number of micro-batches, and torch by that of processes; the sum over all
                # tokens is divided already.
                self._accelerator.backward(loss * (self.accumulation * world))
                losses.append(loss.detach())
        return torch.stack(losses).sum(), sum(part.tokens[:, 1:].numel() for part in parts), support

    @property
    def _cuts(self) -> bool:
        """Whether micro-batches end at their longest sequence: a compiled or recorded step wants equal shapes more."""
        return not (self.config.compile or self.queued)

    def _data(self, step: int) -> list[Batch]:
        config = self.config
        return micro_batches(
            self.task,
            config.seed,
            step,
            config.batch,
            self.lengths,
            parts=self.accumulation,
            rank=self.processes.rank,
            world=self.processes.world,
            device=self.device,
            cut=self._cuts,
        )

    def _skip(self, step: int, loss: float) -> str:
        """Why the step is skipped; raises where the run must stop."""
        scaler = self._accelerator.scaler
        self._skips += 1
        overflow = math.isfinite(loss) and scaler is not None
        if overflow:
            # Normal with fp16: the scale is lowered and training goes on.
            message = f"The scaled fp16 gradient of step {step + 1} overflowed"
        else:
            with exclusive:
                message = self._blame(step, loss)
        if scaler is not None:
            scaler.update()
        # A run goes on with the config that it was started with, apart from a few keys such as on_nonfinite.
        fix = "start a new run with a lower optimizer.learning_rate or optimizer.clip"
        if self.config.precision != "fp32":
            fix += ", or with precision=fp32"
        if self.config.on_nonfinite == "stop" and not overflow:
            self._stop(message, f"resume with on_nonfinite=skip, or {fix}")
        if self._skips > MOST_SKIPS:
            self._stop(f"{self._skips} steps in a row were skipped. {message}", f"check the model, or {fix}")
        return message

    def _stop(self, message: str, fix: str) -> None:
        self._optimizer.zero_grad()
        raise TrainingError(message, fix=fix)

    def _blame(self, step: int, loss: float) -> str:
        def again() -> None:
            # The same dropout as in the step that failed.
            torch.manual_seed(step_seed(self.config.seed, step, self.processes.rank))
            for part in self._data(step):
                self.model(part.tokens[:, :-1])

        which = "gradient" if math.isfinite(loss) else "loss"
        culprit = self._named(blame_forward(self.model, again))
        if culprit is None and which == "loss":
            culprit = "every module's output is finite; the loss itself overflowed"
        if culprit is None:
            # Clipping by a norm that is NaN has spoilt every gradient.
            self.model.zero_grad(set_to_none=True)
            self._gradient(step, measure=False)
            culprit = blame_gradient(self.model)
        return f"The {which} of step {step + 1} is not finite: {culprit}"

    def _named(self, culprit: str | None) -> str | None:
        """The first culprit that any process found."""
        found = self.processes.gather(culprit)
        rank = next((rank for rank, name in enumerate(found) if name is not None), None)
        if rank is None:
            return None
        return found[rank] if len(found) == 1 else f"in process {rank}, {found[rank]}"
