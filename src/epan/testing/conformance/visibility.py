"""Which keys a query sees: all that the mask allows, and no others, whatever numbers they hold."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ...normalizations import Nearest
from .. import oracles
from ..execution import Attention, Result, run
from ..inputs import Case, Inputs
from ..tolerance import assert_equal_bits

__all__ = ["contains_nonfinite", "flat", "hidden_keys_leave_no_trace", "sees_exactly_the_allowed_keys"]


def flat(case: Case) -> Inputs:
    """Inputs with the case's masks, but scores so nearly equal that every kernel reaches every key."""
    inputs = case.but(spread=1e-3, scale=1e-2).build()
    changed: dict[str, object] = {}
    if inputs.attn_mask is not None and inputs.attn_mask.is_floating_point():
        changed["attn_mask"] = torch.where(inputs.attn_mask == -math.inf, -math.inf, 0.0).to(inputs.attn_mask.dtype)
    if inputs.alibi_slopes is not None:
        changed["alibi_slopes"] = inputs.alibi_slopes * 1e-6
    if inputs.normalization.name == "nearest":
        changed["normalization"] = Nearest(k=max(1, case.k_len))
    return dataclasses.replace(inputs, **changed)  # type: ignore[arg-type]


def sees_exactly_the_allowed_keys(attention: Attention, case: Case) -> None:
    """∂out_i/∂v_j is zero exactly where the mask forbids: every normalization sees the same set of keys."""
    inputs = flat(case)
    allowed = oracles.visible(inputs)
    key_heads, q_len, k_len = inputs.key.shape[1], case.q_len, case.k_len
    # With the identity as values the output is the matrix of weights, with the identity coming back ∂L/∂v is too.
    forward = dataclasses.replace(
        inputs, value=torch.eye(k_len, dtype=case.dtype).expand(case.batch, key_heads, k_len, k_len)
    )
    seen = run(attention, forward, gradients=False).out != 0
    _same_set(seen, allowed, "the output")
    backward = dataclasses.replace(
        inputs,
        value=torch.ones((case.batch, key_heads, k_len, q_len), dtype=case.dtype),
        grad=torch.eye(q_len, dtype=case.dtype).expand(case.batch, case.heads, q_len, q_len),
    )
    felt = run(attention, backward).grads["value"].transpose(-2, -1) != 0
    shared = allowed.unflatten(1, (key_heads, -1)).any(2) if key_heads else allowed
    _same_set(felt, shared, "the gradient of the values")


def _same_set(seen: Tensor, allowed: Tensor, where: str) -> None:
    wrong = seen != allowed
    if bool(wrong.any()):
        b, h, i, j = wrong.nonzero()[0].tolist()
        word = "sees" if bool(seen[b, h, i, j]) else "does not see"
        count = int(wrong.sum())
        raise AssertionError(f"query {i} {word} key {j} in {where} (batch {b}, head {h}; {count} pairs differ)")


def _with(tensor: Tensor, position: int, number: float | Tensor) -> Tensor:
    """A copy with one key or query position overwritten."""
    copy = tensor.clone()
    copy[:, :, position] = number
    return copy


def hidden_keys_leave_no_trace(attention: Attention, case: Case, positions: tuple[int, ...] = (0, -1)) -> None:
    """Another finite key and value change nothing, to the last bit, for the queries that may not see them.

    Under a causal mask this is causality: changing token t never changes outputs before t.
    """
    inputs = case.build()
    clean, plain = run(attention, inputs), run(attention, inputs, gradients=False).out
    allowed = oracles.visible(inputs)
    for position in positions:
        for size in (1.0, 30.0):
            other = torch.randn(inputs.key[:, :, position].shape, generator=torch.Generator().manual_seed(7)) * size
            changed = dataclasses.replace(
                inputs,
                key=_with(inputs.key, position, other.to(case.dtype)),
                value=_with(inputs.value, position, size * 1.5),
            )
            result = run(attention, changed)
            blind = ~allowed[..., position]
            assert_equal_bits(result.out[blind], clean.out[blind], f"outputs that may not see key {position}")
            unrecorded = run(attention, changed, gradients=False).out
            told = f"outputs without record that may not see key {position}"
            assert_equal_bits(unrecorded[blind], plain[blind], told)
            told = f"gradients of queries that may not see key {position}"
            assert_equal_bits(result.grads["query"][blind], clean.grads["query"][blind], told)


def contains_nonfinite(attention: Attention, case: Case) -> None:
    """A NaN or infinite key, value or query makes exactly the queries that may see it NaN, forward; nothing else moves.

    One number of the vector is enough, in one head of one batch entry. Where no query may see it, output and gradients
    equal those of a clean run to the last bit. Where some may, the others keep their bits, and no gradient becomes NaN.
    """
    inputs = case.build()
    clean, plain = run(attention, inputs), run(attention, inputs, gradients=False).out
    allowed = oracles.visible(inputs)
    groups = case.heads // inputs.key.shape[1]
    for bad, single in ((math.nan, False), (math.inf, True), (-math.inf, False)):
        for name, positions in (
            ("key", (0, case.k_len // 2, case.k_len - 1)),
            ("value", (0, case.k_len // 2, case.k_len - 1)),
            ("query", (0, case.q_len - 1)),
        ):
            for position in positions:
                tensor = getattr(inputs, name).clone()
                # Of one head of one batch entry only the last number, or all.
                tensor[(-1, -1, position, -1) if single else (..., position, slice(None))] = bad
                poisoned = inputs.with_leaves({name: tensor})
                if name == "query":
                    # A query without keys has nothing to compare itself with.
                    sees = allowed.any(-1) & (torch.arange(case.q_len) == position)
                else:
                    sees = allowed[..., position].clone()
                if single:
                    sees[:-1] = False
                    sees[:, : -(1 if name == "query" else groups)] = False
                label = f"{'one number of ' if single else ''}{name} {position} = {bad}"
                _contained(attention, poisoned, clean, plain, sees, label)


def _contained(attention: Attention, poisoned: Inputs, clean: Result, plain: Tensor, sees: Tensor, label: str) -> None:
    result = run(attention, poisoned)
    unrecorded = run(attention, poisoned, gradients=False).out
    for out, expected, which in ((result.out, clean.out, label), (unrecorded, plain, f"{label}, without record")):
        some, whole = torch.isnan(out).any(-1), torch.isnan(out).all(-1)
        assert bool((some == sees).all()), (
            f"{which}: {int(some.sum())} queries became NaN, {int(sees.sum())} may see it"
        )
        assert bool((whole == sees).all()), f"{which}: a query that sees it is NaN in part only"
        assert_equal_bits(out[~sees], expected[~sees], f"outputs of the others, {which}")
    grad, expected = result.grads["query"][~sees], clean.grads["query"][~sees]
    assert_equal_bits(grad, expected, f"query gradients of the others, {label}")
    for name, grad in result.grads.items():
        assert bool(torch.isfinite(grad).all()), f"{label}: gradient of {name} is not finite"
        if not bool(sees.any()):
            assert_equal_bits(grad, clean.grads[name], f"gradient of {name}, {label}, which no query sees")
