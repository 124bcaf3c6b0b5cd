"""Trains runs in several processes of this machine, forked after the imports, and looks at what they leave.

python tests/training/several.py [SCENARIO ...]

A script of its own: a process that has used threads, as one of pytest's may have, is not to be forked.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import fingerprint, tiny

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, TrainingError, records, train
from epan.training.checkpoint import latest, list_checkpoints, load

# What a run imports when it needs it: imported before the first fork, not by every process.
LATE = ("torch._dynamo", "torch.distributed.algorithms.ddp_comm_hooks.default_hooks", "accelerate")


def import_late() -> None:
    for name in LATE:
        importlib.import_module(name)


def config(dropout: float = 0.1, **changes: Any) -> RunConfig:
    return tiny({"dropout": dropout}, **{"batch": 8, "threads": 1, **changes})


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def several(world: int, work: Callable[[int], object]) -> list[int]:
    """The exit codes of ``world`` processes that ``torchrun`` might have started; each does ``work(rank)``.

    A process whose work returns an integer exits with it, else with 0; with 99 if it raises.
    """
    port, children = _port(), []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
                )  # fmt: skip
                found = work(rank)
                code = found if isinstance(found, int) else 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def steps(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in records.read(run) if entry["kind"] == "step"]


def main(scenarios: dict[str, Callable[[Path], None]]) -> None:
    """Do the scenarios that the command line names, or all, each in a folder of its own."""
    torch.set_num_threads(1)
    import_late()
    for name in sys.argv[1:] or scenarios:
        with tempfile.TemporaryDirectory() as folder:
            scenarios[name](Path(folder))
        print(f"passed {name}", flush=True)


def two_processes_give_the_numbers_of_one(place: Path, accumulation: int = 1) -> None:
    chosen = config(0.0, accumulation=accumulation)
    assert several(1, lambda _: train(chosen, place / "one").exit_code) == [0]
    assert several(2, lambda _: train(chosen, place / "two").exit_code) == [0, 0]
    for ours, theirs in zip(steps(place / "two"), steps(place / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    expected, found = load(latest(place / "one")), load(latest(place / "two"))
    for name, tensor in expected.model.items():
        torch.testing.assert_close(found.model[name], tensor, rtol=1e-4, atol=1e-5)


def two_processes_with_accumulation(place: Path) -> None:
    two_processes_give_the_numbers_of_one(place, 2)


def a_process_has_dropout_of_its_own(place: Path) -> None:
    chosen = config(0.5, steps=1, log_every=1)
    assert several(1, lambda _: train(chosen, place / "one").exit_code) == [0]
    assert several(2, lambda _: train(chosen, place / "two").exit_code) == [0, 0]
    assert steps(place / "one")[0]["loss"] != pytest.approx(steps(place / "two")[0]["loss"], rel=1e-5)


def one_process_keeps_the_record_and_tests(place: Path) -> None:
    assert several(2, lambda _: train(config(), place / "run").exit_code) == [0, 0]
    entries = records.read(place / "run")
    kinds = [entry["kind"] for entry in entries]
    assert (kinds.count("run"), kinds.count("step"), kinds.count("eval"), kinds.count("end")) == (1, 4, 2, 1)
    assert records.header(entries, place)["environment"]["processes"] == 2


class Kick(Progress):
    """Sends a signal to a process of the run after a step."""

    def __init__(self, step: int, target: Path, number: int) -> None:
        self.step, self.target, self.number = step, target, number

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.step:
            os.kill(int(self.target.read_text()), self.number)
            # It has arrived before the next step begins.
            time.sleep(0.2)


def a_signal_to_any_process_stops_all_and_the_run_goes_on_with_the_same_bits(place: Path, stop: int = 3) -> None:
    chosen = config()
    assert several(2, lambda _: train(chosen, place / "whole").exit_code) == [0, 0]

    def work(rank: int) -> int:
        (place / f"pid-{rank}").write_text(str(os.getpid()))
        kick = Kick(stop, place / "pid-1", signal.SIGTERM)
        return train(chosen, place / "run", progress=kick).exit_code

    assert several(2, work) == [143, 143]
    (kept,) = list_checkpoints(place / "run")
    # The other may have learnt of it one step later.
    assert int(kept.name[5:]) in (stop, stop + 1)
    assert several(2, lambda _: train(chosen, place / "run", resume="require").exit_code) == [0, 0]
    assert fingerprint(latest(place / "run")) == fingerprint(latest(place / "whole"))


def a_mistake_is_one_for_all(place: Path) -> None:
    (place / "full").mkdir()
    (place / "full" / "file").write_text("mine")

    def work(rank: int) -> int:
        with pytest.raises(EpanError, match="holds no run"):
            train(config(), place / "full")
        with pytest.raises(EpanError, match=r"equal parts for all processes.*batch 9.*multiple of 2"):
            train(config(batch=9), place / "other")
        return 7

    assert several(2, work) == [7, 7]
    assert not (place / "other").exists()


def a_number_that_is_not_finite_names_the_process(place: Path) -> None:
    def work(rank: int) -> int:
        if rank == 1:
            forward = torch.nn.Linear.forward
            torch.nn.Linear.forward = lambda self, x: forward(self, x) * float("nan")  # type: ignore[method-assign]
        with pytest.raises(TrainingError, match=r"loss of step 1 is not finite: in process 1, the output of module"):
            train(config(0.0), place / "run")
        return 7

    assert several(2, work) == [7, 7]
    assert records.summary(records.read(place / "run")).status == "failed"


SCENARIOS: dict[str, Callable[[Path], None]] = {
    work.__name__: work
    for work in (
        two_processes_give_the_numbers_of_one,
        two_processes_with_accumulation,
        a_process_has_dropout_of_its_own,
        one_process_keeps_the_record_and_tests,
        a_signal_to_any_process_stops_all_and_the_run_goes_on_with_the_same_bits,
        a_mistake_is_one_for_all,
        a_number_that_is_not_finite_names_the_process,
    )
}

if __name__ == "__main__":
    main(SCENARIOS)
