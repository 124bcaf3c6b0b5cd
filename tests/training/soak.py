"""Kills a training run at random moments, again and again, and looks at what it left.

python tests/training/soak.py --kills 200

Every run saves a checkpoint each step, beside training, in a process that is forked after the imports and killed with
SIGKILL. After each kill every checkpoint has to be whole and the last step that was told must not be further than one from the newest; at the
end of a run nothing half written may be left, and the weights have to be those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from small import fingerprint, tiny

from epan.training import EvaluationConfig, Progress, RunConfig, StartInfo, StepInfo, train
from epan.training import checkpoint as checkpoints
from epan.training.engine import Engine, own_settings
from epan.training.loading import build_model, build_task

STEPS = 40
# The longest life of a process, in seconds.
LIFE = 1.0


@dataclass
class Soak:
    """What happened: kills, those in the middle of a write, finished runs, and by how many steps a kill set one back."""

    kills: int = 0
    in_writes: int = 0
    finished: int = 0
    most_lost: int = 0


def config(seed: int) -> RunConfig:
    evaluation = EvaluationConfig(lengths=(2,), sequences=2)
    return tiny(
        steps=STEPS, batch=4, seed=seed, evaluation=evaluation, log_every=1, checkpoint_every=1, keep=3, threads=1
    )


class Told(Progress):
    """Writes into a pipe that the run has started, as step 0, and the number of every step that is done."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_start(self, info: StartInfo) -> None:
        os.write(self.pipe, b"0\n")

    def on_step(self, info: StepInfo) -> None:
        os.write(self.pipe, f"{info.step}\n".encode())


def import_all() -> None:
    """What is imported late is there before the first fork: a life of a second would be spent on it."""
    chosen = config(0)
    with own_settings(chosen, torch.device("cpu")):
        task = build_task(chosen)
        Engine(chosen, task, build_model(chosen, task), torch.device("cpu")).take_step(0, measure=True)


def fork(work: Callable[[int], object]) -> tuple[int, int]:
    """(process, end of a pipe to read): ``work`` in a process of its own, with the other end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            work(writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    return child, reader


def life(run: Path, seed: int, seconds: float | None, training: bool = False) -> tuple[bool, int]:
    """Starts or resumes the run and kills it after ``seconds`` (None: never): whether it was killed, the last step told.

    With ``training`` they count from when it trains.
    """
    child, reader = fork(lambda pipe: train(config(seed), run, resume="auto", progress=Told(pipe)))
    if training:
        select.select([reader], [], [])
    end = None if seconds is None else time.monotonic() + seconds
    status: tuple[int, int] = (0, 0)
    while status[0] == 0:
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)
        else:
            status = os.waitpid(child, 0 if end is None else os.WNOHANG)
            time.sleep(0.001)
    with os.fdopen(reader) as pipe:
        told = [int(line) for line in pipe.read().split()]
    killed = os.WIFSIGNALED(status[1])
    assert killed or os.WEXITSTATUS(status[1]) == 0, f"{run} ended with status {status[1]}"
    return killed, max(told, default=0)


def soak(kills: int, folder: Path, seed: int = 0, tell: Callable[[Soak], None] = lambda _: None) -> Soak:
    """Kills runs in ``folder`` until so many kills are done, and finishes the last."""
    torch.set_num_threads(1)
    import_all()
    chance, result, number = random.Random(seed), Soak(), 0
    while result.kills < kills:
        run, undisturbed = folder / f"run-{number}", folder / f"undisturbed-{number}"
        before = 0
        while True:
            # Some are killed while they start or resume, most while they train and write.
            seconds = chance.uniform(0, LIFE) if result.kills < kills else None
            killed, told = life(run, number, seconds, training=chance.random() < 0.8)
            saved = checkpoints.list_checkpoints(run)
            for path in saved:
                checkpoints.verify(path)
            newest = int(saved[-1].name[5:]) if saved else 0
            reached = max(told, before)
            assert newest >= reached - 1, f"step {reached} was done, the newest checkpoint is that of step {newest}"
            result.most_lost = max(result.most_lost, reached - newest)
            before = newest
            if not killed:
                break
            result.kills += 1
            result.in_writes += bool(checkpoints.litter(run))
            tell(result)
        assert not checkpoints.litter(run), f"litter: {checkpoints.litter(run)}"
        life(undisturbed, number, None)
        assert fingerprint(checkpoints.latest(run)) == fingerprint(checkpoints.latest(undisturbed)), (
            f"{run} has other weights than a run that nobody killed"
        )
        result.finished, number = result.finished + 1, number + 1
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        done = soak(
            options.kills, Path(place), options.seed,
            lambda now: print(f"\r{now.kills} kills, {now.finished} runs", end="", flush=True),
        )  # fmt: skip
    print(
        f"\r{done.kills} kills ({done.in_writes} while a checkpoint was written), {done.finished} runs finished with the "
        f"weights of undisturbed ones; at most {done.most_lost} step lost; no litter; {time.monotonic() - started:.0f} s"
    )
