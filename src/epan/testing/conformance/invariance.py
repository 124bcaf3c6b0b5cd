"""What must not matter: the order of the keys, a constant in the scores, a missing head dimension, the time of day."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .. import tolerance
from ..execution import Attention, run
from ..inputs import Case, Inputs
from .agreement import answers, formula, judge_output

__all__ = ["answers_a_constant_shift", "ignores_the_order_of_keys", "repeats_itself", "takes_three_dimensions"]


def ignores_the_order_of_keys(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """Permuting the keys together with their values and mask columns leaves the output where the formula has it.

    Worth most with ties (``content="ties"``, "duplicates", "constant"). The case must have no mask by position.
    """
    positional = case.is_causal or case.window or case.alibi or case.mask == "lower_right"
    assert not positional, "positions would matter"
    if case.content in ("ties", "constant") and case.scale is None:
        # With a power of two tied scores are exact, and every implementation has to see the tie.
        case = case.but(scale=0.25)
    inputs = case.build()
    answer, moved = formula(case)
    base = None if baseline is None else run(baseline, inputs, gradients=False)
    plain = run(attention, inputs, gradients=False).out
    judge_output(plain, inputs, answer, moved, base, "keys as drawn")
    for seed in (1, 2):
        order = torch.randperm(case.k_len, generator=torch.Generator().manual_seed(seed))
        mask = inputs.attn_mask
        if mask is not None and mask.shape[-1] == case.k_len:
            mask = mask[..., order]
        shuffled = dataclasses.replace(
            inputs, key=inputs.key[:, :, order], value=inputs.value[:, :, order], attn_mask=mask
        )
        out = run(attention, shuffled, gradients=False).out
        judge_output(out, inputs, answer, moved, base, f"keys permuted by {order.tolist()}")


def answers_a_constant_shift(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """A constant added to all scores of a query: anchored, adaptive, nearest and the Gaussian stay, fixed moves."""
    assert case.mask == "none", "the shift takes the place of the mask"
    inputs = case.build()
    answer, _ = formula(case)
    stays = case.build().normalization.name != "fixed" or inputs.kernel.name == "gaussian"
    for constant in (-3.0, 20.0) if stays else (0.75,):
        per_query = torch.full((*inputs.query.shape[:-1], 1), constant, dtype=case.dtype)
        per_query[:, :, ::2] *= 0.5
        shifted = dataclasses.replace(inputs, attn_mask=per_query)
        own, moved = answers(shifted)
        out = run(attention, shifted, gradients=False).out
        base = None if baseline is None else run(baseline, shifted, gradients=False)
        judge_output(out, shifted, answer if stays else own, moved, base, f"scores shifted by {constant}")
        if not stays:
            change = tolerance.largest(out.double() - answer.out)
            assert change > 1e3 * torch.finfo(case.dtype).eps, f"the shift moved the output by only {change:.1e}"


def repeats_itself(attention: Attention, case: Case) -> None:
    """The same call gives the same bits, whatever was called in between; a batch entry is as if alone in its batch.

    The latter up to rounding: vectorised arithmetic may depend on where in memory a number lies.
    """
    inputs = case.build()
    first = run(attention, inputs)
    plain = run(attention, inputs, gradients=False).out
    run(attention, case.but(seed=case.seed + 1, spread=2.0 * case.spread).build())
    for name, tensor in run(attention, inputs).tensors().items():
        tolerance.assert_equal_bits(tensor, first.tensors()[name], f"{name}, second time")
    tolerance.assert_equal_bits(run(attention, inputs, gradients=False).out, plain, "out without record, second time")
    answer, moved = formula(case)
    for entry in range(case.batch):
        alone, part = run(attention, _entry(inputs, entry)), slice(entry, entry + 1)
        width = tolerance.band(answer.out, [other.out for other in moved], case.dtype)
        tolerance.assert_within(alone.out, first.out[part].double(), band=width, label=f"batch entry {entry} alone")
        for name in ("query", "key", "value"):
            width = tolerance.band(answer.grads[name], [other.grads[name] for other in moved], case.dtype)
            label = f"gradient of {name}, batch entry {entry} alone"
            tolerance.assert_within(alone.grads[name], first.grads[name][part].double(), band=width, label=label)


def _entry(inputs: Inputs, entry: int) -> Inputs:
    """One batch entry as a batch."""
    batch = inputs.query.shape[0]
    fields = ("query", "key", "value", "grad", "scale", "attn_mask", "alibi_slopes")
    changed: dict[str, Any] = {}
    for name in fields:
        tensor = getattr(inputs, name)
        dims = 2 if name == "alibi_slopes" else 4
        if isinstance(tensor, torch.Tensor) and tensor.dim() == dims and tensor.shape[0] == batch:
            changed[name] = tensor[entry : entry + 1]
    return dataclasses.replace(inputs, **changed)


def takes_three_dimensions(attention: Attention, case: Case) -> None:
    """Inputs (B, L, D) are one head, as in torch; statistics lose the head dimension too."""
    inputs = case.but(heads=1, key_heads=None).build()
    options = inputs.options()
    four, stats = attention(inputs.query, inputs.key, inputs.value, return_stats=True, **options)
    mask = options.get("attn_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        options["attn_mask"] = mask.squeeze(1)
    squeezed = (t.squeeze(1) for t in (inputs.query, inputs.key, inputs.value))
    three, stats_three = attention(*squeezed, return_stats=True, **options)
    tolerance.assert_equal_bits(three, four.squeeze(1), "output of three dimensions")
    for name, a, b in zip(stats._fields, stats_three, stats, strict=True):
        assert (a is None) == (b is None), f"{name} depends on the number of dimensions"
        if b is not None:
            tolerance.assert_equal_bits(a, b.squeeze(1), f"{name} of three dimensions")
