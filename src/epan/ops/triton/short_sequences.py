"""Short attention on tensors: sequences of a few hundred tokens in one kernel each way, see ``short_kernels``.

The other schedules pay for lists of tiles that a sequence of one or two tiles cannot use; a batch of many short sequences
is what small models train on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from ...kernels import Gaussian, RectifiedPolynomial
from ...masks import Masking
from ...normalizations import Nearest
from .launch import (
    STEPS,
    Forward,
    Problem,
    added_scores,
    bounded,
    carry_out,
    device_function,
    given_tensors,
    gradients_of,
    key_of,
    padded,
    strides,
)
from .plans import Made, Plan
from .scores import NEAREST
from .short_kernels import short_backward, short_forward
from .short_mode import short_mode

__all__ = ["is_narrow", "is_short", "short_backward_pass", "short_forward_pass", "short_saved_like"]

_DTYPES = (torch.float16, torch.bfloat16)
# What registers hold: keys, and head size at most.
_KEYS, _SIZE = 160, 64
# Queries at most: one program works on all of a head in the backward pass.
_QUERIES = 256
# Head size up to which Gaussian weights go here in place of flash attention.
_BEFORE_FLASH = 32
# Queries of a block and warps: 16 queries a warp, so that no row of scores is spread over warps, where registers allow it.
# Forward and backward, by whether the head is wide. The nearest rule needs the same bits both ways, and takes those of backward.
TUNED = {False: ((64, 4), (32, 2)), True: ((32, 2), (32, 4))}
_NARROW = 32
# The last step of the threshold, relative to Σφ/Σφ', after which its error is the square of that.
_TOLERANCE = 1e-4


def _seen(masking: Masking) -> int:
    """Keys up to the last one that any query sees."""
    if masking.right is None:
        return masking.k_len
    return max(0, min(masking.k_len, masking.q_len + masking.right))


def is_short(masking: Masking, q: Tensor, v: Tensor) -> bool:
    """Whether the kernels of this file are to serve a call without statistics."""
    if q.dtype not in _DTYPES or masking.tensor is not None or masking.packing is not None or short_mode() == "never":
        return False
    if 0 in q.shape or 0 in v.shape or masking.q_len > _QUERIES:
        return False
    size = max(q.shape[-1], v.shape[-1])
    return size <= _SIZE and 0 < _seen(masking) <= _KEYS


def is_narrow(q: Tensor) -> bool:
    """Whether the heads are so narrow that Gaussian weights are faster here than in flash attention."""
    return q.shape[-1] <= _BEFORE_FLASH


def short_saved_like(q: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of what the forward pass leaves: the level of each query."""
    return [(tuple(q.shape[:3]), torch.float32)]


