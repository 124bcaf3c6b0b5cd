"""Training one model on one task: the loop, and the run folder that it leaves."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from epan.data.text import Text
from epan.errors import EpanError, UnsupportedError
from epan.tasks import Sequences
from epan.training import checkpoint as checkpoints
from epan.training import claims, records
from epan.training.config import RunConfig
from epan.training.engine import own_settings
from epan.training.exclusive import exclusive
from epan.training.folder import Resume, RunFolder, check_data, open_folder
from epan.training.interruption import Interruption
from epan.training.loading import best_length, build_model, build_task, find_device
from epan.training.processes import Processes, join, local_device, world_size
from epan.training.progress import Progress, RunResult
from epan.training.session import Session
from epan.training.starting import Ready
from epan.training.tracking import TrackedWriter, check_trackers

__all__ = ["check", "device_of", "run_alone", "train"]


def check(config: RunConfig) -> None:
    """Raise the error that ``train`` would raise before its first step; builds task and model once and drops them.

    Raises
    ------
    EpanError: an unknown task, model, kernel, option or length, a device that is not there, a precision it does not
        have.
    """
    device_of(config)
    _check_split(config)
    check_trackers(config.track or ())
    if config.task.name == Text.name and os.environ.get("RANK", "0") != "0":
        # One process builds the tokens, and the others meet it when they train.
        return
    task = _task(config)
    with torch.random.fork_rng(devices=[]):
        build_model(config, task)


def _task(config: RunConfig) -> Sequences:
    """The task of a run that can train and be tested at the lengths of its config."""
    task = build_task(config)
    task.check_lengths(config.lengths or task.train_lengths)
    best_length(config, task)
    if isinstance(task, Text) and not task.windows("train", task.context):
        raise task.too_short("train", task.context)
    return task


def device_of(config: RunConfig) -> torch.device:
    """The device of a run in this process; EpanError where it is not there, or has no such precision."""
    device = local_device(find_device(config.device))
    if config.precision == "fp16" and config.parallel == "fsdp":
        reason = "whether a scaled gradient overflowed is known to each process of its part alone"
        raise UnsupportedError("precision fp16 with parallel=fsdp", reason, "take precision=bf16 or parallel=ddp")
    if config.precision == "fp16" and device.type != "cuda":
        fix = "take precision=bf16 or fp32, or a GPU"
        raise UnsupportedError(f"precision fp16 on {device.type}", "its loss scaling needs a GPU", fix)
    return device


def _check_split(config: RunConfig) -> None:
    world = world_size()
    if world > 1 and config.on_out_of_memory == "halve":
        # The others are in the middle of adding up gradients with one whose memory is used up.
        fix = "take on_out_of_memory=stop, and more accumulation"
        raise UnsupportedError("on_out_of_memory=halve", "a run in several processes cannot repeat a step", fix)
    if config.batch % (config.accumulation * world):
        raise EpanError(
            "The batch cannot be split into equal parts for all processes",
            found=f"batch {config.batch}, accumulation {config.accumulation}, {world} processes",
            fix=f"make batch a multiple of {config.accumulation * world}",
        )


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: Resume = "never",
    progress: Progress | None = None,
    command: str | None = None,
    claim: str | None = None,
) -> RunResult:
    """Train the model of ``config`` in this process and keep record and checkpoints in the folder ``out``.

    The loss of a step is the mean over all tokens with loss of its ``batch`` sequences. Data and
    dropout are a function of (seed, step), so a resumed run goes on as if it had not stopped. The first Ctrl-C,
    SIGTERM or SIGUSR1 ends the run after the current step (on a GPU after those that are started, about a second) with a
    checkpoint and the status "interrupted", the second one at once. Prints nothing.

    Under ``torchrun`` every process calls it: they share the ``batch`` sequences of each step between them (a machine's
    processes each take a GPU, or the CPU), the first keeps record and checkpoints and tests. How many they are changes
    the order in which numbers are added up, and which dropout a sequence gets, but neither data nor loss.

    Parameters
    ----------
    config: the run.
    out: the run folder; created.
    resume: "never" (the folder must hold no run), "require" (it must hold a run of the same config), "auto" (either).
        A run that is finished already returns at once.
    progress: receives what happens, in the first process.
    command: the command that repeats the run, for its record; made from the record itself if None.
    claim: the claim on the folder that the process that started this one hands over; claimed anew if None.

    Raises
    ------
    EpanError: a wrong config, a folder that cannot be used, or one that another process trains in; told before anything
        is written.
    ClaimLost: another process has taken the run over; nothing more is written.
    TrainingError: loss or gradient is not finite (the module or parameter is named; weights and checkpoints stay
        good), or the memory is used up.
    """
    device = device_of(config)
    _check_split(config)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        stack.enter_context(own_settings(config, device))
        processes = stack.enter_context(join(device))
        return run_alone(
            config, out, device, interruption, processes, resume=resume, progress=progress, command=command, claim=claim
        )


def run_alone(
    config: RunConfig,
    out: str | Path,
    device: torch.device,
    interruption: Interruption,
    processes: Processes,
    *,
    resume: Resume,
    progress: Progress | None,
    command: str | None = None,
    claim: str | None = None,
    ready: Ready | None = None,
) -> RunResult:
    """``train`` where signals, settings and the group of processes are taken care of.

    With ``ready`` other threads may call it, too, at the same time: it is called before the first step, and waits for them.
    """
    check_trackers(config.track or ())
    with ExitStack() as stack:
        if processes.world > 1 and config.task.name == Text.name:
            # One process builds the tokens.
            processes.share(lambda: _task(config).data_hash)
        with exclusive:
            torch.manual_seed(config.seed)
            task = _task(config)
            model = build_model(config, task)
        shown = progress if progress is not None and processes.main else Progress()
        held: list[claims.Claim] = []

        def begin() -> RunFolder:
            opened = open_folder(config, out, resume)
            if opened.state == "finished":
                return opened
            own = claims.hand_over(opened.path, claim) if claim else claims.acquire(opened.path, shown.on_event, wanted)
            held.append(stack.enter_context(own))
            # Another process may have trained it until a moment ago.
            return open_folder(config, out, resume)

        wanted = interruption.wanted
        folder = processes.share(begin)
        if folder.state == "finished":
            return _finished(config, folder)
        if folder.state == "started":
            check_data(folder.entries, folder.path, task.data_hash)
        writer: records.RecordWriter | TrackedWriter | records.NoWriter = records.NoWriter()
        if processes.main:
            writer = stack.enter_context(records.RecordWriter(folder.path))
            if config.track:
                writer = stack.enter_context(TrackedWriter(writer, config.track, folder.path, shown.on_event))
        check_claim = held[0].check if held else None
        # Without a name of its own here, so that it is gone before its group of processes is left.
        return Session(
            config, folder, writer, shown, interruption, task, model, device, processes, check_claim, ready
        ).go(command)


def _finished(config: RunConfig, folder: RunFolder) -> RunResult:
    status = records.summary(folder.entries)
    there = checkpoints.list_checkpoints(folder.path)
    last = there[-1] if there else None
    return RunResult(
        "finished", None, status.step, config.steps, status.loss, status.elapsed, folder.path, last, status.evaluations
    )
