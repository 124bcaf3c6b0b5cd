"""From a run folder to its trained model, and its evaluation at further lengths."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch

import epan.models
import epan.tasks
from epan._options import make
from epan.data.text import Text
from epan.data.tokenizing import FILE_NAME as TOKENIZER
from epan.data.written import Written
from epan.errors import EpanError, UnsupportedError, unknown_name
from epan.losses import output_kernel
from epan.models import LanguageModel
from epan.tasks import Sequences
from epan.training import checkpoint as checkpoints
from epan.training.choices import parse_choice
from epan.training.config import CHOICES, CROSS_ENTROPY, OF_THE_TASK, RunConfig, TaskConfig
from epan.training.evaluation import evaluate, lengths_to_test
from epan.training.folder import check_data
from epan.training.progress import Progress
from epan.training.records import FILE_NAME, RecordWriter, read
from epan.training.retention import ranking
from epan.training.untrusted import no_larger_than, shown

__all__ = [
    "autocast",
    "best_length",
    "build_model",
    "build_task",
    "evaluate_run",
    "find_device",
    "find_task",
    "load",
    "load_run",
    "model_facts",
]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device of a config's name; ``auto`` is a GPU where there is one.

    Raises
    ------
    EpanError: the device is not there.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here.get(name, False):
        allowed = ["auto", *(kind for kind, there in here.items() if there)]
        raise EpanError("The device is not available here", found=name, allowed=allowed, fix="take device=auto")
    return torch.device(name)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast of a config's precision; fp32 needs none."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def build_task(config: RunConfig) -> Sequences:
    """The task of a run, or its text; EpanError for an unknown name or option."""
    return find_task(config.task).for_training(config.lengths, config.batch)


def find_task(chosen: TaskConfig) -> Sequences:
    """A task of the catalogue, or text; EpanError for an unknown name or option."""
    if chosen.name == Text.name:
        return make("task", Text.name, Text, chosen.options, None)
    if chosen.name not in epan.tasks.names():
        raise unknown_name("task", chosen.name, (*epan.tasks.names(), Text.name), epan.tasks.HINTS)
    return epan.tasks.get(chosen.name, **chosen.options)


def build_model(config: RunConfig, task: Sequences) -> LanguageModel:
    """The model of a run for the vocabulary of its task; EpanError for an unknown name, config key or loss."""
    model = config.model
    # The task gives the vocabulary and the token of documents, and kernel and normalization have keys of their own.
    options = [key for key in epan.models.option_names(model.name) if key not in (*OF_THE_TASK, *CHOICES)]
    for key in model.options:
        if key not in options:
            raise unknown_name(f"option of the model {model.name!r}:", key, options)
    chosen = {"kernel": model.kernel, "normalization": model.normalization}
    given = {"vocab_size": task.vocab_size, "document_token": task.document_token}
    made = epan.models.build(model.name, {**given, **chosen, **model.options})
    made.output_kernel = output_kernel(config.loss)
    return made


def model_facts(name: str, model: LanguageModel) -> dict[str, Any]:
    """Name and whole config of a model, from which ``epan.models.build`` makes it again."""
    return {"name": name, **dataclasses.asdict(model.config)}


def best_length(config: RunConfig, task: Sequences) -> int:
    """The test length at which the best checkpoint of a run is found.

    Raises
    ------
    EpanError: the run is not tested at ``best_length``, or not for what makes a checkpoint the best.
    """
    measured = (*task.measures, "loss")
    if config.keep_best and config.best_by not in measured:
        raise EpanError(
            f"A test of the task {task.name!r} does not tell what makes a checkpoint the best",
            found=f"best_by={config.best_by}",
            allowed=[name for name in ("exact_match", "token_accuracy", "loss") if name in measured],
            fix="set best_by=loss",
        )
    tested = lengths_to_test(task, config.evaluation.lengths)
    if config.best_length is not None and config.best_length not in tested:
        raise EpanError("The run is not tested at best_length", found=config.best_length, allowed=tested)
    return config.best_length or tested[0]


def find_checkpoint(run: str | Path, step: int | Literal["best"] | None = None) -> Path:
    """The checkpoint folder that ``run`` means: itself, that of ``step``, or the newest good one (warns of bad ones).

    ``step="best"`` is the good one that did best in the run's own tests, by ``best_by`` and ``best_length`` of its
    config.

    Raises
    ------
    EpanError: nothing there, no checkpoint, no checkpoint of that step, none that was tested.
    """
    path = Path(run)
    if not path.exists():
        raise EpanError("No such run", found=str(path), fix="give a run folder, or a folder RUN/checkpoints/step-…")
    if (path / checkpoints.MANIFEST).exists() or path.parent.name == checkpoints.FOLDER:
        return path
    if step is None:
        return checkpoints.latest(path, warn=lambda message: warnings.warn(message, stacklevel=4))
    if step == "best":
        return _find_best(path)
    there = {checkpoints.step_of(folder): folder for folder in checkpoints.list_checkpoints(path)}
    if step not in there:
        raise EpanError("The run has no checkpoint of that step", found=step, allowed=list(there) or "none")
    return there[step]


def _find_best(run: Path) -> Path:
    # What is best is up to the last session.
    newest = checkpoints.latest(run, warn=lambda message: warnings.warn(message, stacklevel=5))
    config = RunConfig.from_dict(checkpoints.verify(newest)["config"])
    there = {checkpoints.step_of(folder): folder for folder in checkpoints.list_checkpoints(run)}
    task = build_task(config)
    for place in ranking(read(run), config, best_length(config, task), task.tested_split):
        folder = there.get(place.step)
        if folder is None:
            continue
        try:
            checkpoints.verify(folder)
        except EpanError as error:
            warnings.warn(f"{folder.name} is passed over. {error}", stacklevel=4)
        else:
            return folder
    raise EpanError(
        "The run has no good checkpoint that it tested",
        found=str(run),
        fix="train with keep_best=1 and evaluation.every, or take another step",
    )


def load(
    run: str | Path, *, step: int | Literal["best"] | None = None, device: str | torch.device = "cpu"
) -> LanguageModel:
    """The trained model of a run, in eval mode, with its config as ``model.config`` and the kernel of its loss as
    ``model.output_kernel``.

    Parameters
    ----------
    run: a run folder (its newest good checkpoint is taken) or a checkpoint folder.
    step: of which checkpoint of the run folder; "best" is the one that did best in the run's own tests.
    device: where the model goes.

    Raises
    ------
    EpanError: no run or checkpoint there, a damaged one, or one of another model; says what, where and what to do.
    """
    return _restore(checkpoints.load(find_checkpoint(run, step)), device)


@runtime_checkable
class Language(Protocol):
    """What puts prompts into the tokens of a model and its answers into words: a ``Task``, or the tokenizer of a text.

    Attributes
    ----------
    ends: tokens after which nothing follows.
    """

    @property
    def ends(self) -> tuple[int, ...]: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens in words, with � for a part of a character."""