def _cut(keys: int) -> tuple[int, int]:
    """Keys of a block and of a tail, powers of two of at least 16, the tail shorter or none."""
    whole = padded(keys)
    block = max(16, whole // 2)
    tail = padded(keys - block) if keys > block else 0
    return (whole, 0) if tail >= block else (block, tail)


def _constants(problem: Problem, given: Mapping[str, Tensor]) -> dict[str, Any]:
    q, k, v, scale = (given[name] for name in ("Q", "K", "V", "SCALE"))
    masking, kernel, rule = problem.masking, problem.kernel, problem.normalization
    heads, size, value_size = q.shape[1], q.shape[-1], v.shape[-1]
    added = added_scores(masking, q.shape[0], heads, scale)
    near = min(rule.k, k.shape[2]) if isinstance(rule, Nearest) else 0
    # The kernels of the nearest rule have weights of their own; what stands for the profile is not called.
    profile, derivative = kernel.device_profile, kernel.device_derivative
    if profile is None or derivative is None:
        profile = derivative = Gaussian.device_profile
    block, tail = _cut(_seen(masking))
    return {
        **strides("q", q), **strides("k", k), **strides("v", v), **strides("s", scale),
        "a_b": added.numbers["a_b"], "a_h": added.numbers["a_h"], "heads": heads, "group": heads // k.shape[1],
        "q_len": q.shape[2], "k_len": _seen(masking), "all_keys": k.shape[2], "left": bounded(masking.left),
        "right": bounded(masking.right), "offset": masking.offset, "order": problem.order,
        "tolerance": _TOLERANCE, "drop": problem.dropout_p, "near": near,
        "D": size, "DP": padded(size), "E": value_size, "EP": padded(value_size), "BN": block, "TAIL": tail,
        "PROFILE": device_function(profile), "SLOPE": device_function(derivative),
        "RULE": problem.rule, "EMPTY": problem.empty,
        "POWER": isinstance(kernel, RectifiedPolynomial), "SMOOTH": isinstance(kernel, Gaussian),
        "EUCLIDEAN": problem.euclidean, "ALIBI": added.flags["ALIBI"], "UNIFORM": scale.stride(2) == 0,
        "DROPOUT": problem.dropout_p > 0, "STEPS": STEPS, "PRECISION": "tf32",
    }  # fmt: skip


def _blocks(constants: dict[str, Any], backward: bool) -> dict[str, Any]:
    """Launch parameters; adds to ``constants`` what follows from them."""
    nearest = constants["RULE"] == NEAREST
    wide = max(constants["D"], constants["E"]) > _NARROW
    rows, warps = TUNED[wide][backward or nearest]
    # No larger than the queries need, and each warp has 16.
    while rows > 16 and rows // 2 >= constants["q_len"]:
        rows, warps = rows // 2, max(1, warps // 2)
    constants.update(blocks=triton.cdiv(constants["q_len"], rows), EVEN=constants["q_len"] % rows == 0)
    config: dict[str, Any] = {"RM": rows, "num_warps": warps, "num_stages": 1}
    if nearest:
        # A fused multiply-add at one place and not at another would tell tied keys apart.
        config["enable_fp_fusion"] = False
    return config


def short_forward_pass(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor) -> Forward:
    """The output and the levels; ``scale`` (B, H, Lq) float32."""
    given = given_tensors(problem, q, k, v, scale, seed)
    rows = tuple(q.shape[:3])

    def start(plan: Plan, tensors: dict[str, Tensor]) -> None:
        constants = {**_constants(problem, tensors), **strides("o", tensors["OUT"])}
        config = _blocks(constants, False)
        plan.launch(short_forward, constants["blocks"] * rows[0] * rows[1], config, tensors, constants)

    tensors = carry_out(
        key_of(problem, given, "short forward"), given,
        lambda: {"OUT": Made((*rows, v.shape[-1]), v.dtype), "LEVEL": Made(rows, torch.float32)}, start,
    )  # fmt: skip
    return Forward(tensors["OUT"], (), (tensors["LEVEL"],))


def short_backward_pass(
    problem: Problem,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    seed: Tensor,
    saved: tuple[Tensor, ...],
    needs: set[str],
) -> dict[str, Tensor]:
    """The gradients of the names in ``needs``: q, k, v in their dtype; scale and slopes (B, H, Lq) in float32."""
    given = given_tensors(problem, q, k, v, scale, seed)
    given.update(LEVEL=saved[0], GRAD=grad)
    batch, heads, key_heads = q.shape[0], q.shape[1], k.shape[1]
    per_key = torch.float32 if heads > key_heads else k.dtype
    unseen = _seen(problem.masking) < k.shape[2]

    def made() -> dict[str, Made | None]:
        rows = tuple(q.shape[:3])
        return {
            "D_Q": Made(tuple(q.shape), q.dtype),
            "D_K": Made((batch, heads, *k.shape[2:]), per_key, unseen),
            "D_V": Made((batch, heads, *v.shape[2:]), per_key, unseen),
            "D_SCALE": Made(rows, torch.float32) if "scale" in needs else None,
            "D_SLOPE": Made(rows, torch.float32) if "slopes" in needs else None,
        }

    def start(plan: Plan, tensors: dict[str, Tensor]) -> None:
        constants = {
            **_constants(problem, tensors), **strides("g", tensors["GRAD"]),
            "NEED_SCALE": "scale" in needs, "NEED_SLOPE": "slopes" in needs,
        }  # fmt: skip
        config = _blocks(constants, True)
        plan.launch(short_backward, batch * heads, config, tensors, constants)

    tensors = carry_out(key_of(problem, given, "short backward", frozenset(needs)), given, made, start)
    return gradients_of(tensors, needs, q, k, v)
