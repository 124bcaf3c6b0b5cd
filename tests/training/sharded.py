"""Trains runs in several processes that share the weights (FSDP2), and looks at what they leave.

python tests/training/sharded.py [SCENARIO ...]
"""

from __future__ import annotations

import datetime
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from several import Kick, config, main, several, steps
from small import fingerprint

import epan
from epan.errors import EpanError
from epan.training import (
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingError,
    processes,
    records,
    session,
    train,
    verify,
)
from epan.training import checkpoint as checkpoints
from epan.training.checkpoint import latest, list_checkpoints, load
from epan.training.engine import Engine, own_settings
from epan.training.loading import build_model, build_task
from epan.training.processes import join
from epan.training.saving import save_shards

CPU = torch.device("cpu")
FILES = [
    "manifest.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors", "state.json",
]  # fmt: skip


def fsdp(dropout: float = 0.1, **changes: Any) -> RunConfig:
    return config(dropout, parallel="fsdp", **changes)


def run(world: int, chosen: RunConfig, out: Path, **more: Any) -> None:
    assert several(world, lambda _: train(chosen, out, **more).exit_code) == [0] * world


def compare(ours: Path, theirs: Path, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for found, expected in zip(steps(ours), steps(theirs), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=rtol)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=10 * rtol)
    found, expected = load(latest(ours)), load(latest(theirs))
    for kept, given in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert kept.keys() == given.keys()
        for name, tensor in given.items():
            torch.testing.assert_close(kept[name], tensor, rtol=rtol, atol=atol, msg=name)


