"""The optimizer of a run: parameter groups, AdamW, learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from epan.errors import EpanError
from epan.models import LanguageModel
from epan.training.config import OptimizerConfig
from epan.training.sharding import piece

__all__ = ["build_optimizer", "learning_rate", "optimizer_tensors", "restore_optimizer"]


# What AdamW keeps of a parameter.
STATES = {"step", "exp_avg", "exp_avg_sq"}


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0) out of ``steps``.

        W = round(warmup · steps) steps rise linearly, (step + 1)/W of the highest rate each; the others follow
        final + (highest − final)(1 + cos πs)/2 with s from 0 to 1, so that the last step has the final rate exactly.

    A function of the step alone: resuming a run needs no state of a scheduler.
    """
    highest, final = config.learning_rate, config.final_learning_rate
    warm = round(config.warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    share = (step - warm) / max(1, steps - 1 - warm)
    return final + (highest - final) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def build_optimizer(model: LanguageModel, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW on the model's parameter groups; fused where torch has it: small models would wait for Python."""
    return torch.optim.AdamW(
        model.parameter_groups(config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        fused=device.type in ("cpu", "cuda"),
    )


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as ``{parameter name}/{state name}``: moments and step counts."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what ``optimizer_tensors`` gave, on the device of each parameter.

    Raises
    ------
    EpanError: a parameter that the model does not have, moments that AdamW does not have or of another shape, or not
        all of those of a parameter.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or tensor.shape != (() if key == "step" else parameter.shape):
            found = f"{name!r} of shape {tuple(tensor.shape)}"
            fix = "resume with the config that it was trained with"
            raise EpanError("The optimizer state belongs to another model", found=found, fix=fix)
        # The count of steps is a single number, which every process has.
        split = tensor.shape == parameter.shape
        optimizer.state[parameter][key] = piece(tensor, parameter) if split else tensor.to(parameter.device, copy=True)
    for owner, parameter in parameters.items():
        states = optimizer.state.get(parameter, {})
        if states and states.keys() != STATES:
            found = f"{', '.join(map(ascii, sorted(states)))} of {owner!r}"
            raise EpanError("The optimizer state is not that of AdamW", found=found, allowed=sorted(STATES))
