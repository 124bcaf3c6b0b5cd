"""Runs that learn from text: what is recorded, that they resume on the same text alone, and what a test of them says."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from torch.nn import functional as F

import epan
from epan.data import load_tokenizer
from epan.errors import EpanError
from epan.training import (
    EvaluationConfig,
    RunConfig,
    TaskConfig,
    check,
    evaluate_run,
    load_config,
    load_run,
    records,
    train,
)
from epan.training.text_evaluation import position_edges

Config = Callable[..., RunConfig]


@pytest.fixture
def novel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text in which some letters follow others, of about 6,000 bytes."""
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    path = tmp_path / "novel.txt"
    path.write_text(" ".join(draw.choice(["sea", "ship", "whale"]) for _ in range(1300)))
    return path


@pytest.fixture
def config(novel: Path) -> Config:
    """A run of eight steps on it; arguments replace fields, ``options`` extends those of the text."""

    def make(options: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
        return small.tiny(
            **{
                "lengths": (16, 16),
                "task": TaskConfig("text", {"path": str(novel), **(options or {})}),
                "evaluation": EvaluationConfig(lengths=(16, 32), sequences=8),
                **changes,
            }
        )

    return make


def head(run: Path) -> records.Entry:
    return records.header(records.read(run), run)


def test_a_run_keeps_the_hash_and_the_tokenizer(config: Config, tmp_path: Path) -> None:
    result = train(config(), tmp_path / "run")
    text = epan.training.loading.build_task(config())
    assert head(tmp_path / "run")["data_hash"] == text.data_hash
    assert load_tokenizer(tmp_path / "run").decode(text.sample(0, 0, 1, 16).tokens[0].tolist())
    assert [test["split"] for test in result.evaluations] == ["validation"] * 2
    assert epan.load(tmp_path / "run").config.vocab_size == 257
    assert load_config(tmp_path / "run") == config()


@pytest.mark.parametrize("options", [{}, {"documents": "separate", "tokenizer": "bpe:size=262"}])
def test_it_resumes_to_the_same_bits(config: Config, tmp_path: Path, options: dict[str, Any]) -> None:
    if options:
        pytest.importorskip("tokenizers", reason="needs the extra [text]")
    chosen = config(options)
    whole = train(chosen, tmp_path / "whole")
    stopped = train(chosen, tmp_path / "run", progress=small.StopAt(5))
    assert stopped.status == "interrupted"
    resumed = train(chosen, tmp_path / "run", resume="require")
    assert small.fingerprint(resumed.checkpoint) == small.fingerprint(whole.checkpoint)  # type: ignore[arg-type]
    assert small.numbers(tmp_path / "run") == small.numbers(tmp_path / "whole")


def test_another_text_is_refused(config: Config, novel: Path, tmp_path: Path) -> None:
    train(config(), tmp_path / "run", progress=small.StopAt(3))
    before = (tmp_path / "run" / "record.jsonl").read_bytes()
    said = novel.read_text()
    novel.write_text(said.replace("whale", "shark", 1))
    with pytest.raises(EpanError, match="not the one that it learnt from"):
        train(config(), tmp_path / "run", resume="require")
    with pytest.raises(EpanError, match="not the one that it learnt from"):
        evaluate_run(tmp_path / "run")
    assert (tmp_path / "run" / "record.jsonl").read_bytes() == before
    novel.write_text(said)
    assert train(config(), tmp_path / "run", resume="require").status == "finished"


def test_what_a_test_says(config: Config, novel: Path, tmp_path: Path) -> None:
    """Every number of a test against the definition, on the held-out text itself."""
    pytest.importorskip("tokenizers", reason="needs the extra [text]")
    chosen = config({"tokenizer": "bpe:size=262"}, evaluation=EvaluationConfig(lengths=(8, 16), sequences=1000))
    train(chosen, tmp_path / "run")
    found = {entry["length"]: entry for entry in evaluate_run(tmp_path / "run", split="test")}
    model, text = epan.load(tmp_path / "run"), epan.training.loading.build_task(chosen)
    tokenizer = load_tokenizer(tmp_path / "run")
    ids = text.corpus.read("test", torch.arange(text.corpus.count("test")))  # type: ignore[attr-defined]
    assert tokenizer.decode(ids.tolist()) == novel.read_text()[-len(tokenizer.decode(ids.tolist())) :]
    blocks = (len(ids) - 1) // 128
    assert blocks > 0
    for length, entry in found.items():
        rows = torch.stack([ids[start : start + length + 1] for start in range(0, 128 * blocks, length)])
        with torch.no_grad():
            losses = F.cross_entropy(
                model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
            ).double()
        shown = tokenizer.decode(ids[1 : 128 * blocks + 1].tolist())
        assert entry["tokens"] == len(losses) == 128 * blocks
        assert entry["bytes"] == len(shown.encode())
        assert entry["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
        assert entry["loss_per_byte"] == pytest.approx(float(losses.sum()) / len(shown.encode()), rel=1e-6)
        assert entry["bits_per_byte"] == pytest.approx(entry["loss_per_byte"] / math.log(2))
        assert entry["perplexity"] == pytest.approx(math.exp(float(losses.mean())), rel=1e-6)
        by_position = losses.view(-1, length).mean(0)
        for first, last, loss in entry["loss_by_position"]:
            assert loss == pytest.approx(float(by_position[first : last + 1].mean()), rel=1e-6)
        assert entry["support_size"] >= 1
        assert "exact_match" not in entry
    assert [entry["length"] for entry in records.read(tmp_path / "run") if entry["kind"] == "eval"] == [8, 16, 8, 16]


def test_groups_of_positions() -> None:
    assert position_edges(1) == [0, 1]
    assert position_edges(10) == [0, 1, 2, 3, 4, 6, 8, 10]
    for length in (2, 3, 5, 16, 100, 4096):
        edges = position_edges(length)
        assert (edges[0], edges[-1]) == (0, length)
        assert edges == sorted(set(edges))


def test_another_text_is_a_test_of_its_own(config: Config, novel: Path, tmp_path: Path) -> None:
    train(config(), tmp_path / "run")
    (tmp_path / "other.txt").write_text("zyxw " * 300)
    other = evaluate_run(tmp_path / "run", text=str(tmp_path / "other.txt"))
    own = evaluate_run(tmp_path / "run", split="validation")
    assert [(entry["split"], entry["length"]) for entry in other] == [("other.txt", 16), ("other.txt", 32)]
    assert other[0]["loss"] > own[0]["loss"] + 0.05
    assert other[0]["data_hash"] != head(tmp_path / "run")["data_hash"]
    # The tokens of the run are in its folder: its own text is not needed.
    novel.unlink()
    assert evaluate_run(tmp_path / "run", text=str(tmp_path / "other.txt"))[0]["loss"] == other[0]["loss"]


def test_documents_reach_the_model(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text(f"{'ship sea ' * (3 + number)}")
    chosen = config(
        {"path": str(folder), "documents": "separate"}, evaluation=EvaluationConfig(lengths=(16,), sequences=8)
    )
    result = train(chosen, tmp_path / "run")
    model = epan.load(tmp_path / "run")
    assert model.config.document_token == 256
    assert result.evaluations[0]["density"] <= 1
    # Short documents leave a query fewer keys to see than its place in the window.
    joined = train(dataclasses.replace(chosen, task=TaskConfig("text", {"path": str(folder)})), tmp_path / "joined")
    assert joined.evaluations[0]["support_size"] > result.evaluations[0]["support_size"]


def test_the_best_checkpoint_is_that_of_the_lowest_loss(config: Config, tmp_path: Path) -> None:
    chosen = config(
        evaluation=EvaluationConfig(lengths=(16,), sequences=8, every=2), keep_best=1, best_by="loss", keep=1
    )
    train(chosen, tmp_path / "run")
    tests = [entry for entry in records.read(tmp_path / "run") if entry["kind"] == "eval"]
    best = min(tests, key=lambda entry: entry["loss"])
    found = evaluate_run(tmp_path / "run", step="best", split="validation", append=False)
    assert found[0]["step"] == best["step"]
    assert found[0]["loss"] == pytest.approx(best["loss"], rel=1e-6)
    with pytest.raises(EpanError, match="set best_by=loss"):
        check(dataclasses.replace(chosen, best_by="exact_match"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (8, 16)}, "of one length"),
        ({"lengths": (10**5, 10**5)}, "cannot have the length"),
        ({"lengths": (4000, 4000), "evaluation": EvaluationConfig(lengths=(4000,))}, "validation text is too short"),
        ({"task": TaskConfig("text", {"path": "nowhere"})}, "There is no such text"),
        ({"task": TaskConfig("text", {"path": "x", "tokeniser": "bytes"})}, "did you mean 'tokenizer'"),
        ({"task": TaskConfig("text")}, "--text PATH"),
        ({"task": TaskConfig("texts")}, "did you mean 'text'"),
        ({"model": small.tiny().model, "task": TaskConfig("text", {"path": "x", "documents": "apart"})}, "Unknown way"),
    ],
)
def test_what_cannot_be(config: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EpanError, match=message):
        check(config(**changes))


def test_recorded_steps_see_the_same_text(config: Config, tmp_path: Path) -> None:
    """Steps whose data are drawn many at a time learn what plain ones learn."""
    from epan.training.resident import ResidentStep

    with small.engine_of(config()) as engine:
        resident = ResidentStep(config(), engine.task, engine.model, engine._adamw, (16, 16), torch.device("cpu"), 1)
        chunk = resident._draw(2)[1].tokens
        plain = [engine._data(step)[0].tokens for step in (2, 3, 4)]
    assert torch.equal(chunk[: 6 * 3], torch.cat(plain))


def test_a_sparse_output_is_told_and_speaks(config: Config, tmp_path: Path, novel: Path) -> None:
    result = train(config(loss="epanechnikov", steps=20), tmp_path / "run")
    novel.unlink()
    for test in result.evaluations:
        assert 0 <= test["zero_probability"] < 1
        assert (test["cross_entropy"] is None) == (test["zero_probability"] > 0)
        if test["cross_entropy"] is None:
            assert test["bits_per_byte"] is test["perplexity"] is None
        else:
            # Each token is a byte.
            assert test["bits_per_byte"] == pytest.approx(test["cross_entropy"] / math.log(2))
            assert test["perplexity"] == pytest.approx(math.exp(test["cross_entropy"]))
        parts = [(last - first + 1, mean) for first, last, mean in test["loss_by_position"]]
        assert sum(count * mean for count, mean in parts) / test["length"] == pytest.approx(test["loss"])
    # The text is gone; its tokenizer is in the run.
    loaded = load_run(tmp_path / "run", device="cpu")
    prompt = loaded.task.encode("sea ü")
    assert prompt == [256, *"sea ü".encode()]
    assert loaded.task.decode(prompt) == "sea ü"
    assert loaded.task.ends == (256,)
    found = list(epan.generate(loaded.model, prompt, tokens=5, seed=1))
    assert len(found) == 5 or found[-1] == 256
