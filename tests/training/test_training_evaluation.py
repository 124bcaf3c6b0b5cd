"""Evaluation: known answers, greedy decoding against one teacher-forced pass, support, independence of the batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import entmax
import pytest
import torch

import epan
from epan import tasks
from epan.errors import EpanError
from epan.metrics import exact_match
from epan.models import LanguageModel, build
from epan.tasks import Task
from epan.training import RunConfig, TaskConfig, evaluate
from epan.training.decoding import greedy_exact_match
from epan.training.engine import Engine, own_settings
from epan.training.progress import EvaluationInfo, Progress

SIZES = {"layers": 1, "heads": 2, "width": 16, "dropout": 0.0}


def fitted(task: Task, name: str, steps: int, **options: Any) -> LanguageModel:
    """A small model that has learnt a part of ``task`` at lengths 1 to 4."""
    config = RunConfig(steps=steps, batch=16, lengths=(task.shortest, task.shortest + 3))
    with own_settings(config, torch.device("cpu")):
        torch.manual_seed(0)
        model = build(name, {"vocab_size": task.vocab_size, **SIZES, **options})
        engine = Engine(config, task, model, torch.device("cpu"))
        # A rate that learns in a few steps.
        object.__setattr__(config.optimizer, "learning_rate", 1e-2)
        for step in range(steps):
            engine.take_step(step, measure=False)
    return model.eval()


def teacher_forced(model: LanguageModel, batch: tasks.Batch) -> torch.Tensor:
    logits = model(batch.tokens)
    predicted = torch.cat([batch.tokens[:, :1], logits[:, :-1].argmax(-1)], dim=1)
    return exact_match(predicted, batch.tokens, batch.score_mask)


@pytest.mark.parametrize(
    ("name", "options", "task", "steps"),
    [
        ("memory_mosaic", {}, tasks.get("copy", symbols=2), 40),
        ("memory_mosaic", {"normalization": "anchored", "kernel": "epanechnikov"}, tasks.get("sort", symbols=2), 40),
        ("memory_mosaic", {"adaptive_bandwidth": True, "gated_keys": True}, tasks.get("parity"), 40),
        ("transformer", {}, tasks.get("copy", symbols=2), 40),
        ("memory_mosaic", {}, tasks.get("mqmtar", letters=3, words=4, queries=2), 40),
    ],
)
def test_greedy_decoding_agrees_with_one_teacher_forced_pass(
    name: str, options: dict[str, Any], task: Task, steps: int
) -> None:
    model = fitted(task, name, steps, **options)
    right = 0
    for low, high in ((0, 0), (0, 3), (5, 5)):
        batch = task.sample(3, 0, 48, (task.shortest + low, task.shortest + high), split="test")
        with torch.no_grad():
            expected = teacher_forced(model, batch)
        assert torch.equal(greedy_exact_match(model, batch), expected)
        right += int(expected.sum())
    # A model that is always right or always wrong would prove nothing.
    assert 0 < right < 3 * 48


def test_given_tokens_are_not_decoded() -> None:
    # The query marks of the target are given: a model that predicts them wrongly is right all the same.
    task = tasks.get("mqmtar", letters=3, words=4, queries=2)
    batch = task.sample(0, 0, 32, task.shortest, split="test")
    given = batch.loss_mask & ~batch.score_mask
    assert given.any()

    class Cheat(LanguageModel):
        """Looks the next token up by position, and errs at given tokens only."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.answer = torch.where(given, 0, batch.tokens)

        def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
            return torch.nn.functional.one_hot(self.answer[:, 1 : tokens.shape[1] + 1], task.vocab_size).float()

        def init_cache(self, batch_size: int, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
            return (0,)

        def step(self, tokens: torch.Tensor, cache: tuple[Any, ...]) -> tuple[torch.Tensor, tuple[Any, ...]]:
            first, last = cache[0] + 1, cache[0] + 1 + tokens.shape[1]
            # Fed tokens must be the true ones.
            assert torch.equal(tokens, batch.tokens[:, cache[0] : last - 1])
            return torch.nn.functional.one_hot(self.answer[:, first:last], task.vocab_size).float(), (last - 1,)

        def bandwidths(self) -> dict[str, torch.Tensor]:
            return {}

    assert greedy_exact_match(Cheat(), batch).all()


@pytest.mark.parametrize("decoding", ["greedy", "teacher-forced"])
@pytest.mark.parametrize("trips", [0, 5, 1])
def test_the_figures_are_those_of_a_count_by_hand(copy_oracle: Any, decoding: Any, trips: int) -> None:
    task, length, count = tasks.get("copy", symbols=3), 6, 40
    model = copy_oracle(length, task.vocab_size, trips)
    (found,) = evaluate(model, task, [length], sequences=count, seed=4, decoding=decoding, batch_tokens=100)
    sequences = right_tokens = 0
    for row in task.sample(4, 0, count, length, split="test").tokens.tolist():
        target = row[length + 2 :]
        assert target == task.solve(row[: length + 2])
        right = [not trips or sum(row[:place]) % trips != 0 for place in range(length + 2, len(row))]
        right_tokens += sum(right)
        sequences += all(right)
    assert found["exact_match"] == sequences / count
    assert found["token_accuracy"] == right_tokens / (count * (length + 1))
    assert found["exact_match_low"] <= found["exact_match"] <= found["exact_match_high"]
    assert (found["sequences"], found["length"], found["decoding"]) == (count, length, decoding)
    # Logits are 1 at the answer and 0 elsewhere.
    total = task.vocab_size - 1 + torch.e
    share = right_tokens / (count * (length + 1))
    expected = torch.log(torch.tensor(total)) - share
    assert found["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert {0: 1.0, 1: 0.0}.get(trips, found["exact_match"]) == found["exact_match"]


def small(kernel: str = "biweight", normalization: str = "adaptive", **options: Any) -> LanguageModel:
    torch.manual_seed(1)
    values = {"vocab_size": 7, **SIZES, "kernel": kernel, "normalization": normalization, **options}
    return build("memory_mosaic", values)


def test_the_test_does_not_depend_on_the_batches() -> None:
    task, model = tasks.get("copy", symbols=3), small()
    found = [evaluate(model, task, [2, 9], sequences=30, batch_tokens=tokens) for tokens in (1, 170, 10**6)]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one["exact_match"] == two["exact_match"]
            assert one["token_accuracy"] == two["token_accuracy"]
            for key in ("loss", "support_size", "density"):
                assert one[key] == pytest.approx(two[key], rel=1e-5)


def test_fewer_sequences_are_the_first_ones() -> None:
    task, seen = tasks.get("copy", symbols=3), []
    model = small()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for count in (10, 25):
        evaluate(model, task, [4], sequences=count, decoding="teacher-forced", batch_tokens=40)
    few, many = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert (len(few), len(many)) == (10, 25)
    assert torch.equal(many[:10], few)
    train = task.sample(0, 0, 25, 4).tokens[:, :-1]
    assert not torch.equal(train, many)


@pytest.mark.parametrize("name", ["memory_mosaic", "transformer"])
def test_the_gaussian_uses_every_allowed_key(name: str) -> None:
    task = tasks.get("copy", symbols=3)
    torch.manual_seed(0)
    model = build(name, {"vocab_size": 7, **SIZES, "kernel": "gaussian"})
    (found,) = evaluate(model, task, [5], sequences=10)
    # 12 queries; the contextual memory's first one may see no key and does not count.
    mean = sum(range(1, 12)) / 11 if name == "memory_mosaic" else sum(range(1, 13)) / 12
    assert found["support_size"] == pytest.approx(mean, rel=1e-9)
    assert found["density"] == pytest.approx(1.0, rel=1e-9)
    assert found["empty_rows"] == 0.0


def test_empty_rows_of_a_narrow_fixed_kernel_are_reported() -> None:
    # The published bandwidth leaves nearly every row of the fixed rule empty.
    model = small("epanechnikov", {"name": "fixed", "empty": "zero"})  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("contextual.scale.log_scale"):
                parameter.fill_(0.45)
    (found,) = evaluate(model, tasks.get("copy", symbols=3), [20], sequences=10)
    assert 0.2 < found["empty_rows"] < 1
    assert 0 < found["density"] < 0.9
    assert found["per_layer"]["layers.0.persistent"]["density"] == 1.0


def test_auto_decodes_short_sequences_token_by_token() -> None:
    task = tasks.get("copy", symbols=3)
    found = evaluate(small(), task, [4, 90], sequences=3)
    assert [entry["decoding"] for entry in found] == ["greedy", "teacher-forced"]


def test_without_statistics_the_rest_is_the_same() -> None:
    task, model = tasks.get("copy", symbols=3), small()
    (whole,), (bare,) = (evaluate(model, task, [4], sequences=8, stats=stats) for stats in (True, False))
    assert bare["per_layer"] == {}
    assert bare["support_size"] is None
    same = ("exact_match", "token_accuracy", "loss")
    assert [whole[key] for key in same] == [bare[key] for key in same]


def test_the_mode_of_the_model_stays_and_dropout_is_off() -> None:
    task, model = tasks.get("copy", symbols=3), small(dropout=0.5)
    found = []
    for mode in (True, False):
        model.train(mode)
        found.append(evaluate(model, task, [4], sequences=8))
        assert model.training is mode
    assert found[0] == found[1]


def test_it_can_be_stopped_between_batches() -> None:
    asked: list[int] = []

    class Count(Progress):
        def on_evaluation(self, info: EvaluationInfo) -> None:
            asked.append(info.length)

    def stop() -> bool:
        return len(asked) >= 4

    found = evaluate(
        small(), tasks.get("copy", symbols=3), [4, 5], sequences=8, batch_tokens=44, progress=Count(), should_stop=stop
    )
    assert [entry["length"] for entry in found] == [4]
    assert asked == [4, 4, 4, 5]


@pytest.mark.parametrize(
    "wrong",
    [{"lengths": []}, {"lengths": [0]}, {"sequences": 0}, {"batch_tokens": 0}, {"decoding": "gready"}, {"split": "x"}],
)
def test_impossible_tests_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EpanError):
        evaluate(small(), tasks.get("copy", symbols=3), **{"lengths": [4], "sequences": 4, **wrong})


def test_bf16_evaluation_decodes_with_the_cache(tiny: Callable[..., RunConfig]) -> None:
    task, model = tasks.get("copy", symbols=3), small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = evaluate(model, task, [4], sequences=8, decoding="greedy")
    (exact,) = evaluate(model, task, [4], sequences=8, decoding="greedy")
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert (found["precision"], exact["precision"]) == ("bf16", "fp32")


# Steps after which every, some and no test sequence of length 2 was seen; 3² sources, training lengths 2 to 4.
@pytest.mark.parametrize("steps", [0, 1, 8, 400])
def test_the_overlap_with_training_is_its_expectation(tiny: Callable[..., RunConfig], steps: int) -> None:
    run, task, model = tiny(), tasks.get("copy", symbols=3), small()
    found = evaluate(model, task, [2, 5], sequences=4, run=run, step=steps)
    assert found[0]["overlap"] == pytest.approx(1 - (1 - 1 / 27) ** (6 * steps))
    assert found[1]["overlap"] == 0
    assert evaluate(model, task, [2], sequences=4, step=steps)[0]["overlap"] is None
    assert evaluate(model, task, [2], sequences=4, run=run, step=steps, split="train")[0]["overlap"] is None


def test_the_overlap_is_counted_where_nothing_else_is_known(tiny: Callable[..., RunConfig]) -> None:
    run = tiny(task=TaskConfig("flip-flop"), lengths=(8, 9), seed=2, batch=5)
    task, model = tasks.get("flip-flop"), small(vocab_size=9)
    first, second, other = evaluate(model, task, [8, 9, 10], sequences=40, seed=3, run=run, step=20, split="validation")
    drawn = [task.sample(2, step, 5, (8, 9)) for step in range(20)]
    shown = {tuple(batch.tokens[i, :end].tolist()) for batch in drawn for i, end in enumerate(batch.prompt_length)}
    for length, entry in ((8, first), (9, second)):
        batch = task.sample(3, 0, 40, length, split="validation")
        prompts = [tuple(row[: int(batch.prompt_length[0])]) for row in batch.tokens.tolist()]
        assert entry["overlap"] == sum(prompt in shown for prompt in prompts) / 40
        assert 0 < entry["overlap"] < 1
    assert other["overlap"] == 0
    # Counting what a long run has seen would take too long.
    assert evaluate(model, task, [8], sequences=40, run=run, step=10**6)[0]["overlap"] is None


@pytest.mark.parametrize(("height", "zero"), [(1.0, False), (9.0, True)])
def test_a_sparse_output_tells_what_it_rules_out(copy_oracle: Any, height: float, zero: bool) -> None:
    task, length, count = tasks.get("copy", symbols=3), 6, 40

    class Loud(copy_oracle):  # type: ignore[misc]
        def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
            logits = height * super().forward(tokens)
            return (logits, {}) if return_stats else logits

    model = Loud(length, task.vocab_size, 5)
    model.output_kernel = epan.Biweight()
    (found,) = evaluate(model, task, [length], sequences=count, seed=4)
    wrong = 1 - found["token_accuracy"]
    assert 0 < wrong < 1
    # One score of this height, the others 0.
    scores = torch.zeros(task.vocab_size, dtype=torch.float64)
    scores[0] = height
    right_loss, wrong_loss = entmax.entmax15_loss(scores.expand(2, -1), torch.tensor([0, 1])).tolist()
    assert found["loss"] == pytest.approx((1 - wrong) * right_loss + wrong * wrong_loss, rel=1e-5)
    best, other = entmax.entmax15(scores, dim=-1)[:2].tolist()
    if zero:
        assert (best, other) == (1.0, 0.0)
        assert found["zero_probability"] == pytest.approx(wrong)
        assert found["cross_entropy"] is None
        assert found["cross_entropy_positive"] == 0.0
    else:
        expected = -(1 - wrong) * math.log(best) - wrong * math.log(other)
        assert found["zero_probability"] == 0.0
        assert found["cross_entropy"] == found["cross_entropy_positive"] == pytest.approx(expected, rel=1e-5)
