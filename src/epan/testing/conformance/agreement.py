"""Outputs and gradients against the formulas, by the tolerance rule."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import oracles, tolerance
from ..execution import Attention, Result, run
from ..inputs import Case, Inputs

__all__ = [
    "agrees_with_formula",
    "answers",
    "formula",
    "gradients_agree_with_formula",
    "judge_gradients",
    "judge_output",
    "keeps_dtype_and_shape",
]


@functools.lru_cache(maxsize=64)
def formula(case: Case) -> tuple[oracles.Answer, tuple[oracles.Answer, ...]]:
    """The answer to a case in float64, and to the same case moved by rounding; kept, as several backends ask for it."""
    inputs = case.build()
    answer, moved = answers(inputs)
    return answer, () if _is_exact(case, inputs) else moved


def _is_exact(case: Case, inputs: Inputs) -> bool:
    """Whether products and scores have no rounding, so that none may tell tied keys apart: halves times powers of two."""
    halves = case.content in ("ties", "constant") and case.spread == 1.0 and case.dtype == torch.float64
    return halves and bool((torch.frexp(inputs.beta()).mantissa == 0.5).all())


def answers(inputs: Inputs) -> tuple[oracles.Answer, tuple[oracles.Answer, ...]]:
    """The answer to some inputs, and to the same inputs moved by rounding."""
    moved = tuple(oracles.attention(inputs.moved(seed), gradients=True) for seed in (1, 2))
    return oracles.attention(inputs, gradients=True), moved


def judge_output(
    actual: Tensor,
    inputs: Inputs,
    answer: oracles.Answer,
    moved: tuple[oracles.Answer, ...],
    baseline: Result | None = None,
    label: str = "out",
    expected_nan: Tensor | None = None,
) -> None:
    """Fails unless an output of shape (B, H, Lq, Dv) obeys the rule in the dtype of the values."""
    # An output of lower precision does not bring its own, wider band.
    width = tolerance.band(answer.out, [other.out for other in moved], inputs.value.dtype)
    base = None if baseline is None else baseline.out
    tolerance.assert_within(actual, answer.out, base, kind="output", band=width, expected_nan=expected_nan, label=label)


def agrees_with_formula(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """The output equals the formula of the case's kernel, normalization, similarity, masks and biases.

    Parameters
    ----------
    baseline: the eager backend if ``attention`` is another one, so that its measured error is the yardstick.
    """
    inputs = case.build()
    answer, moved = formula(case)
    base = None if baseline is None else run(baseline, inputs, gradients=False)
    judge_output(run(attention, inputs, gradients=False).out, inputs, answer, moved, base)


def gradients_agree_with_formula(attention: Attention, case: Case, baseline: Attention | None = None) -> None:
    """Gradients of query, key, value, and of scale, float mask, ALiBi slopes and order where they are tensors.

    The output of the call that is recorded for them equals the formula too.
    """
    inputs = case.build()
    answer, moved = formula(case)
    base = None if baseline is None else run(baseline, inputs)
    result = run(attention, inputs)
    judge_output(result.out, inputs, answer, moved, base, "out of a recorded call")
    judge_gradients(result, inputs, answer, moved, base)


def judge_gradients(
    result: Result,
    inputs: Inputs,
    answer: oracles.Answer,
    moved: tuple[oracles.Answer, ...],
    baseline: Result | None,
) -> None:
    """Fails unless every gradient obeys the rule and has the dtype of its input."""
    grads = result.grads
    assert set(grads) == set(answer.grads), f"gradients of {sorted(grads)}, expected {sorted(answer.grads)}"
    for name, reference in answer.grads.items():
        actual = grads[name]
        assert actual.dtype == inputs.leaves()[name].dtype, f"gradient of {name} has dtype {actual.dtype}"
        width = tolerance.band(reference, [other.grads[name] for other in moved], actual.dtype)
        tolerance.assert_within(
            actual,
            reference,
            None if baseline is None else baseline.grads[name],
            kind="gradient",
            band=width,
            label=f"gradient of {name}",
        )


def keeps_dtype_and_shape(attention: Attention, case: Case) -> None:
    """The output has the dtype of the values and the shape (B, H, Lq, Dv); the inputs are left as they were."""
    inputs = case.build()
    before = {name: tensor.detach().clone() for name, tensor in _tensors(inputs).items()}
    expected = (*inputs.query.shape[:-1], inputs.value.shape[-1])
    for gradients in (False, True):
        out = run(attention, inputs, gradients=gradients).out
        word = "output of a recorded call" if gradients else "output"
        assert out.dtype == inputs.value.dtype, f"{word} of {out.dtype} for values of {inputs.value.dtype}"
        assert tuple(out.shape) == expected, f"{word} of shape {tuple(out.shape)}, expected {expected}"
    for name, tensor in _tensors(inputs).items():
        tolerance.assert_equal_bits(tensor, before[name], f"{name} after the call")


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Every tensor of the call, boolean masks too."""
    named = {**inputs.leaves(), "incoming gradient": inputs.grad}
    return named if inputs.attn_mask is None else {**named, "attn_mask": inputs.attn_mask}
