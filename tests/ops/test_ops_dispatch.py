"""Which backend runs: an explicit choice never falls back, "auto" says once what it chose."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import epan
from epan.errors import EpanError
from epan.normalizations import Stats
from epan.ops import attention as _public
from epan.testing import catalogue, tolerance

MODULE = "epan.ops.attention"
BACKENDS = catalogue.backends()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that ran, in order."""
    module = importlib.import_module(MODULE)
    seen: list[str] = []
    for name in BACKENDS:
        original = getattr(module, f"{name}_attention")

        def spy(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            seen.append(name)
            return original(*args, **options)

        monkeypatch.setattr(module, f"{name}_attention", spy)
    monkeypatch.setattr(module, "_announced", set())
    return seen


def attend(name: str | None, **options: Any) -> Tensor:
    chosen = {} if name is None else {"backend": name}
    return _public(*inputs(), enable_gqa=True, **chosen, **options)


def attend_packed(name: str) -> Any:
    x, offsets = torch.randn(5, 2, 4), torch.tensor([0, 2, 5])
    return epan.attention_varlen(x, x, x, offsets, offsets, 3, 3, backend=name)


def test_each_name_runs_that_backend_and_no_other(calls: list[str]) -> None:
    for name in BACKENDS:
        for options in ({}, {"is_causal": True}, {"return_stats": True}, {"dropout_p": 0.5}, {"kernel": "gaussian"}):
            attend(name, **options)
            assert calls == [name]
            calls.clear()
        attend_packed(name)
        assert calls == [name]
        calls.clear()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_failing_backend_is_not_replaced(name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        calls.append(name)
        raise EpanError("not today")

    monkeypatch.setattr(importlib.import_module(MODULE), f"{name}_attention", fail)
    for call in (lambda: attend(name), lambda: attend_packed(name)):
        calls.clear()
        with pytest.raises(EpanError, match="not today"):
            call()
        assert calls == [name]


def test_auto_takes_tiled_and_under_transforms_eager(calls: list[str]) -> None:
    attend(None)
    attend("auto")
    attend_packed("auto")
    assert calls == ["tiled"] * 3
    calls.clear()
    vmap(lambda x: epan.attention(x, x, x))(torch.randn(3, 1, 2, 4, 8))
    assert calls == ["eager"]


def test_auto_logs_each_choice_once_with_its_reason(calls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="epan"):
        for _ in range(3):
            attend("auto")
        attend_packed("auto")
        assert len(caplog.records) == 1
        for _ in range(2):
            vmap(lambda x: epan.attention(x, x, x))(torch.randn(3, 1, 2, 4, 8))
    first, second = (record.getMessage() for record in caplog.records)
    assert "'tiled'" in first
    assert "memory linear" in first
    assert "'eager'" in second
    assert "functorch" in second
    assert {record.name for record in caplog.records} == {"epan"}
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert len(calls) == 6


def test_an_explicit_choice_logs_nothing(calls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="epan"):
        for name in BACKENDS:
            attend(name)
    assert not caplog.records
    assert calls == list(BACKENDS)


def test_every_backend_gives_the_same_answer_within_rounding() -> None:
    """The defaults: biweight, adaptive, dot, 1/√D."""
    q, k, v = (t.double() for t in inputs())
    expected = epan.attention(q, k, v, enable_gqa=True, backend="eager")
    for name in ("auto", "tiled"):
        tolerance.assert_within(
            epan.attention(q, k, v, enable_gqa=True, backend=name), expected, band=tolerance.EXACT, label=name
        )
    spelt_out = epan.attention(
        q, k, v, None, 0.0, False, 1 / math.sqrt(8), True, kernel="biweight", normalization="adaptive", similarity="dot"
    )
    tolerance.assert_equal_bits(spelt_out, epan.attention(q, k, v, enable_gqa=True))


@pytest.mark.parametrize("name", [*BACKENDS, "auto"])
def test_statistics_come_only_if_asked_for(name: str) -> None:
    assert isinstance(attend(name), Tensor)
    pair = _public(*inputs(), enable_gqa=True, return_stats=True, backend=name)
    assert isinstance(pair, tuple)
    out, stats = pair
    assert isinstance(out, Tensor)
    assert isinstance(stats, Stats)
    assert stats._fields == ("threshold", "support_size", "partition")
    for field in stats:
        assert field.shape == (2, 4, 5)
        assert not field.requires_grad
    x, offsets = torch.randn(5, 4, 8, requires_grad=True), torch.tensor([0, 2, 4])
    _, packed = epan.attention_varlen(x, x, x, offsets, offsets, 2, 2, return_stats=True, backend=name)
    for field in packed:
        assert field.shape == (5, 4)  # type: ignore[union-attr]
        assert not field.requires_grad  # type: ignore[union-attr]
