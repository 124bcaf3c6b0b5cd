"""Whole runs: record, resume to the bit, interruption, faults, folders."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import numbers

from epan.errors import EpanError
from epan.training import (
    EvaluationConfig,
    EvaluationInfo,
    ModelConfig,
    OptimizerConfig,
    Progress,
    RunConfig,
    RunResult,
    StartInfo,
    StepInfo,
    TaskConfig,
    TrainingError,
    check,
    evaluate_run,
    load_config,
    records,
    train,
)
from epan.training.checkpoint import list_checkpoints

Tiny = Callable[..., RunConfig]
Fingerprint = Callable[[Path], str]


class Notes(Progress):
    """Keeps what a run tells; ``at`` maps a step to what is done after it."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.at = at or {}
        self.starts: list[StartInfo] = []
        self.steps: list[StepInfo] = []
        self.evaluations: list[EvaluationInfo] = []
        self.events: list[str] = []
        self.ends: list[RunResult] = []

    def on_start(self, info: StartInfo) -> None:
        self.starts.append(info)

    def on_step(self, info: StepInfo) -> None:
        self.steps.append(info)
        self.at.get(info.step, lambda: None)()

    def on_evaluation(self, info: EvaluationInfo) -> None:
        self.evaluations.append(info)

    def on_event(self, message: str) -> None:
        self.events.append(message)

    def on_end(self, result: RunResult) -> None:
        self.ends.append(result)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_the_record_has_its_schema(tiny: Tiny, tmp_path: Path) -> None:
    notes = Notes()
    config = tiny(evaluation=EvaluationConfig(lengths=(2, 5), sequences=6, every=4))
    result = train(config, tmp_path / "run", progress=notes)
    assert (result.status, result.step, result.exit_code, result.signal) == ("finished", 8, 0, None)
    entries = records.read(tmp_path / "run")
    run = entries[0]
    assert run["kind"] == "run"
    wanted = {"name", "task", "model", "training", "seed", "method", "environment", "commit", "data_hash", "command"}
    assert wanted | {"parameters", "started", "config", "config_hash"} <= run.keys()
    assert run["method"] == "biweight-adaptive"
    assert run["model"]["name"] == "memory_mosaic"
    assert run["model"]["vocab_size"] == 7
    assert run["task"] == {"name": "copy", "options": {"symbols": 3}}
    assert run["training"]["steps"] == 8
    assert {"python", "torch", "epan", "platform", "cpu", "threads", "device"} <= run["environment"].keys()
    assert RunConfig.from_dict(run["config"]) == config
    assert run["config_hash"] == config.hash()
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == [2, 4, 6, 8]
    assert all(0 < entry["support"] < 12 and entry["tokens_per_second"] > 0 for entry in steps)
    assert all(entry["loss"] == notes.steps[entry["step"] - 1].loss for entry in steps)
    bandwidths = [entry for entry in entries if entry["kind"] == "bandwidth"]
    assert [entry["step"] for entry in bandwidths] == [0, 2, 4, 6, 8]
    assert {name: len(beta) for name, beta in bandwidths[0]["values"].items()} == {
        "layers.0.contextual": 2,
        "layers.0.persistent": 2,
    }
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    assert [(entry["step"], entry["length"]) for entry in evaluations] == [(4, 2), (4, 5), (8, 2), (8, 5)]
    assert result.evaluations == evaluations[2:]
    for entry in evaluations:
        assert {"exact_match", "token_accuracy", "loss", "support_size", "density", "empty_rows"} <= entry.keys()
        assert entry["sequences"] == 6
        assert entry["decoding"] == "greedy"
        assert (entry["seed"], entry["split"], entry["precision"], entry["device"]) == (0, "test", "fp32", "cpu")
        assert set(entry["per_layer"]) == {"layers.0.contextual", "layers.0.persistent"}
    assert entries[-1].items() >= {"kind": "end", "status": "finished", "step": 8, "peak_memory": None}.items()
    assert [info.step for info in notes.steps] == list(range(1, 9))
    assert notes.steps[-1].remaining == 0.0
    assert [info.result for info in notes.evaluations if info.result] == evaluations
    assert notes.ends == [result]


def test_the_command_of_the_record_repeats_the_run(tiny: Tiny, tmp_path: Path) -> None:
    first = train(tiny(), tmp_path / "a run")
    head = records.read(first.out)[0]
    words = shlex.split(head["command"])
    assert words[:2] == ["epan", "train"]
    config, out = (words[words.index(option) + 1] for option in ("--config", "--out"))
    second = train(load_config(config), out, command="mine")
    assert numbers(second.out) == numbers(first.out)
    again = records.read(second.out)[0]
    assert again["data_hash"] == head["data_hash"]
    assert again["command"] == "mine"


