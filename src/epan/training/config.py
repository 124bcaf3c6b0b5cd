"""What a run is: frozen dataclasses with a default for every field. Needs no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Literal

from epan.errors import EpanError, unknown_name
from epan.training.choices import Scalar, choice_text, parse_choice

__all__ = [
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Options",
    "RunConfig",
    "TaskConfig",
]

Options = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]

# What may differ between a run and its continuation: none of these changes a number that is finite and fits the memory, but by
# the order of sums.
OPERATIONAL = (
    "name",
    "parallel",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep",
    "keep_best",
    "best_by",
    "best_length",
    "on_nonfinite",
    "on_out_of_memory",
    "track",
)

# The loss of a run that names none.
CROSS_ENTROPY = "gaussian"

# Where a run may be followed besides its record.
TRACKERS = ("tensorboard", "trackio")

# Model options with a config key of their own.
CHOICES = ("kernel", "normalization")

# Keys of a model's config that follow from the task.
OF_THE_TASK = ("vocab_size", "document_token")


def _require(ok: bool, key: str, found: object, allowed: str) -> None:
    if not ok:
        raise EpanError(f"Config key {key!r} is out of range", found=found, allowed=allowed)


def _at_least(low: int, key: str, found: int | None) -> None:
    whole = isinstance(found, int) and not isinstance(found, bool)
    _require(found is None or (whole and found >= low), key, found, f"an integer of at least {low}")


def _finite(key: str, found: float, low: float, high: float, allowed: str) -> None:
    _require(math.isfinite(found) and low <= found <= high, key, found, allowed)


@dataclass(frozen=True)
class TaskConfig:
    """Which task a run learns.

    Parameters
    ----------
    name
        name of the task, as `epan.tasks.names()` lists them, or text.
    options
        options of that task, such as {"symbols": 16}; those of text are the fields of `epan.data.Text`.
    """

    name: str = "reverse"
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Which model a run trains.

    Parameters
    ----------
    name
        name of the model, as `epan.models.names()` lists them.
    options
        the other keys of that model's config, such as {"layers": 2}.
    kernel
        a kernel by name, or with options: polynomial:order=5.
    normalization
        a normalization by name, or with options: nearest:k=16.
    """

    name: str = "memory_mosaic"
    options: Options = field(default_factory=dict)
    kernel: str | dict[str, Scalar] = "biweight"
    normalization: str | dict[str, Scalar] = "adaptive"

    def __post_init__(self) -> None:
        for key in OF_THE_TASK:
            if key in self.options:
                raise EpanError(f"{key!r} is no model option: it comes from the task", fix="remove it")
        for key in CHOICES:
            if key in self.options:
                raise EpanError(f"{key!r} is no model option", fix=f"give it as model.{key}, not model.options.{key}")
            object.__setattr__(self, key, parse_choice(getattr(self, key), f"model.{key}"))

    @property
    def method(self) -> str:
        """``kernel-normalization``, such as ``biweight-adaptive`` or ``gaussian-nearest(k=16)``."""
        return f"{choice_text(self.kernel)}-{choice_text(self.normalization)}"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine down to the final learning rate.

    Parameters
    ----------
    learning_rate
        the highest learning rate, reached at the end of the warm-up.
    final_learning_rate
        the learning rate of the last step.
    warmup
        share of the steps in which the learning rate rises linearly.
    weight_decay
        decoupled weight decay; parameters with fewer than two dimensions get none.
    betas
        decay rates of the two moment averages.
    clip
        largest norm of the gradient; none to leave it as it is.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        inf = math.inf
        _finite("optimizer.learning_rate", self.learning_rate, 0, inf, "a finite number of at least 0")
        _finite("optimizer.final_learning_rate", self.final_learning_rate, 0, inf, "a finite number of at least 0")
        share = "a share of the steps, at least 0 and below 1"
        _require(0 <= self.warmup < 1, "optimizer.warmup", self.warmup, share)
        _finite("optimizer.weight_decay", self.weight_decay, 0, inf, "a finite number of at least 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        _require(self.clip is None or self.clip > 0, "optimizer.clip", self.clip, "a positive number, or none")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is tested.

    Parameters
    ----------
    lengths
        test lengths; none for those lengths of the task that its options allow.
    sequences
        test sequences of every length.
    every
        steps between evaluations; none for one evaluation at the end.
    decoding
        greedy (token by token), teacher-forced (one pass, same exact match), or auto (greedy for short
        sequences).
    batch_tokens
        most tokens of one forward pass, fewer need less memory; the test sequences do not depend on it.
    seed
        seed of the test sequences, the same for runs of every seed, so that methods meet the same test.
    """

    lengths: tuple[int, ...] | None = None
    sequences: int = 1000
    every: int | None = None
    decoding: Literal["auto", "greedy", "teacher-forced"] = "auto"
    batch_tokens: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        for length in self.lengths or ():
            _at_least(1, "evaluation.lengths", length)
        _at_least(1, "evaluation.sequences", self.sequences)
        _at_least(1, "evaluation.every", self.every)
        _at_least(1, "evaluation.batch_tokens", self.batch_tokens)
        _at_least(0, "evaluation.seed", self.seed)


@dataclass(frozen=True)
class RunConfig:
    """One training run, whole: the same config gives the same numbers on the same machine.

    Parameters
    ----------
    name
        name of the run; none for one made of task, model, method and seed.
    seed
        seed of weights, training data and dropout.
    steps
        optimizer steps.
    batch
        sequences of one optimizer step.
    accumulation
        micro-batches that one step's batch is split into; saves memory, changes no result.
    gradient_checkpointing
        whether each block is computed again in the backward pass; saves memory, costs time, changes no result.
    parallel
        how the processes of torchrun share a run: ddp (each holds the whole model), or fsdp (each holds a part of all
        weights, gradients and moments, FSDP2); no difference for one process.
    lengths
        shortest and longest training length; none for the lengths of the task.
    task
        the task.
    model
        the model.
    loss
        the kernel whose Fenchel-Young loss is trained with, by name, or with options: polynomial:order=5. Its adaptive weights
        of the logits are the output distribution; gaussian is softmax with the cross-entropy.
    optimizer
        the optimizer and its schedule.
    evaluation
        the tests during and after training.
    precision
        fp32, bf16 or fp16 (autocast; weights stay float32).
    device
        auto takes a GPU where there is one.
    threads
        CPU threads; none leaves the setting of the process.
    compile
        whether torch.compile builds the training step.
    cuda_graph
        whether steps are recorded as one CUDA graph and queued, so that small models do not wait for Python;
        none: wherever that can be (an NVIDIA GPU, one process, bf16 or fp32, no gradient_checkpointing).
    deterministic
        whether a GPU takes algorithms that give the same bits each time, slower ones where it must.
    log_every
        steps between lines of the record.
    checkpoint_every
        steps between checkpoints; none for one at the end.
    keep
        how many of the newest checkpoints stay.
    keep_best
        how many of the best checkpoints stay beside them; every tested step is saved then. They are chosen by
        the tests of evaluation, on whose sequences their figures flatter: test them with another seed.
    best_by
        what makes a checkpoint the best: the highest exact_match (default) or token_accuracy, or the lowest loss.
    best_length
        the test length at which; none for the first one.
    on_nonfinite
        what a loss or gradient that is not finite does: stop the run, or skip the step.
    on_out_of_memory
        what a step that needs too much memory does: stop the run, or halve the micro-batches (of one process)
        and do the step again; that is more accumulation, the same result but for rounding and dropout.
    track
        trackers beside the record: tensorboard, trackio; none for none.
    """

    name: str | None = None
    seed: int = 0
    steps: int = 1000
    batch: int = 64
    accumulation: int = 1
    gradient_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    lengths: tuple[int, int] | None = None
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: str | dict[str, Scalar] = CROSS_ENTROPY
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    compile: bool = False
    cuda_graph: bool | None = None
    deterministic: bool = False
    log_every: int = 10
    checkpoint_every: int | None = None
    keep: int = 2
    keep_best: int = 0
    best_by: Literal["exact_match", "token_accuracy", "loss"] = "exact_match"
    best_length: int | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    on_out_of_memory: Literal["stop", "halve"] = "stop"
    track: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"(?!\.)[^/\\\0]+", self.name):
            raise EpanError("'name' must be usable as the name of a folder", found=repr(self.name))
        object.__setattr__(self, "loss", parse_choice(self.loss, "loss"))
        _at_least(0, "seed", self.seed)
        for key in ("steps", "batch", "accumulation", "threads", "log_every", "checkpoint_every", "keep"):
            _at_least(1, key, getattr(self, key))
        _at_least(0, "keep_best", self.keep_best)
        if self.keep_best and self.evaluation.every is None:
            raise EpanError(
                "The best checkpoints are found by tests during training, and there are none",
                found=f"keep_best={self.keep_best}, evaluation.every=None",
                fix="set evaluation.every to the steps between tests",
            )
        if self.lengths is not None:
            low, high = self.lengths
            _require(1 <= low <= high, "lengths", self.lengths, "two integers, 1 <= low <= high")
        for name in self.track or ():
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
        if self.batch % self.accumulation:
            raise EpanError(
                "The batch cannot be split into equal micro-batches",
                found=f"batch {self.batch}, accumulation {self.accumulation}",
                fix="make batch a multiple of accumulation",
            )

    @property
    def plain_steps(self) -> str | None:
        """Why steps of this run cannot be recorded as a CUDA graph, wherever it runs; None if nothing speaks against it."""
        if self.precision == "fp16":
            return "precision fp16 changes its loss scale as it goes on"
        if self.gradient_checkpointing:
            return "gradient_checkpointing reads the state of the random numbers"
        return None

    @property
    def method(self) -> str:
        """The label of kernel and normalization, such as ``biweight-adaptive``."""
        return self.model.method

    @property
    def label(self) -> str:
        """The name of the run, and of its folder in a sweep."""
        if self.name is not None:
            return self.name
        loss = "" if self.loss == CROSS_ENTROPY else f"-{choice_text(self.loss)}-loss"
        parts = f"{self.task.name}-{self.model.name}-{self.method}{loss}-seed{self.seed}"
        return re.sub(r"-*[^\w.=+-]+", "-", parts).replace("--", "-")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; ``from_dict`` gives the same config back."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> RunConfig:
        """The config of ``values``; keys that are left out take their default.

        Raises
        ------
        EpanError: an unknown key (with a suggestion), a wrong type, a value out of range; the dotted path is named.
        """
        from epan.training.parsing import build

        return build(cls, values)

    def hash(self) -> str:
        """SHA-256 of everything that decides the numbers of the run, as long as they are finite."""
        content = {key: value for key, value in self.to_dict().items() if key not in OPERATIONAL}
        # Runs whose config does not name a loss are runs with the cross-entropy.
        if self.loss == CROSS_ENTROPY:
            del content["loss"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
