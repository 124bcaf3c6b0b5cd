"""Stops runs at random steps, lets them go on, and compares every bit with a run that nobody stopped.

python tests/training/resuming.py --alone 14 --together 8

Half of the runs get a signal and save at that step, the others are killed and go back to their last checkpoint; alone, or
in two processes as torchrun would start them. What is compared is the SHA-256 of weights, optimizer and all numbers of
the record but times.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from several import import_late, several
from small import fingerprint, numbers, tiny
from soak import import_all

from epan.training import EvaluationConfig, Progress, RunConfig, StepInfo, records, train
from epan.training import checkpoint as checkpoints

STEPS = 24
# Seconds that a run may take.
PATIENCE = 100.0


def config(seed: int) -> RunConfig:
    tests = EvaluationConfig(lengths=(2, 5), sequences=6, every=6)
    return tiny(
        {"dropout": 0.2}, steps=STEPS, batch=8, seed=seed, evaluation=tests, log_every=1, checkpoint_every=5, threads=1
    )


def digest(run: Path) -> str:
    """SHA-256 of the newest weights and optimizer, and of the numbers of the record apart from times."""
    content = hashlib.sha256(fingerprint(checkpoints.latest(run)).encode())
    content.update(json.dumps(numbers(run), sort_keys=True).encode())
    return content.hexdigest()


class Stop(Progress):
    """After a step, sends a signal to the last process of the run, or kills all of them."""

    def __init__(self, step: int, world: int, place: Path, kill: bool) -> None:
        self.step, self.pids, self.kill = step, [place / f"pid-{rank}" for rank in range(world)], kill

    def on_step(self, info: StepInfo) -> None:
        if info.step != self.step:
            return
        for pid in [int(file.read_text()) for file in reversed(self.pids)]:
            os.kill(pid, signal.SIGKILL if self.kill else signal.SIGTERM)
            if not self.kill:
                # It has arrived before the next step begins.
                time.sleep(0.05)
                break


def finish(chosen: RunConfig, run: Path, progress: Progress | None = None) -> int:
    """Starts a run or goes on with it to its end; one that hangs says where, and ends."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    return train(chosen, run, resume="auto", progress=progress).exit_code


def stopped(place: Path, seed: int, world: int, step: int, kill: bool) -> Path:
    """A run that was stopped after ``step`` and went on to its end."""
    run = place / f"run-{world}-{step}-{kill}-{seed}"
    run.mkdir()

    def work(rank: int) -> int:
        (run / f"pid-{rank}").write_text(str(os.getpid()))
        return finish(config(seed), run / "run", Stop(step, world, run, kill))

    codes = several(world, work)
    assert codes == [-signal.SIGKILL if kill else 143] * world, f"{run} ended with {codes}"
    status = records.summary(records.read(run / "run")).status
    assert status == ("running" if kill else "interrupted"), status
    assert several(world, lambda _: finish(config(seed), run / "run")) == [0] * world
    return run / "run"


def compare(place: Path, seed: int, world: int, count: int) -> int:
    """How many of ``count`` runs in ``world`` processes, stopped at different steps, have the bits of one never stopped."""
    chance = random.Random(1000 * world + seed)
    whole = place / f"whole-{world}"
    assert several(world, lambda _: finish(config(seed), whole)) == [0] * world
    expected, equal = digest(whole), 0
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS), count))):
        kill = number % 2 == 1
        same = digest(stopped(place, seed, world, step, kill)) == expected
        equal += same
        if not same:
            print(f"{world} processes, {'killed' if kill else 'signal'} after step {step}: other bits", flush=True)
    return equal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, default=14, help="stops of runs in one process")
    parser.add_argument("--together", type=int, default=8, help="stops of runs in two processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_all()
    import_late()
    asked = {1: options.alone, 2: options.together}
    with tempfile.TemporaryDirectory() as folder:
        found = {world: compare(Path(folder), options.seed, world, count) for world, count in asked.items() if count}
    for world, equal in found.items():
        print(f"{equal} of {asked[world]} resumed runs in {world} process{'es' * (world > 1)} have the same SHA-256")
    raise SystemExit(0 if all(found[world] == asked[world] for world in found) else 1)