def test_seed_and_task_change_the_data_hash(tiny: Tiny, tmp_path: Path) -> None:
    configs = [tiny(steps=1), tiny(steps=1, seed=1), tiny(steps=1, task=TaskConfig("reverse", {"symbols": 3}))]
    hashes = [records.read(train(c, tmp_path / str(i)).out)[0]["data_hash"] for i, c in enumerate(configs)]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
@pytest.mark.parametrize("how", ["signal", "exception"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny: Tiny, fingerprint: Fingerprint, tmp_path: Path, stop: int, how: str
) -> None:
    config = tiny({"dropout": 0.3}, evaluation=EvaluationConfig(lengths=(2, 5), sequences=6, every=4))
    whole = train(config, tmp_path / "whole")
    act = raise_interrupt if how == "exception" else lambda: os.kill(os.getpid(), signal.SIGINT)
    first = train(config, tmp_path / "parts", progress=Notes({stop: act}))
    assert (first.status, first.step, first.exit_code) == ("interrupted", stop, 130)
    assert first.checkpoint is not None
    assert first.checkpoint.name == f"step-{stop:08d}"
    assert records.summary(records.read(first.out)).status == "interrupted"
    notes = Notes()
    second = train(config, tmp_path / "parts", resume="require", progress=notes)
    assert second.status == "finished"
    assert notes.starts[0].step == stop
    assert [info.step for info in notes.steps] == list(range(stop + 1, 9))
    assert fingerprint(second.checkpoint) == fingerprint(whole.checkpoint)  # type: ignore[arg-type]
    assert numbers(second.out) == numbers(whole.out)
    assert second.elapsed > first.elapsed


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny: Tiny, fingerprint: Fingerprint, tmp_path: Path) -> None:
    config = tiny({"dropout": 0.3}, checkpoint_every=3)
    whole = train(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "parts", progress=Notes({5: kill}))
    record = tmp_path / "parts" / records.FILE_NAME
    with record.open("ab") as file:
        file.write(b'{"kind": "step", "st')
    (tmp_path / "parts" / "checkpoints" / ".tmp-step-00000006-1").mkdir()
    notes = Notes()
    second = train(config, tmp_path / "parts", resume="auto", progress=notes)
    assert notes.starts[0].step == 3
    assert fingerprint(second.checkpoint) == fingerprint(whole.checkpoint)  # type: ignore[arg-type]
    assert numbers(second.out) == numbers(whole.out)
    assert not list((second.out / "checkpoints").glob(".tmp*"))


