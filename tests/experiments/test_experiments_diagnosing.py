"""What the heads look at: right keys, mass of weight, entropy; and when associative recall leaves its plateau."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import diagnosing
import length_generalization as study
import tabulating_heads
import tabulating_plateaus
from epan import tasks
from epan.errors import EpanError
from epan.models import build
from epan.training import records


@pytest.mark.parametrize("name", ["copy", "reverse", "sort", "mqmtar"])
def test_the_right_key_holds_the_token_that_is_predicted(name: str) -> None:
    options = {"letters": 7, "words": 20} if name == "mqmtar" else {"symbols": 5}
    task = tasks.get(name, **options)
    batch = task.sample(0, 0, 6, 40, split="test")
    places, right = diagnosing.right_keys(task, batch)
    tokens, end = batch.tokens, int(batch.prompt_length[0])
    assert len(places) == (8 if name == "mqmtar" else 40)
    assert right.shape == (6, len(places), tokens.shape[1])
    assert not bool(right[:, :, 0].any() or right[:, :, end - 1 :].any())
    for row in range(6):
        for number, place in enumerate(places.tolist()):
            found = right[row, number].nonzero().squeeze(1).tolist()
            assert {int(tokens[row, at]) for at in found} == {int(tokens[row, place + 1])}
            if name == "sort":
                assert len(found) == int((tokens[row, 1 : end - 1] == tokens[row, place + 1]).sum())
            else:
                assert len(found) == 1
    if name == "copy":
        assert right[0].nonzero()[:, 1].tolist() == list(range(1, 41))
    if name == "reverse":
        assert right[0].nonzero()[:, 1].tolist() == list(range(40, 0, -1))
    if name == "mqmtar":
        # The pair, found by reading the source from the left.
        words = tokens[0].tolist()
        asked = [at for at, token in enumerate(words[:end]) if token == task.vocab_size - 1]
        for number, mark in enumerate(asked):
            key = words[mark + 1 : mark + 3]
            start = next(at for at in range(end) if words[at : at + 3] == [*key, task.vocab_size - 2])
            assert right[0, 2 * number : 2 * number + 2].nonzero()[:, 1].tolist() == [start + 3, start + 4]


def test_few_queries_are_spread_over_the_target() -> None:
    task = tasks.get("copy")
    places, right = diagnosing.right_keys(task, task.sample(0, 0, 2, 100), most=5)
    assert places.tolist() == [101, 126, 151, 175, 200]
    assert right[1].nonzero()[:, 1].tolist() == [1, 26, 51, 75, 100]


def test_a_task_without_a_right_key_is_refused() -> None:
    task = tasks.get("parity")
    with pytest.raises(EpanError, match="parity"):
        diagnosing.right_keys(task, task.sample(0, 0, 2, 10))
    task = tasks.get("copy")
    with pytest.raises(EpanError, match="alike"):
        diagnosing.right_keys(task, task.sample(0, 0, 9, (3, 10)))


@pytest.mark.parametrize(("name", "layer"), [("memory_mosaic", "contextual"), ("transformer", "attention")])
def test_measures_of_the_heads_are_those_of_their_weights(name: str, layer: str) -> None:
    task = tasks.get("reverse", symbols=5)
    model = build(name, {"vocab_size": task.vocab_size, "layers": 2, "heads": 2, "width": 8}).eval()
    batch = task.sample(0, 0, 3, 6)
    found = diagnosing.look(model, task, batch)
    assert list(found) == [f"layers.0.{layer}", f"layers.1.{layer}"]
    embedded = model.embedding(batch.tokens[:, :-1])
    block = model.layers[0]
    reads = block.contextual["contextual"] if name == "memory_mosaic" else block.attention
    normed = block.contextual_norm(embedded) if name == "memory_mosaic" else block.attention_norm(embedded)
    weights = reads.weights(normed)[0].double()
    sums = found[f"layers.0.{layer}"]
    assert float(sums["rows"]) == 3 * 6
    entropy, mass = torch.zeros(2), torch.zeros(len(diagnosing.OFFSETS), 2)
    for row in range(3):
        for step in range(6):
            w = weights[row, :, 7 + step]
            entropy -= torch.where(w > 0, w * w.clamp(min=1e-300).log(), 0.0).sum(-1)
            for number, offset in enumerate(diagnosing.OFFSETS):
                mass[number] += w[:, 6 - step + offset] if 6 - step + offset >= 0 else 0
    assert torch.allclose(sums["entropy"].float(), entropy, atol=1e-5)
    assert torch.allclose(sums["recall"].float(), mass, atol=1e-5)
    assert ("bandwidth" in sums) == (name == "memory_mosaic")


def test_heads_are_looked_at_once_and_come_into_tables_and_heat_map(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert study.command(["diagnose", str(trained), "--longest", "4"]) == 0
    assert study.command(["diagnose", str(trained), "--seconds", "0"]) == 75
    assert study.command(["diagnose", str(trained)]) == 0
    assert capsys.readouterr().out
    assert study.command(["diagnose", str(trained)]) == 0
    assert capsys.readouterr().out == ""
    lines = [line for line in records.read(trained / study.main()[0].label) if line["kind"] == "attention"]
    assert [(line["length"], line["sequences"]) for line in lines] == [(4, 3), (8, 3)]
    (means,) = lines[1]["layers"].values()
    # The Gaussian gives weight to every pair before the query: of 8 queries from position 9 on, 12.5 on the average.
    assert means["support_size"] == [12.5, 12.5]
    assert all(0 < value < math.log(16) for value in means["entropy"])
    assert study.command(["collect", str(trained), "--results", str(results)]) == 0
    assert study.command(["tables", "--results", str(results)]) == 0
    rows = list(csv.DictReader((results / "diagnostics.csv").read_text().splitlines()))
    entropies = {(row["method"], row["length"]): float(row["entropy"]) for row in rows}
    assert len(entropies) == 4
    assert all(float(row["bandwidth"]) > 0 for row in rows)
    rows = list(csv.DictReader((results / "recall.csv").read_text().splitlines()))
    assert {row["seeds"] for row in rows} == {"2"}
    assert all(float(row["min"]) <= float(row["mean"]) <= float(row["max"]) for row in rows)
    assert (results / "copy-recall.png").read_bytes().startswith(b"\x89PNG")


def test_heads_are_compared_in_the_order_of_their_mass() -> None:
    runs = [run for run in study.main() if run.task.name == "copy"][:2]

    def record(run: Any, heads: list[list[float]]) -> dict[str, Any]:
        layers = [{"layers.0.contextual": {"recall": {"-1": row, "0": [0.0, 0.0]}}} for row in heads]
        lines = [{"length": length, "layers": layer} for length, layer in zip((64, 128), layers, strict=True)]
        return {"identity": tabulating_heads.identity(run), "status": "finished", "attention": lines}

    # The second head of one seed does what the first of the other does.
    found = [record(runs[0], [[0.1, 0.9], [0.2, 0.8]]), record(runs[1], [[0.7, 0.3], [0.6, 0.5]])]
    (part,) = tabulating_heads.recall_of(found, runs, study.method_of)
    assert part.mass == {64: [[0.9, 0.1], [0.7, 0.3]], 128: [[0.8, 0.2], [0.6, 0.5]]}
    assert part.offsets == (-1, -1)


# ---------------------------------------------------------------------- the plateau


def test_guessing_costs_the_logarithm_of_the_pairs() -> None:
    run = next(run for run in study.main() if run.task.name == "mqmtar")
    task, total = tasks.get("mqmtar"), 0.0
    for length in range(32, 65):
        batch = task.sample(0, 0, 1, length)
        pairs = int((batch.tokens == task.vocab_size - 2).sum())
        # Of 13 tokens with loss, the first letters of four values are guessed.
        total += 4 * math.log(pairs) / int(batch.loss_mask.sum()) / 33
    assert tabulating_plateaus.guessing(run) == pytest.approx(total)
    assert total == pytest.approx(0.540, abs=1e-3)
    assert tabulating_plateaus.guessing(study.main()[0]) is None


def test_a_run_escapes_when_the_middle_of_three_losses_is_below_half() -> None:
    steps = [(50 * number, loss) for number, loss in enumerate([2.0, 0.5, 0.2, 0.5, 0.5, 0.24, 0.1, 0.3, 0.1])]
    assert tabulating_plateaus.escape(steps, 0.5) == 300
    assert tabulating_plateaus.escape(steps[:6], 0.5) is None
    assert tabulating_plateaus.escape([], 0.5) is None
    assert tabulating_plateaus.escape([(50, 0.1), (100, 0.1), (150, 0.1)], 0.5) == 150


def test_steps_of_escape_and_the_curves_come_from_the_records(tmp_path: Path) -> None:
    runs = [run for run in study.main() if run.task.name == "mqmtar" and run.model.name == "memory_mosaic"][:6]
    losses = [[50 * step, 0.6 if step < 10 * (run.seed + 1) else 0.01] for run in runs for step in range(1, 101)]
    found = [
        {"identity": tabulating_plateaus.identity(run), "status": "finished", "losses": losses[100 * n : 100 * n + 100]}
        for n, run in enumerate(runs)
    ]
    # One seed never leaves it.
    found[2]["losses"] = [[50 * step, 0.53] for step in range(1, 101)]
    made = tabulating_plateaus.tabulate(found, runs, study.method_of, study._titles(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "plateau.csv").read_text().splitlines()))
    first = {name: rows[0][name] for name in ("mean", "min", "max", "escaped", "seeds")}
    assert first == {"mean": "800", "min": "550", "max": "1050", "escaped": "2", "seeds": "3"}
    assert json.dumps([path.name for path in made]) == '["plateau.csv", "mqmtar-plateau.png"]'
    assert tabulating_plateaus.tabulate(found, runs[:0], study.method_of, study._titles(), tmp_path) == []
