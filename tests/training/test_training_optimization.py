"""Learning rates against torch's own schedulers; decay groups by what a step does."""

from __future__ import annotations

import pytest
import torch

from epan.errors import EpanError
from epan.models import build
from epan.training import OptimizerConfig
from epan.training.optimization import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer

CPU = torch.device("cpu")


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("memory_mosaic", {"vocab_size": 7, "layers": 1, "heads": 2, "width": 8, "persistent_size": 5})


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (50, 0.0), (7, 0.5), (1000, 0.013)])
def test_learning_rates_are_those_of_torch(steps: int, warmup: float) -> None:
    config = OptimizerConfig(learning_rate=3e-3, final_learning_rate=1e-4, warmup=warmup)
    warm = round(warmup * steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    schedulers = torch.optim.lr_scheduler
    cosine = schedulers.CosineAnnealingLR(optimizer, max(1, steps - 1 - warm), eta_min=1e-4)
    schedule: torch.optim.lr_scheduler.LRScheduler = cosine
    if warm:
        # start_factor 1/W, then one more W-th a step; the step after the last of them has the highest rate.
        linear = schedulers.LinearLR(optimizer, 1 / warm, 1.0, total_iters=max(1, warm - 1))
        schedule = schedulers.SequentialLR(optimizer, [linear, cosine], milestones=[warm])
    for step in range(steps):
        expected = 3e-3 if step < warm == 1 else optimizer.param_groups[0]["lr"]
        assert learning_rate(config, step, steps) == pytest.approx(expected, rel=1e-6), step
        optimizer.step()
        schedule.step()


def test_learning_rate_starts_peaks_and_ends_where_it_should() -> None:
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.25, warmup=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == 0.25
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(config, 0, 1) == 1.0


def test_only_parameters_of_two_dimensions_decay() -> None:
    model = small()
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(model, config, CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    dimensions = set()
    for name, parameter in model.named_parameters():
        # With a zero gradient AdamW does nothing but decay, by learning rate times decay.
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.dim() >= 2 else before[name]
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=0), name
        dimensions.add(parameter.dim())
    assert {1, 2} <= dimensions


def test_optimizer_state_is_put_back_bit_for_bit() -> None:
    config = OptimizerConfig(learning_rate=0.1)
    models = [small(), small()]
    optimizers = [build_optimizer(model, config, CPU) for model in models]

    def move(index: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in models[index].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[index].step()

    for seed in range(3):
        move(0, seed)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(models[0], optimizers[0]).items()}
    models[1].load_state_dict(models[0].state_dict())
    restore_optimizer(models[1], optimizers[1], kept)
    for index in range(2):
        move(index, 9)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_optimizer_state_of_another_model_is_refused() -> None:
    model = small()
    optimizer = build_optimizer(model, OptimizerConfig(), CPU)
    with pytest.raises(EpanError, match=r"nobody.weight/exp_avg"):
        restore_optimizer(model, optimizer, {"nobody.weight/exp_avg": torch.zeros(3)})
    with pytest.raises(EpanError, match=r"another model.*\(3, 3\)"):
        restore_optimizer(model, optimizer, {"embedding.weight/exp_avg": torch.zeros(3, 3)})
