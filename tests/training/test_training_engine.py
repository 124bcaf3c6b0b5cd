"""One optimizer step: against plain torch, accumulation, precision, and numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import engine_of
from torch.nn import functional as F

from epan.training import OptimizerConfig, RunConfig, TrainingError
from epan.training.engine import MOST_SKIPS
from epan.training.loading import build_model
from epan.training.optimization import learning_rate

CPU = torch.device("cpu")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_steps_are_those_of_plain_torch(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"dropout": 0.0}, optimizer=OptimizerConfig(learning_rate=1e-2, clip=0.3))
    with engine_of(config) as ours:
        torch.manual_seed(config.seed)
        model = build_model(config, ours.task)
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
        for step in range(4):
            found = ours.take_step(step, measure=False)
            batch = ours.task.sample(config.seed, step, config.batch, config.lengths)
            logits = model(batch.tokens)
            losses = [
                F.cross_entropy(logits[row, column - 1], batch.tokens[row, column])
                for row, column in batch.loss_mask.nonzero().tolist()
            ]
            loss = torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.optimizer, step, config.steps)
            optimizer.step()
            assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
            assert found.norm == pytest.approx(float(norm), rel=1e-4)
            assert found.norm > 0.3
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, ours.model.state_dict()[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_equals_one_big_batch(tiny: Callable[..., RunConfig], parts: int) -> None:
    found = []
    for accumulation in (1, parts):
        with engine_of(tiny({"dropout": 0.0}, accumulation=accumulation)) as ours:
            outcomes = [ours.take_step(step, measure=False) for step in range(3)]
            found.append((outcomes, weights(ours.model)))
    (whole, one), (split, many) = found
    for a, b in zip(whole, split, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.norm == pytest.approx(a.norm, rel=1e-4)
    for name in one:
        assert torch.allclose(one[name], many[name], rtol=1e-4, atol=1e-5), name


def test_every_micro_batch_is_different_data(tiny: Callable[..., RunConfig]) -> None:
    config = tiny(accumulation=3, batch=12, lengths=(6, 9))
    seen: list[tuple[int, ...]] = []
    with engine_of(config) as ours:
        ours.model.register_forward_pre_hook(lambda module, inputs: seen.extend(map(tuple, inputs[0].tolist())))
        for step in range(2):
            ours.take_step(step, measure=False)
    assert len(seen) == 24
    assert len(set(seen)) == 24


def test_the_support_is_measured_where_asked_and_changes_nothing(tiny: Callable[..., RunConfig]) -> None:
    found = []
    for measure in (False, True):
        with engine_of(tiny()) as ours:
            outcome = ours.take_step(0, measure=measure)
            found.append((outcome.support, weights(ours.model)))
    assert found[0][0] is None
    assert 0 < found[1][0] < 12
    for name, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][name])


def test_dropout_depends_on_seed_and_step_alone(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"dropout": 0.5})

    def losses(disturb: bool) -> list[float]:
        with engine_of(config) as ours:
            found = []
            for step in range(3):
                if disturb:
                    torch.rand(step + 5)
                found.append(ours.take_step(step, measure=False).loss)
            return found

    assert losses(True) == losses(False)


def poison(module: torch.nn.Module, steps: set[int], counter: list[int], place: Any = slice(None)) -> None:
    """Makes the output of ``module`` NaN in some of the training steps, as ``counter`` counts them."""

    def hook(layer: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if counter[0] not in steps:
            return output
        first = output[0] if isinstance(output, tuple) else output
        bad = first.clone()
        bad[place] = math.nan
        return (bad, *output[1:]) if isinstance(output, tuple) else bad

    module.register_forward_hook(hook)


@pytest.mark.parametrize("name", ["layers.0.contextual_norm", "layers.0.persistent.output", "norm"])
def test_a_loss_that_is_not_finite_stops_and_names_the_module(tiny: Callable[..., RunConfig], name: str) -> None:
    counter = [0]
    with engine_of(tiny()) as ours:
        poison(ours.model.get_submodule(name), {1}, counter)
        ours.take_step(0, measure=False)
        before, counter[0] = weights(ours.model), 1
        with pytest.raises(TrainingError, match=f"loss of step 2 is not finite.*module '{name}'"):
            ours.take_step(1, measure=False)
        after = weights(ours.model)
        assert not ours.updating
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_bad_output_without_loss_of_its_own_is_named_too(tiny: Callable[..., RunConfig]) -> None:
    # The prediction after <bos> has no loss; 0 · NaN spoils the gradient alone.
    with engine_of(tiny()) as ours:
        poison(ours.model.norm, {0}, [0], (0, 0))
        with pytest.raises(TrainingError, match=r"gradient of step 1 is not finite.*module 'norm' \(LayerNorm\)"):
            ours.take_step(0, measure=False)


def test_a_weight_that_is_not_finite_is_named(tiny: Callable[..., RunConfig]) -> None:
    with engine_of(tiny()) as ours:
        with torch.no_grad():
            ours.model.get_parameter("layers.0.persistent.values")[0, 0, 0] = math.inf
        with pytest.raises(TrainingError, match=r"parameter 'layers.0.persistent.values' itself.*1 of "):
            ours.take_step(0, measure=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_and_names_the_parameter(
    tiny: Callable[..., RunConfig], value: float
) -> None:
    name = "layers.0.persistent.values"
    with engine_of(tiny()) as ours:
        before = weights(ours.model)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            spoilt = gradient.clone()
            spoilt[0, 0, 0] = value
            return spoilt

        ours.model.get_parameter(name).register_hook(spoil)
        with pytest.raises(TrainingError, match=rf"gradient of step 1 is not finite.*'{name}'.*1 parameter"):
            ours.take_step(0, measure=False)
        after = weights(ours.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_heads_are_named(tiny: Callable[..., RunConfig]) -> None:
    """Heads 1 of two: of a parameter, of a gradient, of the keys that a memory reads."""
    with engine_of(tiny()) as ours, torch.no_grad():
        ours.model.get_parameter("layers.0.contextual.contextual.scale.log_scale")[1] = math.nan
        with torch.enable_grad(), pytest.raises(TrainingError, match=r"scale.log_scale' itself.*\(head 1 of 2\)"):
            ours.take_step(0, measure=False)
    with engine_of(tiny()) as ours:
        values = ours.model.get_parameter("layers.0.persistent.values")
        values.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.nan))
        with pytest.raises(TrainingError, match=r"persistent.values' \(head 1 of 2\) is not finite"):
            ours.take_step(0, measure=False)
    with engine_of(tiny()) as ours:
        poison(ours.model.get_submodule("layers.0.contextual.contextual.value"), {0}, [0], (slice(None), 1))
        with pytest.raises(TrainingError, match=r"contextual.value' \(ValueExtractor\).*, in head 1 of 2"):
            ours.take_step(0, measure=False)


def test_skipping_leaves_the_step_out_and_goes_on(tiny: Callable[..., RunConfig]) -> None:
    counter = [0]
    with engine_of(tiny(on_nonfinite="skip")) as ours:
        poison(ours.model.norm, {1}, counter)
        ours.take_step(0, measure=False)
        before, counter[0] = weights(ours.model), 1
        skipped = ours.take_step(1, measure=False)
        middle, counter[0] = weights(ours.model), 2
        going = ours.take_step(2, measure=False)
        after = weights(ours.model)
    assert "module 'norm'" in str(skipped.skipped)
    assert math.isnan(skipped.loss)
    assert going.skipped is None
    assert all(torch.equal(before[key], middle[key]) for key in before)
    assert not all(torch.equal(middle[key], after[key]) for key in before)
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_too_many_skips_in_a_row_stop(tiny: Callable[..., RunConfig]) -> None:
    with engine_of(tiny(on_nonfinite="skip", steps=100)) as ours:
        poison(ours.model.norm, set(range(100)) - {3}, counter := [0])
        # Step 3 is good and starts the count anew.
        for step in range(4 + MOST_SKIPS):
            counter[0] = step
            assert (ours.take_step(step, measure=False).skipped is None) == (step == 3)
        counter[0] = 4 + MOST_SKIPS
        with pytest.raises(TrainingError, match=f"{MOST_SKIPS + 1} steps in a row"):
            ours.take_step(4 + MOST_SKIPS, measure=False)


def test_bf16_trains_close_to_fp32_with_float32_weights(tiny: Callable[..., RunConfig]) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        with engine_of(tiny({"dropout": 0.0}, precision=precision)) as ours:
            losses[precision] = [ours.take_step(step, measure=step == 1).loss for step in range(4)]
            assert {tensor.dtype for tensor in ours.model.state_dict().values()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_the_settings_of_the_process_come_back(tiny: Callable[..., RunConfig]) -> None:
    from accelerate.state import AcceleratorState, PartialState

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = dict(AcceleratorState._shared_state), dict(PartialState._shared_state), torch.get_num_threads()
    with engine_of(tiny(threads=2)) as ours:
        assert torch.get_num_threads() == 2
        ours.take_step(0, measure=False)
    assert torch.equal(torch.rand(3), expected)
    assert (dict(AcceleratorState._shared_state), dict(PartialState._shared_state)) == before[:2]
    assert torch.get_num_threads() == before[2]
