"""What must not matter: the order of the keys, a constant in the scores, a missing head dimension, the time of day."""

from __future__ import annotations

import dataclasses

import torch

from .. import tolerance
from ..execution import Attention, run
from ..inputs import Case
from .agreement import answers, formula, judge_output

__all__ = ["answers_a_constant_shift", "ignores_the_order_of_keys", "repeats_itself", "takes_three_dimensions"]


def ignores_the_order_of_keys(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """Permuting the keys together with their values and mask columns leaves the output where the formula has it.

    Worth most with ties (``content="ties"``, "duplicates", "constant"). The case must have no mask by position.
    """
    positional = case.is_causal or case.window or case.alibi or case.mask == "lower_right"
    assert not positional, "positions would matter"
    inputs = case.build()
    answer, moved = formula(case)
    base = None if baseline is None else run(baseline, inputs, gradients=False)
    plain = run(attention, inputs, gradients=False).out
    judge_output(plain, answer, moved, base, "keys as drawn")
    for seed in (1, 2):
        order = torch.randperm(case.k_len, generator=torch.Generator().manual_seed(seed))
        mask = inputs.attn_mask
        if mask is not None and mask.shape[-1] == case.k_len:
            mask = mask[..., order]
        shuffled = dataclasses.replace(
            inputs, key=inputs.key[:, :, order], value=inputs.value[:, :, order], attn_mask=mask
        )
        out = run(attention, shuffled, gradients=False).out
        judge_output(out, answer, moved, base, f"keys permuted by {order.tolist()}")


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
        judge_output(out, answer if stays else own, moved, base, f"scores shifted by {constant}")
        if not stays:
            change = tolerance.largest(out.double() - answer.out)
            assert change > 1e3 * torch.finfo(case.dtype).eps, f"the shift moved the output by only {change:.1e}"


def repeats_itself(attention: Attention, case: Case) -> None:
    """The same call gives the same bits, and a batch entry the same bits as alone in its batch."""
    inputs = case.build()
    first, second = run(attention, inputs), run(attention, inputs)
    for name, tensor in first.tensors().items():
        tolerance.assert_equal_bits(second.tensors()[name], tensor, f"{name}, second time")


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
        tolerance.assert_equal_bits(a, b.squeeze(1), f"{name} of three dimensions")