class LoadedRun(NamedTuple):
    """A trained run: its config, its task or the tokenizer of its text, its model, and after which step."""

    config: RunConfig
    task: Language
    model: LanguageModel
    step: int


def load_run(run: str | Path, *, step: int | Literal["best"] | None = None, device: str = "auto") -> LoadedRun:
    """As ``load``, with what puts its tokens into words; ``device`` is that of a config.

    Raises
    ------
    EpanError: as ``load``, a task that cannot be built, or one without words.
    """
    checkpoint = checkpoints.load(find_checkpoint(run, step))
    with _believed(checkpoint, "task"):
        config = RunConfig.from_dict(checkpoint.manifest["config"])
        learnt = config.task.name
        task = Written(checkpoint.path.parent.parent / TOKENIZER) if learnt == Text.name else build_task(config)
        if not isinstance(task, Language):
            raise UnsupportedError(f"A prompt of the task {learnt!r}", "its tokens have no words", "use epan.generate")
    return LoadedRun(config, task, _restore(checkpoint, find_device(device)), checkpoint.step)


@contextmanager
def _believed(checkpoint: checkpoints.Checkpoint, what: Literal["model", "task"]) -> Iterator[None]:
    """Whatever goes wrong while the model or task of a checkpoint is built becomes an EpanError."""
    try:
        yield
    except EpanError:
        raise
    except Exception as error:
        raise EpanError(
            f"The {what} of the checkpoint cannot be built: {shown(str(error))}",
            found=str(checkpoint.path),
            fix="use another checkpoint of the run",
        ) from error


