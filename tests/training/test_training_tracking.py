"""TensorBoard and trackio beside the record: what they get, that a resumed run goes on there, that they end no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, check, records, tracking, train

Tiny = Callable[..., RunConfig]


class Fake:
    """A tracker that keeps what it gets, and fails at what ``fails`` names."""

    name = "fake"

    def __init__(self, begun: int | None, fails: tuple[str, ...] = ()) -> None:
        self.begun, self.fails, self.said = begun, fails, []  # type: ignore[var-annotated]

    def _say(self, what: str, *values: Any) -> None:
        if what in self.fails:
            raise ConnectionError("no network")
        print("a line on standard output")
        self.said.append((what, *values))

    def start(self) -> None:
        self._say("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._say("config", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._say(f"log {step}", values)

    def finish(self) -> None:
        self._say("finish")


class Notes(Progress):
    def __init__(self, stop: int = 0) -> None:
        self.stop, self.events = stop, []  # type: ignore[var-annotated]

    def on_event(self, message: str) -> None:
        self.events.append(message)

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Fake]]:
    """``fakes("log 4")`` puts fakes that fail there in the place of trackio, and gives the list that they go into."""

    def put(*fails: str) -> list[Fake]:
        made: list[Fake] = []

        def make(run: Path, begun: int | None) -> Fake:
            made.append(Fake(begun, fails))
            return made[-1]

        monkeypatch.setitem(tracking._MAKE, "trackio", make)
        monkeypatch.setattr(tracking, "_installed", lambda name: True)
        return made

    return put


def test_a_tracker_gets_what_the_record_gets(
    tiny: Tiny, tmp_path: Path, fakes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = fakes()
    config = tiny(track=("trackio",))
    assert config.hash() == tiny().hash()
    train(config, tmp_path / "run", progress=Notes(stop=4))
    second = train(config, tmp_path / "run", resume="require")
    assert [fake.begun for fake in made] == [None, 4]
    steps = [entry for entry in records.read(second.out) if entry["kind"] == "step"]
    logged = [item for fake in made for item in fake.said if item[0].startswith("log ")]
    assert [item[0] for item in logged] == ["log 2", "log 4", "log 6", "log 8", "log 8", "log 8"]
    for (_, values), entry in zip(logged, steps, strict=False):
        assert values["train/loss"] == entry["loss"]
        assert set(values) == {f"train/{key}" for key in tracking._STEP}
    for (_, values), entry in zip(logged[4:], second.evaluations, strict=True):
        assert values[f"eval/exact_match/length {entry['length']}"] == entry["exact_match"]
    assert [item[0] for item in made[0].said] == ["start", "config", "log 2", "log 4", "finish"]
    assert made[0].said[1][1] == config.to_dict()
    assert [item[0] for item in made[1].said][::4] == ["start", "log 8"]
    assert made[1].said[-1] == ("finish",)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", ["start", "config", "log 4", "finish"])
def test_a_tracker_that_fails_ends_no_run(
    tiny: Tiny, tmp_path: Path, fakes: Any, fingerprint: Callable[[Path], str], place: str
) -> None:
    made, notes = fakes(place), Notes()
    whole = train(tiny(), tmp_path / "whole")
    result = train(tiny(track=("trackio",)), tmp_path / "run", progress=notes)
    assert result.status == "finished"
    assert fingerprint(result.checkpoint) == fingerprint(whole.checkpoint)  # type: ignore[arg-type]
    told = [entry["message"] for entry in records.read(result.out) if entry.get("event") == "tracking"]
    assert told == ["tracking with trackio stopped, the run goes on: ConnectionError: no network"]
    assert notes.events == told
    later = {"start": [], "config": ["start"], "log 4": ["start", "config", "log 2"]}
    if place in later:
        assert [item[0] for item in made[0].said] == later[place]


def test_a_tracker_that_is_not_there_is_told_before_anything_starts(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EpanError, match=r"Unknown tracker 'tensorbord'.*did you mean 'tensorboard'\?"):
        tiny(track=("tensorbord",))
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    for start in (check, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(EpanError, match=r'trackio, which is not installed.*pip install "\.\[trackio\]"'):
            start(tiny(track=("trackio",)))
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_one_curve_of_a_resumed_run(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Killed(BaseException):
        pass

    class KilledAtSeven(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 7:
                raise Killed

    config = tiny(track=("tensorboard",), log_every=1, checkpoint_every=5)
    with pytest.raises(Killed):
        train(config, tmp_path / "run", progress=KilledAtSeven())
    train(config, tmp_path / "run", resume="require")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    entries = records.read(tmp_path / "run")
    wanted = [(entry["step"], pytest.approx(entry["loss"])) for entry in entries if entry["kind"] == "step"]
    assert losses == wanted
    assert [step for step, _ in losses] == list(range(1, 9))
    assert [event.step for event in found.Scalars("eval/exact_match/length 5")] == [8]
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text.removeprefix("```json\n").removesuffix("\n```")) == config.to_dict()


def test_trackio_goes_on_with_the_run(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed; it brings a web server, so that CI goes without")
    code = """
import json, sys
from pathlib import Path
from small import tiny
from epan.training import Progress, train
class Stop(Progress):
    def on_step(self, info):
        if info.step == 4:
            raise KeyboardInterrupt
out, config = Path(sys.argv[1]) / "study" / "run", tiny(track=("trackio",))
train(config, out, progress=Stop())
train(config, out, resume="require")
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("study", "run"), default=str))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    logs = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    losses = {entry["step"]: entry["train/loss"] for entry in logs if "train/loss" in entry}
    steps = [entry for entry in records.read(tmp_path / "study" / "run") if entry["kind"] == "step"]
    assert losses == {entry["step"]: pytest.approx(entry["loss"]) for entry in steps}
    assert not [entry for entry in records.read(tmp_path / "study" / "run") if entry.get("event") == "tracking"]


def test_the_option_names_trackers(tiny: Tiny) -> None:
    from epan.cli.train import TrainOptions, configure

    assert configure(TrainOptions(track=("tensorboard,trackio",))).track == ("tensorboard", "trackio")
    assert configure(TrainOptions(track=("tensorboard", "trackio"))).track == ("tensorboard", "trackio")
    assert configure(TrainOptions(set=('track=["trackio"]',), track=("none",))).track is None
