"""Nothing in, nothing out: fully masked rows, no queries, no keys, no batch."""

from __future__ import annotations

import dataclasses

import torch

from .. import oracles
from ..execution import Attention, run
from ..inputs import Case

__all__ = ["fully_masked_rows_are_zero", "handles_nothing"]


def fully_masked_rows_are_zero(attention: Attention, case: Case) -> None:
    """A query without keys has output exactly zero, and what comes back into it reaches no input.

    The case must mask some row entirely.
    """
    inputs = case.build()
    dead = ~oracles.visible(inputs).any(-1)
    assert bool(dead.any()), "the case has no fully masked row"
    result = run(attention, inputs)
    for out in (result.out, run(attention, inputs, gradients=False).out):
        assert bool((out[dead] == 0).all()), "the output of a fully masked row is not zero"
    for name, grad in result.grads.items():
        assert bool(torch.isfinite(grad).all()), f"gradient of {name} is not finite"
    assert bool((result.grads["query"][dead] == 0).all()), "a fully masked query has a gradient"
    only_dead = dataclasses.replace(inputs, grad=torch.where(dead.unsqueeze(-1), inputs.grad, 0.0))
    for name, grad in run(attention, only_dead).grads.items():
        assert bool((grad == 0).all()), f"fully masked rows send a gradient to {name}"


def handles_nothing(attention: Attention, case: Case) -> None:
    """Batch 0, no queries, no keys: outputs of the right shape, zero where there are no keys; gradients zero."""
    for empty in ({"batch": 0}, {"q_len": 0}, {"k_len": 0}, {"q_len": 0, "k_len": 0}):
        inputs = case.but(**empty).build()
        result = run(attention, inputs, stats=True)
        expected = (*inputs.query.shape[:-1], inputs.value.shape[-1])
        assert tuple(result.out.shape) == expected, f"{empty}: shape {tuple(result.out.shape)}, expected {expected}"
        assert bool((result.out == 0).all()), f"{empty}: the output is not zero"
        for name, leaf in inputs.leaves().items():
            grad = result.grads[name]
            assert grad.shape == leaf.shape, f"{empty}: gradient of {name} has shape {tuple(grad.shape)}"
            assert bool((grad == 0).all()), f"{empty}: gradient of {name} is not zero"
        assert result.stats is not None
        for field, value in zip(("threshold", "support_size", "partition"), (torch.inf, 0, 0), strict=True):
            stat = getattr(result.stats, field)
            assert tuple(stat.shape) == expected[:-1], f"{empty}: {field} has shape {tuple(stat.shape)}"
            assert bool((stat == value).all()), f"{empty}: {field} of a row without keys is not {value}"
