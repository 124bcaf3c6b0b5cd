"""Training on a fixed set of sequences, and tests against known distributions: RegBench through the ordinary run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import StopAt, engine_of, fingerprint, numbers

from epan import tasks
from epan.errors import EpanError
from epan.models import LanguageModel
from epan.tasks.regbench import RegBench
from epan.training import EvaluationConfig, RunConfig, TaskConfig, check, engine, evaluate, evaluate_run, records, train
from epan.training.loading import build_task
from epan.training.stream import micro_batches


@pytest.fixture
def config(tiny: Callable[..., RunConfig]) -> RunConfig:
    """Two epochs of twelve automata, six a step, and a test of twenty sequences."""
    return tiny(
        task=TaskConfig("regbench", {"automata": 12}),
        steps=4,
        lengths=(1, 2),
        evaluation=EvaluationConfig(lengths=(2,), sequences=20),
    )


def test_a_run_sees_every_sequence_once_an_epoch(config: RunConfig) -> None:
    task = build_task(config)
    whole = {tuple(row) for row in RegBench(automata=12).sample(0, 0, 12, (1, 2)).tokens.tolist()}
    assert len(whole) == 12
    for epoch in (0, 1):
        # Two processes with three micro-batches each.
        seen = [
            tuple(row)
            for step in (2 * epoch, 2 * epoch + 1)
            for rank in (0, 1)
            for part in micro_batches(task, 3, step, 6, (1, 2), parts=3, rank=rank, world=2, cut=False)
            for row in part.tokens.tolist()
        ]
        assert sorted(seen) == sorted(whole)


def test_the_record_tells_accuracy_and_distance(config: RunConfig, tmp_path: Path) -> None:
    result = train(config, tmp_path / "run")
    (test,) = (entry for entry in records.read(tmp_path / "run") if entry["kind"] == "eval")
    assert test["exact_match"] is None
    assert test["overlap"] is None
    assert (test["decoding"], test["sequences"]) == ("teacher-forced", 20)
    assert 0 < test["accuracy"] < 1
    assert 0 < test["tvd"] < 1
    assert test["kl"] > 0
    truth = RegBench(automata=12).truth(0, 0, 20, 2, split="test")
    assert sum(part["tokens"] for part in test["by_position"]) == int(truth.scored.sum())
    means = [sum(part[name] * part["tokens"] for part in test["by_position"]) for name in ("accuracy", "tvd", "kl")]
    total = int(truth.scored.sum())
    assert means == pytest.approx([total * test[name] for name in ("accuracy", "tvd", "kl")])
    # A later test of the same sequences says the same, one of others does not.
    (again,) = evaluate_run(tmp_path / "run", [2], device="cpu", append=False)
    assert again["tvd"] == pytest.approx(test["tvd"], rel=1e-6)
    (other,) = evaluate_run(tmp_path / "run", [2], device="cpu", split="validation", append=False)
    assert other["tvd"] != test["tvd"]
    (seen,) = evaluate_run(tmp_path / "run", [2], device="cpu", split="train", sequences=12, append=False)
    assert seen["sequences"] == 12
    assert result.evaluations[0]["accuracy"] == test["accuracy"]


def test_a_resumed_run_goes_on_with_the_same_bits(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=6, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")
    assert train(config, tmp_path / "parts", progress=StopAt(3)).status == "interrupted"
    resumed = train(config, tmp_path / "parts", resume="require")
    assert fingerprint(resumed.checkpoint) == fingerprint(whole.checkpoint)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_queued_steps_see_the_data_of_plain_ones(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(
        config, steps=9, model=dataclasses.replace(config.model, options={**config.model.options, "dropout": 0.0})
    )

    def losses() -> list[float]:
        with engine_of(config) as made:
            return [outcome.loss for outcome in made.steps(0, 9, lambda number: False, lambda: False)]

    plain = losses()
    monkeypatch.setattr(engine, "recordable", lambda *_: None)
    assert losses() == pytest.approx(plain, rel=1e-5)


class Oracle(LanguageModel):
    """Predicts what it is told, whatever the tokens are; the separator besides, as if it were certain."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.config, self.at = None, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = probabilities.log().clamp(min=-1e9)
        self.logits[..., tasks.regbench.BAR] = 50.0

    def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
        rows = slice(self.at, self.at + len(tokens))
        self.at += len(tokens)
        logits = self.logits[rows, 1 : tokens.shape[1] + 1]
        return (logits, {}) if return_stats else logits

    def init_cache(self, batch_size: int, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
        raise AssertionError("nothing is decoded")

    step = init_cache  # type: ignore[assignment]

    def bandwidths(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.mark.parametrize("batch_tokens", [1, 700, 10**6])
def test_who_knows_the_automata_is_right_everywhere(batch_tokens: int) -> None:
    task = RegBench(automata=3)
    truth = task.truth(4, 0, 9, 3, split="test")
    (found,) = evaluate(Oracle(truth.probabilities), task, [3], sequences=9, seed=4, batch_tokens=batch_tokens)
    assert found["accuracy"] == 1
    assert found["tvd"] == pytest.approx(0, abs=1e-6)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    # Who is certain of the first legal letter is right, and as far away as there are others.
    certain = torch.nn.functional.one_hot((truth.probabilities > 0).int().argmax(2), 20).float()
    (found,) = evaluate(Oracle(certain), task, [3], sequences=9, seed=4, batch_tokens=batch_tokens)
    degrees = (truth.probabilities > 0).sum(2)[truth.scored].double()
    assert found["accuracy"] == 1
    assert found["tvd"] == pytest.approx(float((1 - 1 / degrees).mean()), abs=1e-6)


def test_what_has_no_target_cannot_be_decoded(config: RunConfig) -> None:
    task = RegBench(automata=3)
    truth = task.truth(0, 0, 2, 1, split="test")
    with pytest.raises(EpanError, match=r"'regbench' has no target to decode.*teacher-forced"):
        evaluate(Oracle(truth.probabilities), task, [1], sequences=2, decoding="greedy")
    best = EvaluationConfig(lengths=(2,), sequences=4, every=2)
    with pytest.raises(EpanError, match=r"best_by=exact_match.*Allowed: token_accuracy, loss"):
        check(dataclasses.replace(config, keep_best=1, evaluation=best))
    check(dataclasses.replace(config, keep_best=1, best_by="loss", evaluation=best))
