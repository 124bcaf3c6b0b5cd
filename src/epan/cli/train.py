"""``epan train``: one model on one task."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from epan.cli.output import is_main, lengths
from epan.cli.wording import in_options
from epan.errors import EpanError

if TYPE_CHECKING:
    from epan.training import RunConfig

__all__ = ["TrainOptions", "configure", "train"]

WHAT = Group("What to train", sort_key=0)
HOW = Group("How to train it", sort_key=1)
WHERE = Group("Where", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """Options of ``epan train``; what is not given comes from --config, or is the default."""

    task: Annotated[
        str | None, Parameter(group=WHAT, help="Task, such as reverse (default), sort, copy, mqar, mqmtar, parity.")
    ] = None
    text: Annotated[
        str | None,
        Parameter(
            group=WHAT,
            help="Text to learn in place of a task: a file, a folder, a glob, a folder of tokens, or hf:NAME.",
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        Parameter(
            group=WHAT, help="Of text: bytes (default), bpe:size=8192, hf:NAME, or the path of a tokenizer.json."
        ),
    ] = None
    model: Annotated[str | None, Parameter(group=WHAT, help="Model: memory_mosaic (default) or transformer.")] = None
    kernel: Annotated[
        str | None,
        Parameter(
            group=WHAT, help="Kernel: biweight (default), gaussian, epanechnikov, triweight, polynomial:order=5, …"
        ),
    ] = None
    normalization: Annotated[
        str | None, Parameter(group=WHAT, help="Normalization: adaptive (default), anchored, fixed, nearest:k=16.")
    ] = None
    loss: Annotated[
        str | None,
        Parameter(
            group=WHAT,
            help="Loss: gaussian (default), which is the cross-entropy, or the Fenchel-Young loss of epanechnikov, biweight, …",
        ),
    ] = None
    config: Annotated[
        Path | None,
        Parameter(group=WHAT, help="Start from a .json or .toml file, or from the config of another run's folder."),
    ] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(
            group=WHAT,
            negative="",
            help="Any key of the config, such as task.options.symbols=16 (repeatable; --keys lists them).",
        ),
    ] = ()
    keys: Annotated[
        bool,
        Parameter(
            group=WHAT, negative="", help="List the keys that --set takes, with their values here; train nothing."
        ),
    ] = False
    steps: Annotated[int | None, Parameter(group=HOW, help="Optimizer steps (default 1000).")] = None
    seed: Annotated[int | None, Parameter(group=HOW, help="Seed of weights, data and dropout (default 0).")] = None
    batch: Annotated[int | None, Parameter(group=HOW, help="Sequences of one step (default 64).")] = None
    lr: Annotated[float | None, Parameter(group=HOW, help="Highest learning rate (default 0.001).")] = None
    lengths: Annotated[
        tuple[str, ...],
        Parameter(
            group=HOW,
            negative="",
            consume_multiple=True,
            help="Shortest and longest training length, such as 32,64; of text the context, such as 512.",
        ),
    ] = ()
    test_lengths: Annotated[
        tuple[str, ...],
        Parameter(
            group=HOW, negative="", consume_multiple=True, help="Lengths to test at the end, such as 64,128,256."
        ),
    ] = ()
    test_sequences: Annotated[
        int | None, Parameter(group=HOW, help="Test sequences of every length (default 1000).")
    ] = None
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=HOW, help="Default fp32.")] = None
    out: Annotated[Path | None, Parameter(group=WHERE, help="Run folder (default runs/NAME).")] = None
    resume: Annotated[bool, Parameter(group=WHERE, negative="", help="Go on with the run in --out.")] = False
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, Parameter(group=WHERE, help="Default auto.")] = None
    threads: Annotated[int | None, Parameter(group=WHERE, help="CPU threads.")] = None
    track: Annotated[
        tuple[str, ...],
        Parameter(
            group=WHERE,
            negative="",
            consume_multiple=True,
            help="Follow it in tensorboard, trackio (none: in neither).",
        ),
    ] = ()


# Flat option: key of the config.
_KEYS = {
    "task": "task.name",
    "tokenizer": "task.options.tokenizer",
    "model": "model.name",
    "kernel": "model.kernel",
    "normalization": "model.normalization",
    "loss": "loss",
    "steps": "steps",
    "seed": "seed",
    "batch": "batch",
    "lr": "optimizer.learning_rate",
    "test_sequences": "evaluation.sequences",
    "precision": "precision",
    "device": "device",
    "threads": "threads",
}


def configure(options: TrainOptions) -> RunConfig:
    """The config that the options mean: that of --config (or the defaults), changed by --set, changed by the others.

    Raises
    ------
    EpanError: an unknown key, a wrong value, or lengths that are not two numbers.
    """
    from epan.training import RunConfig, TaskConfig, load_config, override

    source = options.config
    if source is None and options.resume and options.out is not None:
        source = options.out
    config = load_config(source) if source is not None else RunConfig()
    changes = list(options.set)
    if options.text is not None:
        if options.task is not None:
            raise EpanError("A run learns a task or text", found=f"--task {options.task} --text {options.text}")
        if config.task.name != "text":
            config = dataclasses.replace(config, task=TaskConfig("text"))
        changes += [f"task.options.path={json.dumps(options.text)}"]
    numbered = (
        ("kernel", "polynomial", "order=5"),
        ("loss", "polynomial", "order=5"),
        ("normalization", "nearest", "k=16"),
    )
    for option, name, example in numbered:
        if getattr(options, option) == name:
            raise EpanError(f"The {option} {name!r} needs a number", fix=f"--{option} {name}:{example}")
    for option, key in _KEYS.items():
        value = getattr(options, option)
        if value is not None:
            changes.append(f"{key}={value}")
    if options.lengths:
        span = lengths(options.lengths, "--lengths", "32,64")
        if len(span) > 2:
            raise EpanError("--lengths takes one or two numbers", found=span, fix="e.g. --lengths 32,64")
        changes.append(f"lengths={[span[0], span[-1]]}")
    if options.test_lengths:
        changes.append(f"evaluation.lengths={list(lengths(options.test_lengths, '--test-lengths'))}")
    if options.track:
        names = [name for part in options.track for name in part.replace(",", " ").split() if name != "none"]
        changes.append(f"track={json.dumps(names or None)}")
    return override(config, changes)


def train(*, options: TrainOptions | None = None) -> int:
    """Train one model on one task or on text, test it, and keep record and checkpoints in a run folder.

    Ctrl-C saves a checkpoint; --resume goes on from it. On several GPUs: torchrun --nproc-per-node 2 -m epan train …
    """
    options = options or TrainOptions()
    config = configure(options)
    if options.keys:
        return _show_keys(config)
    if options.resume and options.out is None:
        raise EpanError("--resume needs the run to go on with", fix="add --out RUN")
    from epan import training
    from epan.cli import building, progress

    if is_main():
        building.show(config)
    with in_options():
        training.check(config)
    # Of several processes one speaks.
    shown = progress.for_run(config) if is_main() else None
    out = options.out or Path("runs") / config.label
    command = None if options.resume else shlex.join(["epan", *sys.argv[1:]])
    try:
        result = training.train(
            config, out, resume="require" if options.resume else "never", progress=shown, command=command
        )
    finally:
        if shown is not None:
            shown.close()
    return progress.finish(result) if shown is not None else result.exit_code


def _show_keys(config: RunConfig) -> int:
    from epan.cli.keys import list_keys

    with in_options():
        rows = list_keys(config)
    wide, value_wide = (max(len(row[place]) for row in rows) for place in (0, 1))
    for key, value, meaning in rows:
        print(f"{key:<{wide}}  {value:<{value_wide}}  {meaning}")
    return 0
