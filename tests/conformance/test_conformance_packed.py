"""attention_varlen against each sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from epan.testing import catalogue, conformance
from epan.testing.catalogue import Entry
from epan.testing.conformance import PackedCase
from epan.testing.execution import varlen_backend
from epan.testing.inputs import Case

BACKENDS = catalogue.backends()
# A tensor order per head has a leading dimension of its own and is tried in the operator tests.
LEGAL = [entry for entry in catalogue.legal() if entry.order is None]
BASE = Case(heads=4, key_heads=2, value_size=5)
CASES = [
    PackedCase(base=BASE),
    PackedCase(q_lens=(0, 4, 0, 0, 7, 0), scale="head", base=BASE),
    PackedCase(q_lens=(5, 2), tail=3, scale="token", base=BASE.but(is_causal=True, alibi="head")),
    PackedCase(q_lens=(3, 6, 1), k_lens=(8, 0, 2), scale="token", base=BASE.but(window=(1, 2))),
    PackedCase(q_lens=(3, 0, 4), k_lens=(0, 5, 9), tail=2, scale=0.7, base=BASE.but(window=(None, -1), alibi="head")),
    PackedCase(q_lens=(2, 2, 2), k_lens=(3, 1, 4), base=BASE.but(window=(-1, 3))),
    PackedCase(q_lens=(0, 0), tail=4, scale="head", base=BASE),
    PackedCase(q_lens=(70, 1, 150), scale="head", base=BASE.but(is_causal=True, spread=2.0, heads=2, key_heads=1)),
    PackedCase(q_lens=(140, 60), k_lens=(30, 190), base=BASE.but(window=(40, 9), spread=2.0, heads=1, key_heads=1)),
]
REPRESENTATIVES = [
    Case(),
    Case(kernel="epanechnikov", normalization="anchored"),
    Case(kernel="triweight", normalization="fixed", similarity="euclidean"),
    Case(kernel="gaussian"),
]


def yardstick(name: str) -> Callable[..., Any] | None:
    return None if name == "eager" else varlen_backend("eager")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", REPRESENTATIVES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_sequence_is_as_if_alone(case: PackedCase, kind: Case, name: str) -> None:
    base = case.base.but(kernel=kind.kernel, normalization=kind.normalization, similarity=kind.similarity)
    packed = PackedCase(case.q_lens, case.k_lens, case.tail, case.scale, base)
    conformance.packs_sequences(varlen_backend(name), packed)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("entry", LEGAL, ids=str)
def test_every_combination_takes_packed_sequences(entry: Entry, name: str) -> None:
    base = entry.case(heads=2, key_heads=1, alibi="head", dtype=torch.float32)
    case = PackedCase(q_lens=(4, 0, 6), k_lens=(7, 3, 5), tail=1, scale="head", base=base)
    conformance.packs_sequences(varlen_backend(name), case, yardstick(name))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions(dtype: torch.dtype, name: str) -> None:
    for case in CASES[:3]:
        base = case.base.but(dtype=dtype)
        packed = PackedCase(case.q_lens, case.k_lens, case.tail, case.scale, base)
        conformance.packs_sequences(varlen_backend(name), packed, yardstick(name))
