"""Checkpoints are written beside training: nothing waits, nothing tears, and what is told of them is true."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, TrainingError, checkpoint, records, train
from epan.training.writer import BackgroundWriter, snapshot

Tiny = Callable[..., RunConfig]
PATIENCE = 20.0


class Steps(Progress):
    """An event for every step that is told; ``at`` maps a step to what is done after it."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.at, self.told = at or {}, [threading.Event() for _ in range(20)]

    def on_step(self, info: StepInfo) -> None:
        self.told[info.step].set()
        self.at.get(info.step, lambda: None)()


def hold(monkeypatch: pytest.MonkeyPatch, until: Callable[[int], object]) -> None:
    """Saving waits: ``until(step)`` is called in the writer before it begins."""
    real = checkpoint.save

    def save(run: Path, step: int, **given: Any) -> Path:
        until(step)
        return real(run, step, **given)

    monkeypatch.setattr(checkpoint, "save", save)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_bits_are_those_of_its_step(
    tiny: Tiny, fingerprint: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(checkpoint_every=4)
    plain = train(config, tmp_path / "plain")
    steps, in_time = Steps(), []
    hold(monkeypatch, lambda step: in_time.append(step == 8 or steps.told[7].wait(PATIENCE)))
    slow = train(config, tmp_path / "slow", progress=steps)
    assert in_time == [True, True]
    for name in ("step-00000004", "step-00000008"):
        kept = [fingerprint(run.out / "checkpoints" / name) for run in (plain, slow)]
        assert kept[0] == kept[1]


def test_a_step_that_saves_waits_for_the_checkpoint_before_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, early = Steps(), []

    def late(step: int) -> None:
        early.append(steps.told[step + 1].wait(0.2))

    hold(monkeypatch, late)
    train(tiny(checkpoint_every=1), tmp_path / "run", progress=steps)
    assert early == [False] * 8


def test_an_error_of_the_writer_ends_the_run_at_the_next_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, failed = Steps(), threading.Event()

    def fail(step: int) -> None:
        if step == 4:
            assert steps.told[5].wait(PATIENCE)
            failed.set()
            raise EpanError("The checkpoint of step 4 cannot be written: No space left on device")

    hold(monkeypatch, fail)

    def until_it_failed() -> None:
        assert failed.wait(PATIENCE)
        time.sleep(0.1)

    steps.at = {5: until_it_failed}
    with pytest.raises(EpanError, match="step 4 cannot be written: No space left"):
        train(tiny(steps=12, checkpoint_every=4), tmp_path / "run", progress=steps)
    end = records.read(tmp_path / "run")[-1]
    assert (end["kind"], end["status"], end["step"]) == ("end", "failed", 6)
    assert "No space left" in end["message"]


@pytest.mark.parametrize("last", ["end", "interruption", "failure"])
def test_an_error_of_the_last_write_is_not_lost(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    def fail(step: int) -> None:
        raise EpanError("cannot be written")

    def stop() -> None:
        if last == "failure":
            raise TrainingError("out of luck")
        os.kill(os.getpid(), signal.SIGTERM)

    hold(monkeypatch, fail)
    with pytest.raises(EpanError, match="out of luck" if last == "failure" else "cannot be written"):
        train(tiny(), tmp_path / "run", progress=Steps({} if last == "end" else {3: stop}))
    end = records.read(tmp_path / "run")[-1]
    assert (end["kind"], end["status"]) == ("end", "failed")
    assert "cannot be written" in end["message"]
    assert ("out of luck" in end["message"]) == (last == "failure")


@pytest.mark.parametrize("when", ["step", "saving"])
def test_a_second_signal_tears_nothing_and_the_record_is_true(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The second signal comes while the checkpoint before is written, or that of the first signal."""

    def kick() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def slow(step: int) -> None:
        if step == 5:
            kick()
        time.sleep(0.2)

    def act() -> None:
        kick()
        if when == "step":
            kick()

    hold(monkeypatch, slow)
    result = train(tiny(checkpoint_every=4), tmp_path / "run", progress=Steps({5: act}))
    kept = "step-00000004" if when == "step" else "step-00000005"
    assert (result.status, result.step) == ("interrupted", 5)
    assert result.checkpoint is not None
    assert result.checkpoint.name == kept
    checkpoint.verify(result.checkpoint)
    assert checkpoint.litter(result.out) == []
    events = [entry["message"] for entry in records.read(result.out) if entry["kind"] == "event"]
    assert events == [f"interrupted at step 5, checkpoint {kept}"]
    assert records.summary(records.read(result.out)).status == "interrupted"


def test_a_snapshot_is_a_copy_of_its_own() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    take = snapshot({"model": {"base": base, "tied": base, "view": base[1:, ::2]}, "optimizer": {}})
    expected = {"base": base.clone(), "tied": base.clone(), "view": base[1:, ::2].clone()}
    base.zero_()
    found = take()["model"]
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()
        assert found[name].untyped_storage().nbytes() == tensor.nbytes


def test_one_write_at_a_time_and_each_error_once(tmp_path: Path) -> None:
    running, most = [0], [0]

    def work(number: int) -> Path:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        if number == 3:
            raise EpanError("three")
        return tmp_path / str(number)

    with BackgroundWriter() as writer:
        for number in range(4):
            writer.start(lambda number=number: work(number))  # type: ignore[misc]
        assert writer.saved == tmp_path / "2"
        with pytest.raises(EpanError, match="three"):
            writer.wait()
        writer.poll()
        writer.start(lambda: work(5))
        writer.wait()
    assert writer.saved == tmp_path / "5"
    assert most == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_snapshot_of_a_gpu_is_that_of_its_moment() -> None:
    numbers = torch.zeros(1 << 20, device="cuda")
    torch.cuda.synchronize()
    for _ in range(50):
        numbers += 1
    take = snapshot({"model": {"numbers": numbers}})
    numbers.zero_()
    found = take()["model"]["numbers"]
    assert found.is_pinned()
    assert bool((found == 50).all())