def parts_give_the_numbers_of_one_process_and_of_whole_copies(place: Path) -> None:
    # The norm is clipped: that of all parts together.
    chosen = fsdp(0.0)
    run(1, chosen, place / "one")
    run(2, chosen, place / "fsdp")
    run(2, config(0.0), place / "ddp")
    compare(place / "fsdp", place / "one")
    compare(place / "fsdp", place / "ddp")
    tested = {name: [e for e in records.read(place / name) if e["kind"] == "eval"] for name in ("fsdp", "one")}
    assert [e["length"] for e in tested["fsdp"]] == [e["length"] for e in tested["one"]] == [2, 5]
    for found, expected in zip(tested["fsdp"], tested["one"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    betas = {name: [e for e in records.read(place / name) if e["kind"] == "bandwidth"] for name in ("fsdp", "one")}
    assert len(betas["fsdp"]) == len(betas["one"]) > 1
    for found, expected in zip(betas["fsdp"], betas["one"], strict=True):
        for name, values in expected["values"].items():
            assert found["values"][name] == pytest.approx(values, rel=1e-4)


def three_processes_share_tensors_of_two_rows(place: Path) -> None:
    chosen = fsdp(0.0, batch=12, accumulation=2, gradient_checkpointing=True)
    run(1, chosen, place / "one")
    run(3, chosen, place / "three")
    compare(place / "three", place / "one")


def a_transformer_in_bfloat16(place: Path) -> None:
    options = {"layers": 2, "heads": 2, "width": 8, "learn_scale": True, "learn_order": True}
    model = ModelConfig("transformer", options, kernel="polynomial:order=3")
    chosen = fsdp(0.0, model=model, precision="bf16", compile=False)
    run(2, chosen, place / "fsdp")
    run(2, config(0.0, model=model, precision="bf16"), place / "ddp")
    # The same operands are rounded to bfloat16: what differs is the order of sums.
    compare(place / "fsdp", place / "ddp", rtol=5e-3, atol=5e-4)


def a_compiled_run(place: Path) -> None:
    run(2, fsdp(0.0, steps=2, compile=True), place / "compiled")
    run(2, fsdp(0.0, steps=2), place / "plain")
    compare(place / "compiled", place / "plain", rtol=1e-3)


def every_process_writes_its_parts_and_they_load_anywhere(place: Path) -> None:
    chosen = fsdp()
    run(2, chosen, place / "run")
    path = latest(place / "run")
    assert sorted(file.name for file in path.iterdir()) == FILES
    assert all(finding.status == "good" for finding in verify(place / "run"))
    manifest = checkpoints.verify(path)
    assert manifest["shards"]["model"]["embedding.weight"]["dim"] == 0
    assert (
        sum(manifest["shards"]["model"]["embedding.weight"]["sizes"]) == load(path).model["embedding.weight"].shape[0]
    )
    half = sum(tensor.nbytes for tensor in safetensors.torch.load_file(path / FILES[1]).values())
    assert 0.4 < half / sum(tensor.nbytes for tensor in load(path).model.values()) < 0.7
    model = epan.load(place / "run")
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in load(path).model.items()
    }
    assert epan.training.evaluate_run(place / "run", [3], sequences=4, device="cpu")[0]["length"] == 3
    for name in FILES[1:5]:
        file = path / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(EpanError, match=name):
            load(path)
        file.write_bytes(good)
    (path / FILES[2]).unlink()
    with pytest.raises(EpanError, match=f"{FILES[2]} is missing"):
        load(path)


def weights_and_moments_are_split_anew_without_a_change(place: Path) -> None:
    """From one process to three, to two, to two with whole copies, and back."""
    run(1, fsdp(), place / "start")
    source = latest(place / "start")
    expected = fingerprint(source)
    for number, (world, parallel) in enumerate([(3, "fsdp"), (2, "fsdp"), (2, "ddp"), (1, "fsdp"), (2, "fsdp")]):
        target, chosen = place / f"copy-{number}", config(parallel=parallel)

        def work(rank: int, source: Path = source, target: Path = target, chosen: RunConfig = chosen) -> None:
            with own_settings(chosen, CPU), join(CPU) as group:
                task = build_task(chosen)
                engine = Engine(chosen, task, build_model(chosen, task), CPU, group)
                kept = load(source)
                engine.restore(kept)
                facts = {"config": {}, "model": {}, "config_hash": ""}
                what = {**engine.tensors(), "state": {"elapsed": 0.0}, "facts": facts, "keep": 1}
                if engine.sharded:
                    save_shards(target, 1, group, **what)
                elif group.main:
                    checkpoints.save(target, 1, **what)

        assert several(world, work) == [0] * world
        source = latest(target)
        assert (source / "model.safetensors").exists() == (world == 1 or parallel == "ddp")
        assert fingerprint(source) == expected


def a_run_goes_on_with_another_number_of_processes(place: Path) -> None:
    chosen = fsdp(0.0)
    run(1, chosen, place / "whole")

    def work(rank: int) -> int:
        (place / f"pid-{rank}").write_text(str(os.getpid()))
        return train(chosen, place / "run", progress=Kick(3, place / "pid-1", signal.SIGTERM)).exit_code

    assert several(2, work) == [143, 143]
    run(1, config(0.0), place / "run", resume="require")
    compare(place / "run", place / "whole")


def a_resumed_run_has_the_same_bits(place: Path, stop: int = 3) -> None:
    chosen = fsdp()
    run(2, chosen, place / "whole")

    def work(rank: int) -> int:
        (place / f"pid-{rank}").write_text(str(os.getpid()))
        return train(chosen, place / "run", progress=Kick(stop, place / "pid-1", signal.SIGTERM)).exit_code

    assert several(2, work) == [143, 143]
    (kept,) = list_checkpoints(place / "run")
    assert int(kept.name[5:]) in (stop, stop + 1)
    run(2, chosen, place / "run", resume="require")
    assert fingerprint(latest(place / "run")) == fingerprint(latest(place / "whole"))


def _while_writing(number: int, act: Callable[[], None]) -> None:
    """Do ``act`` in the place of writing tensor file ``number`` (from 0) of this process."""
    save_file, calls = safetensors.torch.save_file, [0]

    def replacement(*arguments: Any, **more: Any) -> None:
        calls[0] += 1
        if calls[0] == number + 1:
            act()
        save_file(*arguments, **more)

    safetensors.torch.save_file = replacement


def a_process_that_dies_while_writing_leaves_nothing_torn(place: Path) -> None:
    chosen = fsdp(checkpoint_every=2)
    run(2, chosen, place / "whole")

    def work(rank: int) -> int:
        if rank == 1:
            # In the middle of its second checkpoint.
            _while_writing(3, lambda: os._exit(9))
        return train(chosen, place / "run").exit_code

    codes = several(2, work)
    assert codes[1] == 9
    assert codes[0] not in (0, 9)
    assert [path.name for path in list_checkpoints(place / "run")] == ["step-00000002"]
    load(latest(place / "run"))
    run(2, chosen, place / "run", resume="require")
    assert checkpoints.litter(place / "run") == []
    assert fingerprint(latest(place / "run")) == fingerprint(latest(place / "whole"))


def a_full_disk_of_one_process_is_told_by_all(place: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(rank: int) -> int:
        if rank == 1:
            _while_writing(2, full)
        with pytest.raises(EpanError, match=r"step 4 cannot be written by process 1: No space left.*make room for"):
            train(fsdp(checkpoint_every=2), place / "run")
        return 7

    assert several(2, work) == [7, 7]
    assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    load(latest(place / "run"))


def a_number_that_is_not_finite_names_the_process(place: Path) -> None:
    def work(rank: int) -> int:
        forward = torch.nn.Linear.forward
        if rank == 1:
            torch.nn.Linear.forward = lambda self, x: forward(self, x) * float("nan")  # type: ignore[method-assign]
        with pytest.raises(TrainingError, match=r"loss of step 1 is not finite: in process 1, the output of module"):
            train(fsdp(0.0), place / "run")
        return 7

    assert several(2, work) == [7, 7]
    assert records.summary(records.read(place / "run")).status == "failed"
    # The weights before the step were kept.
    assert load(latest(place / "run")).step == 0


def a_number_that_is_not_finite_is_found_in_any_part(place: Path) -> None:
    def work(rank: int) -> int:
        chosen = fsdp(0.0)
        with own_settings(chosen, CPU), join(CPU) as group:
            task = build_task(chosen)
            engine = Engine(chosen, task, build_model(chosen, task), CPU, group)
            if rank == 1:
                # A row that this process alone holds.
                engine.model.norm.weight.detach().to_local()[-1] = float("inf")  # type: ignore[operator, union-attr]
            with pytest.raises(TrainingError, match=r"parameter 'norm.weight' itself is not finite \(1 of 8 values\)"):
                engine.take_step(0, measure=False)
        return 7

    assert several(2, work) == [7, 7]


def a_process_that_hangs_ends_the_others_within_the_time_of_a_step(place: Path) -> None:
    def work(rank: int) -> int:
        processes.STEP = datetime.timedelta(seconds=4)
        if rank == 1:
            Engine.take_step = lambda *_, **__: time.sleep(60)  # type: ignore[method-assign, assignment, return-value]
            train(fsdp(), place / "run")
        start = time.monotonic()
        # What gloo says of it differs between versions.
        with pytest.raises(RuntimeError):
            train(fsdp(), place / "run")
        assert 3 < time.monotonic() - start < 30
        # torchrun ends the one that hangs; so does this.
        os.kill(int((place / "pid").read_text()), signal.SIGKILL)
        return 7

    def told(rank: int) -> int:
        if rank == 1:
            (place / "pid").write_text(str(os.getpid()))
        return work(rank)

    assert several(2, told) == [7, -signal.SIGKILL]
    assert records.summary(records.read(place / "run")).status == "failed"


def a_test_may_take_longer_than_a_step(place: Path, parallel: str = "fsdp") -> None:
    def work(rank: int) -> int:
        processes.STEP = datetime.timedelta(seconds=3)
        evaluate = session.evaluate

        def slow(*arguments: Any, **more: Any) -> Any:
            time.sleep(5)
            return evaluate(*arguments, **more)

        session.evaluate = slow  # type: ignore[assignment]
        chosen = EvaluationConfig(lengths=(2,), sequences=2, every=2)
        return train(config(parallel=parallel, steps=4, evaluation=chosen), place / "run").exit_code

    assert several(2, work) == [0, 0]
    assert [entry["step"] for entry in records.read(place / "run") if entry["kind"] == "eval"] == [2, 4]


SCENARIOS: dict[str, Callable[[Path], None]] = {
    work.__name__: work
    for work in (
        parts_give_the_numbers_of_one_process_and_of_whole_copies,
        three_processes_share_tensors_of_two_rows,
        a_transformer_in_bfloat16,
        every_process_writes_its_parts_and_they_load_anywhere,
        weights_and_moments_are_split_anew_without_a_change,
        a_run_goes_on_with_another_number_of_processes,
        a_resumed_run_has_the_same_bits,
        a_process_that_dies_while_writing_leaves_nothing_torn,
        a_full_disk_of_one_process_is_told_by_all,
        a_number_that_is_not_finite_names_the_process,
        a_number_that_is_not_finite_is_found_in_any_part,
        a_compiled_run,
        a_process_that_hangs_ends_the_others_within_the_time_of_a_step,
        a_test_may_take_longer_than_a_step,
    )
}

if __name__ == "__main__":
    main(SCENARIOS)
