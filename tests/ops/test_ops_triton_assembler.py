"""The assembler of the fused kernels: one that is known to get them wrong is passed over, or the backend says no."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from epan.ops.triton import support

triton = pytest.importorskip("triton")
assembler: Any = importlib.import_module("epan.ops.triton.assembler")


class Tools:
    """``triton.knobs.nvidia`` of a Triton that brings these assemblers."""

    def __init__(self, own: str, other: str | None) -> None:
        self.ptxas = SimpleNamespace(path="bin/ptxas", version=own)
        if other is not None:
            self.ptxas_blackwell = SimpleNamespace(path="bin/ptxas-blackwell", version=other)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)


def bring(monkeypatch: pytest.MonkeyPatch, own: str, other: str | None, driver: int) -> None:
    monkeypatch.setattr(assembler.triton.knobs, "nvidia", Tools(own, other))
    monkeypatch.setattr(assembler, "_driver", lambda: (driver // 1000, driver % 1000 // 10))


@pytest.mark.parametrize(
    ("own", "other", "driver", "path", "version"),
    [
        pytest.param("12.8", "12.9", 12080, "bin/ptxas-blackwell", (12, 9), id="Triton 3.6"),
        pytest.param("12.8", "13.1", 13000, "bin/ptxas-blackwell", (13, 1), id="Triton 3.7, driver of CUDA 13"),
        pytest.param("12.8", "13.1", 12080, "bin/ptxas", (12, 8), id="Triton 3.7, driver of CUDA 12"),
        pytest.param("12.9", "13.1", 13000, "bin/ptxas", (12, 9), id="Triton 3.8"),
        pytest.param("12.8", None, 13000, "bin/ptxas", (12, 8), id="no other"),
        pytest.param("13.0", None, 13000, "bin/ptxas", (13, 0), id="a later one"),
        pytest.param("12.4", "12.8", 13000, "bin/ptxas", (12, 4), id="two that are too old"),
    ],
)
def test_the_assembler_is_the_first_that_is_recent_enough(
    monkeypatch: pytest.MonkeyPatch, own: str, other: str | None, driver: int, path: str, version: tuple[int, ...]
) -> None:
    bring(monkeypatch, own, other, driver)
    assert assembler.chosen() == (path, version)


def test_the_assembler_that_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", "bin/ptxas")
    bring(monkeypatch, "12.8", "12.9", 12080)
    assert assembler.chosen() == ("bin/ptxas", (12, 8))


def test_one_that_is_too_old_keeps_hopper_from_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, "12.8", None, 13000)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    found = support._examine(torch.device("cuda"))
    assert found is not None
    assert "12.8" in found.reason
    assert "TRITON_PTXAS_PATH to a ptxas of CUDA 12.9" in found.fix

    bring(monkeypatch, "12.9", None, 13000)
    assert support._examine(torch.device("cuda")) is None
    # Other GPUs have no warp-group products.
    bring(monkeypatch, "12.8", None, 13000)
    capability = (8, 0)
    assert support._examine(torch.device("cuda")) is None


def test_a_kernel_is_assembled_by_it_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ``_do_compile`` of the Triton that is installed: if that is gone, kernels no longer pass through here."""
    tools = triton.knobs.nvidia
    own, other = tools.ptxas, getattr(tools, "ptxas_blackwell", None)
    if other is None:
        pytest.skip("this Triton brings one assembler")

    def kernel() -> None: ...

    # The class, because in the interpreter ``triton.jit`` makes something else.
    made = triton.runtime.jit.JITFunction(kernel)
    seen: list[str] = []
    monkeypatch.setattr(type(made), "_do_compile", lambda *_: seen.append(tools.ptxas.path))
    monkeypatch.setattr(triton, "jit", lambda function: made)
    monkeypatch.setattr(assembler, "chosen", lambda: (other.path, (13, 0)))
    triton.runtime.jit.JITFunction(kernel)._do_compile()
    assembler.entry(kernel)._do_compile()
    triton.runtime.jit.JITFunction(kernel)._do_compile()
    assert seen == [own.path, other.path, own.path]
