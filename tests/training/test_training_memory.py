"""A memory that is used up: the run stops and says what to do, or splits the batch further and repeats the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import engine_of

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, TrainingError, check, checkpoint, records, train
from epan.training.engine import Engine
from epan.training.memory import PeakMemory

Tiny = Callable[..., RunConfig]
CPU = torch.device("cpu")


def weights(ours: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in ours.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def small_memory(monkeypatch: pytest.MonkeyPatch, rows: int, after: int = 0) -> None:
    """Training on more sequences at once than ``rows`` uses up the memory, from the micro-batch ``after`` on."""
    from epan.models import MemoryMosaic

    forward, count = MemoryMosaic.forward, [0]

    def limited(self: Any, tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
        count[0] += self.training
        if self.training and len(tokens) > rows and count[0] > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return forward(self, tokens, *given, **named)

    monkeypatch.setattr(MemoryMosaic, "forward", limited)


@pytest.mark.parametrize(("rows", "parts"), [(6, 1), (3, 2), (2, 6), (1, 6)])
def test_the_batch_is_split_until_it_fits_and_the_step_is_done_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, rows: int, parts: int
) -> None:
    """The bits are those of a run that was split so from its start."""
    with engine_of(tiny(accumulation=parts)) as plain:
        expected = [plain.take_step(step, measure=False).loss for step in range(3)]
        kept = weights(plain)
    small_memory(monkeypatch, rows)
    with engine_of(tiny(on_out_of_memory="halve")) as ours:
        outcomes = [ours.take_step(step, measure=False) for step in range(3)]
        assert [outcome.loss for outcome in outcomes] == expected
        assert equal(weights(ours), kept)
        assert ours.accumulation == parts
    assert [outcome.halved is None for outcome in outcomes] == [parts == 1, True, True]
    if parts > 1:
        assert f"split into {parts} parts of {6 // parts} from here on, not 1" in str(outcomes[0].halved)


def test_what_the_first_micro_batches_gave_is_forgotten(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(batch=12, accumulation=3, on_out_of_memory="halve")
    with engine_of(config) as plain:
        plain.take_step(0, measure=False)
        plain._split(6)
        loss = plain.take_step(1, measure=False).loss
        kept = weights(plain)
    # The second micro-batch of three, when accelerate leaves gradients as they are.
    small_memory(monkeypatch, 2, after=4)
    with engine_of(config) as ours:
        assert ours.take_step(0, measure=False).halved is None
        outcome = ours.take_step(1, measure=False)
        assert outcome.loss == loss
        assert equal(weights(ours), kept)
    assert "6 parts of 2 from here on, not 3" in str(outcome.halved)


@pytest.mark.parametrize("choice", ["stop", "halve"])
def test_a_run_that_cannot_go_on_is_saved_and_says_what_to_do(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    # Two passes measure what a step needs.
    small_memory(monkeypatch, 0, after=5 if choice == "stop" else 0)
    with pytest.raises(TrainingError, match="memory of cpu is used up after step") as caught:
        train(tiny(on_out_of_memory=choice), tmp_path / "run")
    assert ("resume with on_out_of_memory=halve" in str(caught.value)) == (choice == "stop")
    assert ("6 sequences in 6 parts" in str(caught.value)) == (choice == "halve")
    assert "more accumulation" in str(caught.value)
    assert records.summary(records.read(tmp_path / "run")).status == "failed"
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "run")] == [
        3 if choice == "stop" else 0
    ]


def test_a_run_goes_on_as_its_message_says_and_the_record_tells(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: Callable[[Path], str]
) -> None:
    """Interrupted once more and resumed with memory again, it keeps to the parts that it has, and to the same bits."""
    halving = tiny(on_out_of_memory="halve")
    small_memory(monkeypatch, 3, after=5)
    whole = train(halving, tmp_path / "whole")
    monkeypatch.undo()
    small_memory(monkeypatch, 3, after=5)
    with pytest.raises(TrainingError):
        train(tiny(), tmp_path / "run")

    class Stop(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 5:
                raise KeyboardInterrupt

    train(halving, tmp_path / "run", resume="require", progress=Stop())
    monkeypatch.undo()
    last = train(halving, tmp_path / "run", resume="require")
    events = [entry for entry in records.read(tmp_path / "run") if entry.get("event") == "halved"]
    assert [event["step"] for event in events] == [4]
    assert "used up in step 4; its batch is split into 2 parts of 3 from here on" in events[0]["message"]
    assert checkpoint.load(checkpoint.latest(last.out)).state["accumulation"] == 2
    assert fingerprint(checkpoint.latest(last.out)) == fingerprint(checkpoint.latest(whole.out))


def test_several_processes_cannot_repeat_a_step(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EpanError, match=r"on_out_of_memory=halve is not supported.*several processes.*accumulation"):
        check(tiny(on_out_of_memory="halve"))


def test_the_estimate_leaves_no_graph(tiny: Tiny) -> None:
    def node(parameter: torch.Tensor) -> Any:
        view = parameter.expand_as(parameter).grad_fn
        assert view is not None
        return view.next_functions[0][0]

    with engine_of(tiny({"dropout": 0.1})) as ours:
        assert ours.memory()[0].activations
        # A node of an old graph would be there still, on the stream of that graph, and a step could not be recorded.
        for parameter in ours.model.parameters():
            node(parameter).metadata["seen"] = True
            assert "seen" not in node(parameter).metadata


def test_the_peak_is_that_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [0]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: seen.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: seen[0])
    peak = PeakMemory(torch.device("cuda"))
    seen[0] = 900
    for most in (30, 20):
        with peak.measured():
            seen[0] = most
        seen[0] = 900
    assert peak.bytes == 30
    for other in (PeakMemory(torch.device("cpu")), PeakMemory(torch.device("cuda"), alone=False)):
        with other.measured():
            seen[0] = 40
        assert other.bytes is None