def _restore(checkpoint: checkpoints.Checkpoint, device: str | torch.device) -> LanguageModel:
    options = dict(checkpoint.manifest["model"])
    name = options.pop("name", None)
    with _believed(checkpoint, "model"):
        with no_larger_than(checkpoint.model, checkpoint.path):
            epan.models.build(name, options)
        model = epan.models.build(name, options)
        loss = checkpoint.manifest["config"].get("loss", CROSS_ENTROPY)
        model.output_kernel = output_kernel(parse_choice(loss, "loss"))
    checkpoints.load_into(model, checkpoint.model, checkpoint.path)
    return model.to(device).eval()


def evaluate_run(
    run: str | Path,
    lengths: Sequence[int] | None = None,
    *,
    sequences: int | None = None,
    decoding: Literal["auto", "greedy", "teacher-forced"] | None = None,
    seed: int | None = None,
    batch_tokens: int | None = None,
    split: str = "test",
    text: str | None = None,
    step: int | Literal["best"] | None = None,
    device: str = "auto",
    append: bool = True,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Test a trained run at ``lengths`` and, with ``append``, add the results to its record.

    What is not given is taken from the config of the run. See ``evaluate`` for the records. With ``text``, of a run that learnt
    from text, all of that other text is the test: the records have its name as their split, and its hash as ``data_hash``.

    Raises
    ------
    EpanError: as ``load`` and ``evaluate``; the record cannot be written (told before the work starts); the run's own text
        is no longer the one that it learnt from.
    """
    checkpoint = checkpoints.load(find_checkpoint(run, step))
    folder = checkpoint.path.parent.parent
    with _believed(checkpoint, "task"):
        config = RunConfig.from_dict(checkpoint.manifest["config"])
        task = build_task(config) if text is None else other_text(config, folder, text)
        if text is not None:
            split = task.tested_split
        elif (folder / FILE_NAME).exists():
            check_data(read(folder), folder, task.data_hash)
        tested = lengths_to_test(task, lengths or config.evaluation.lengths)
    place = find_device(device)
    model = _restore(checkpoint, place)
    chosen = config.evaluation
    with ExitStack() as stack:
        writer = stack.enter_context(RecordWriter(folder)) if append and (folder / FILE_NAME).exists() else None
        stack.enter_context(autocast(config.precision, place))
        results = []
        for length in tested:
            results += evaluate(
                model,
                task,
                [length],
                sequences=chosen.sequences if sequences is None else sequences,
                seed=chosen.seed if seed is None else seed,
                decoding=decoding or chosen.decoding,
                batch_tokens=chosen.batch_tokens if batch_tokens is None else batch_tokens,
                split=split,
                run=config,
                step=checkpoint.step,
                progress=progress,
            )
            if text is not None:
                results[-1] |= {"split": Path(text).name, "data_hash": task.data_hash}
            if writer is not None:
                writer.write(**results[-1])
    return results


def other_text(config: RunConfig, run: Path, path: str) -> Text:
    """Another text, whole, in the tokens of a run.

    Raises
    ------
    EpanError: the run learnt from no text, or the text cannot be read.
    """
    if config.task.name != Text.name:
        raise EpanError("Only a run that learnt from text can be tested on text", found=f"task {config.task.name}")
    options: dict[str, object] = {
        key: config.task.options[key] for key in ("documents", "field") if key in config.task.options
    }
    made = make(
        "task", Text.name, Text, {**options, "path": path, "tokenizer": str(run / TOKENIZER), "split": "all"}, None
    )
    return made.for_training(config.lengths, config.batch)