def test_a_run_killed_before_its_first_checkpoint_starts_over(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    whole = train(config, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    text = (whole.out / records.FILE_NAME).read_text().splitlines(keepends=True)
    (tmp_path / "parts" / records.FILE_NAME).write_text("".join(text[:4]))
    second = train(config, tmp_path / "parts", resume="auto")
    assert numbers(second.out) == numbers(whole.out)
    # Of a run killed at once not even the first line is whole.
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / records.FILE_NAME).write_text(text[0][:50])
    third = train(config, tmp_path / "torn")
    assert numbers(third.out) == numbers(whole.out)
    assert load_config(third.out) == config


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tiny: Tiny, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    config = tiny({"dropout": 0.3}, checkpoint_every=2, keep=2)
    whole = train(config, tmp_path / "whole")
    first = train(config, tmp_path / "parts", progress=Notes({6: raise_interrupt}))
    assert [path.name[-1] for path in list_checkpoints(first.out)] == ["4", "6"]
    file = list_checkpoints(first.out)[-1] / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    notes = Notes()
    second = train(config, tmp_path / "parts", resume="require", progress=notes)
    assert "step-00000006 is passed over" in notes.events[0]
    assert "optimizer.safetensors" in notes.events[0]
    assert notes.starts[0].step == 4
    assert fingerprint(second.checkpoint) == fingerprint(whole.checkpoint)  # type: ignore[arg-type]
    assert numbers(second.out) == numbers(whole.out)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(evaluation=EvaluationConfig(lengths=(2, 3, 5), sequences=6))
    whole = train(config, tmp_path / "whole")

    class StopInEvaluation(Notes):
        def on_evaluation(self, info: EvaluationInfo) -> None:
            super().on_evaluation(info)
            if info.length == 3 and info.result is None:
                os.kill(os.getpid(), signal.SIGTERM)

    first = train(config, tmp_path / "parts", progress=StopInEvaluation())
    assert (first.status, first.step, first.exit_code, first.signal) == ("interrupted", 8, 143, signal.SIGTERM)
    # Length 3 was in one batch and complete when the signal came.
    assert [entry["length"] for entry in first.evaluations] == [2, 3]
    notes = Notes()
    second = train(config, tmp_path / "parts", resume="require", progress=notes)
    assert notes.steps == []
    assert {info.length for info in notes.evaluations} == {5}
    assert second.evaluations == whole.evaluations
    assert second.status == "finished"


def test_a_quick_look_does_not_stand_for_the_test_of_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(evaluation=EvaluationConfig(lengths=(2, 5), sequences=6))
    whole = train(config, tmp_path / "whole")

    class StopInEvaluation(Notes):
        def on_evaluation(self, info: EvaluationInfo) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(config, tmp_path / "parts", progress=StopInEvaluation())
    for options in ({"seed": 5}, {"split": "validation"}, {"sequences": 5}):
        evaluate_run(first.out, [2, 5], device="cpu", **options)
    second = train(config, tmp_path / "parts", resume="require")
    assert second.evaluations == whole.evaluations


def test_the_lengths_of_the_task_are_tested_as_far_as_its_options_allow(tiny: Tiny, tmp_path: Path) -> None:
    task, tests = TaskConfig("mqar", {"words": 40}), EvaluationConfig(sequences=2)
    config = tiny(steps=1, lengths=None, task=task, evaluation=tests)
    check(config)
    result = train(config, tmp_path / "run")
    assert [entry["length"] for entry in result.evaluations] == [8, 16]
    assert evaluate_run(result.out, device="cpu", append=False) == result.evaluations
    with pytest.raises(EpanError, match="cannot have the length 21"):
        evaluate_run(result.out, [8, 21], device="cpu")
    assert [entry["length"] for entry in records.read(result.out) if entry["kind"] == "eval"] == [8, 16]


def test_the_handlers_of_signals_come_back(tiny: Tiny, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny(steps=1), tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_every_signal_saves_and_has_its_exit_code(tiny: Tiny, tmp_path: Path, number: int, code: int) -> None:
    result = train(tiny(), tmp_path / "run", progress=Notes({3: lambda: os.kill(os.getpid(), number)}))
    assert (result.status, result.step, result.signal, result.exit_code) == ("interrupted", 3, number, code)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-00000003"


def test_a_second_signal_stops_at_once(tiny: Tiny, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    result = train(tiny(checkpoint_every=2), tmp_path / "run", progress=Notes({3: twice}))
    assert (result.status, result.step) == ("interrupted", 3)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-00000002"


def test_a_run_in_another_thread_works(tiny: Tiny, tmp_path: Path) -> None:
    found: list[RunResult] = []
    worker = threading.Thread(target=lambda: found.append(train(tiny(steps=2), tmp_path / "run")))
    worker.start()
    worker.join()
    assert found[0].status == "finished"


def test_a_finished_run_returns_at_once(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    first = train(config, tmp_path / "run")
    before = (tmp_path / "run" / records.FILE_NAME).read_bytes()
    for resume in ("auto", "require"):
        again = train(config, tmp_path / "run", resume=resume)  # type: ignore[arg-type]
        assert (again.status, again.step, again.checkpoint) == ("finished", 8, first.checkpoint)
        assert again.evaluations == first.evaluations
        assert again.loss == first.loss
    assert (tmp_path / "run" / records.FILE_NAME).read_bytes() == before


def test_a_failing_run_keeps_good_weights_and_says_why(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(optimizer=OptimizerConfig(learning_rate=1e38, warmup=0.0, clip=None))
    with pytest.raises(TrainingError, match=r"step \d is not finite") as caught:
        train(config, tmp_path / "run")
    end = records.read(tmp_path / "run")[-1]
    assert (end["kind"], end["status"]) == ("end", "failed")
    assert end["message"] == str(caught.value)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step-{end['step']:08d}"]


def test_skipped_steps_are_events(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epan.training.engine import Engine

    gradient = Engine._gradient

    def spoil(self: Engine, step: int, measure: bool) -> Any:
        found = gradient(self, step, measure)
        if step == 2:
            self.model.get_parameter("norm.weight").grad[0] = torch.nan  # type: ignore[index]
        return found

    monkeypatch.setattr(Engine, "_gradient", spoil)
    train(tiny(on_nonfinite="skip"), tmp_path / "run")
    events = [entry for entry in records.read(tmp_path / "run") if entry["kind"] == "event"]
    assert [(entry["event"], entry["step"]) for entry in events] == [("skipped", 3)]
    assert "'norm.weight'" in events[0]["message"]


def test_a_run_that_stopped_at_a_number_goes_on_as_its_message_says(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from epan.training.engine import Engine

    gradient = Engine._gradient

    def spoil(self: Engine, step: int, measure: bool) -> Any:
        loss, tokens, support = gradient(self, step, measure)
        return (loss * torch.nan if step == 4 else loss), tokens, support

    monkeypatch.setattr(Engine, "_gradient", spoil)
    with pytest.raises(TrainingError, match="resume with on_nonfinite=skip, or start a new run"):
        train(tiny(), tmp_path / "run")
    result = train(tiny(on_nonfinite="skip"), tmp_path / "run", resume="require")
    assert (result.status, result.step) == ("finished", 8)
    events = {entry["event"]: entry for entry in records.read(tmp_path / "run") if entry["kind"] == "event"}
    assert events["skipped"]["step"] == 5
    assert events["resumed"]["message"] == 'resumed from step 4, on_nonfinite: "stop" -> "skip"'


def test_any_other_failure_is_recorded_too(tiny: Tiny, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        train(tiny(), tmp_path / "run", progress=Notes({3: fail}))
    assert records.summary(records.read(tmp_path / "run")).message == "out of luck"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": TaskConfig("copie")}, ["'copie'", "copy"]),
        ({"task": TaskConfig("copy", {"simbols": 3})}, ["simbols", "symbols"]),
        ({"model": ModelConfig("memory_mosiac")}, ["memory_mosiac", "memory_mosaic"]),
        ({"model": ModelConfig(kernel="biwieght")}, ["biwieght", "biweight"]),
        ({"model": ModelConfig(normalization="nearest:k=0")}, ["k"]),
        ({"model": ModelConfig(options={"widht": 8})}, ["widht", "width"]),
        ({"model": ModelConfig(kernel="cosine")}, ["cosine"]),
        ({"precision": "fp16"}, ["fp16", "cpu", "bf16"]),
        ({"task": TaskConfig("mqar", {"words": 6}), "lengths": (2, 4)}, ["length 4", "1 to 3"]),
        (
            {"task": TaskConfig("mqar", {"words": 6}), "lengths": (2, 3), "evaluation": EvaluationConfig(lengths=(4,))},
            ["length 4", "1 to 3"],
        ),
        (
            {"task": TaskConfig("mqar", {"words": 6}), "lengths": (2, 3), "evaluation": EvaluationConfig()},
            ["test lengths", "evaluation.lengths=[3]"],
        ),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = dataclasses.replace(tiny(), **changes)
    for start in (lambda: check(config), lambda: train(config, tmp_path / "run")):
        with pytest.raises(EpanError) as caught:
            start()
        for word in words:
            assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_device_is_named(tiny: Tiny, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EpanError, match=r"device is not available.*cuda"):
        train(tiny(device="cuda"), tmp_path / "run")


def test_folders_that_cannot_be_used_say_why_and_lose_nothing(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(steps=1)
    first = train(config, tmp_path / "run")
    before = (first.out / records.FILE_NAME).read_bytes()
    with pytest.raises(EpanError, match=r"already holds a run.*finished at step 1.*resume it, or give another folder"):
        train(config, tmp_path / "run")
    with pytest.raises(EpanError, match=r"another config.*seed: 0 -> 4"):
        train(dataclasses.replace(config, seed=4), tmp_path / "run", resume="auto")
    assert (first.out / records.FILE_NAME).read_bytes() == before
    with pytest.raises(EpanError, match="no run to resume"):
        train(config, tmp_path / "new", resume="require")
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(EpanError, match=r"not empty.*thesis\.txt"):
        train(config, tmp_path / "full")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(EpanError, match="cannot be used"):
            train(config, tmp_path / place)
    with pytest.raises(EpanError, match="Unknown way to resume"):
        train(config, tmp_path / "new", resume="yes")  # type: ignore[arg-type]


def test_what_changes_no_number_may_change_on_resume(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    train(config, tmp_path / "run", progress=Notes({3: raise_interrupt}))
    changed = dataclasses.replace(config, checkpoint_every=2, keep=5, name="other")
    second = train(changed, tmp_path / "run", resume="require")
    assert [int(path.name[-1]) for path in list_checkpoints(second.out)] == [3, 4, 6, 8]


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def fill_up() -> None:
        def full(tensors: Any, path: Path) -> None:
            # The checkpoint before may still be on its way.
            if "step-00000004" in str(path):
                raise OSError(28, "No space left on device")
            real(tensors, path)

        monkeypatch.setattr(safetensors.torch, "save_file", full)

    config = tiny(checkpoint_every=2)
    with pytest.raises(EpanError, match="step 4 cannot be written: No space left"):
        train(config, tmp_path / "run", progress=Notes({3: fill_up}))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(safetensors.torch, "save_file", real)
    assert train(config, tmp_path / "run", resume="require").status == "finished"


def test_the_record_is_plain_json(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(steps=2), tmp_path / "run")
    for line in (tmp_path / "run" / records.FILE_NAME).read_text().splitlines():

        def refuse(word: str) -> None:
            raise AssertionError(word)

        json.loads(line, parse_constant=refuse)
