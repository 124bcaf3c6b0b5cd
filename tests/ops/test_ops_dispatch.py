"""Which backend runs: an explicit choice never falls back, "auto" says once what it chose."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import epan
from epan.errors import EpanError, UnsupportedError
from epan.normalizations import Stats
from epan.ops import attention as _public
from epan.ops.attention import choose_backend
from epan.ops.triton import support
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


def on_a_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that says it is on a GPU, wherever this runs."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda:0")


def test_auto_takes_triton_on_a_gpu_for_what_it_has_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_found", {torch.device("cuda:0"): None})
    query = on_a_gpu(1, 2, 5, 64)
    name, reason = choose_backend(query)
    assert name == "triton"
    assert "NVIDIA" in reason
    learnt = epan.Polynomial(order=torch.tensor(2.0))
    radius = epan.Uniform(radius=1.0)
    for changes, word in (
        ({"query": on_a_gpu(1, 2, 5, 64, dtype=torch.float64)}, "float64"),
        ({"query": on_a_gpu(1, 2, 5, 257)}, "head size"),
        ({"value": on_a_gpu(1, 2, 5, 264)}, "head size"),
        ({"kernel": learnt}, "order"),
        ({"kernel": radius, "normalization": epan.Fixed()}, "uniform"),
    ):
        name, reason = choose_backend(**{"query": query, **changes})
        assert name == "tiled"
        assert "not triton, because" in reason
        assert word in reason
    assert (
        choose_backend(query, kernel=epan.kernels.get("gaussian"), normalization=epan.Fixed(empty="zero"))[0]
        == "triton"
    )
    for kernel in ("gaussian", "uniform"):
        assert choose_backend(query, None, epan.kernels.get(kernel), epan.Nearest(k=3))[0] == "triton"


def test_auto_leaves_other_dtypes_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_found", {torch.device("cuda:0"): None})
    for dtype in (torch.float16, torch.float32):
        name, reason = choose_backend(on_a_gpu(1, 2, 5, 64, dtype=dtype))
        assert name == "tiled"
        assert 'backend="triton"' in reason


def test_without_a_gpu_that_can_auto_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    query = on_a_gpu(1, 2, 5, 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(support, "_assembler_obstacle", lambda: None)
    for capability, expected in (((7, 5), "tiled"), ((8, 0), "triton"), ((9, 0), "triton")):
        monkeypatch.setattr(support, "_found", {})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_backend(query)[0] == expected
    monkeypatch.setattr(support, "_found", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name, reason = choose_backend(query)
    assert name == "tiled"
    assert "Triton is not installed" in reason


def test_triton_asked_for_by_name_never_falls_back(calls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="epan"):
        for call in (lambda: attend("triton"), lambda: attend_packed("triton")):
            with pytest.raises(UnsupportedError, match="backend='triton' with an input on 'cpu'") as caught:
                call()
            assert caught.value.fix
    assert not calls
    assert not caplog.records


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
    assert stats._fields == ("threshold", "support_size", "partition", "tile_density")
    assert stats.tile_density is None, "only backends that leave out whole tiles know a density"
    for field in stats[:3]:
        assert field.shape == (2, 4, 5)
        assert not field.requires_grad
    x, offsets = torch.randn(5, 4, 8, requires_grad=True), torch.tensor([0, 2, 4])
    _, packed = epan.attention_varlen(x, x, x, offsets, offsets, 2, 2, return_stats=True, backend=name)
    for field in packed[:3]:
        assert field.shape == (5, 4)  # type: ignore[union-attr]
        assert not field.requires_grad  # type: ignore[union-attr]
