"""torch.compile in one graph on both backends, few recompilations, and torch.export with a dynamic length."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import epan
from epan.testing import catalogue, tolerance

BACKENDS = catalogue.backends()
# Made here and not in the compiled function, whose trace they would be part of.
KINDS: dict[str, dict[str, Any]] = {
    "biweight": {"kernel": "biweight"},
    "gaussian": {"kernel": "gaussian"},
    "relumax": {"kernel": "epanechnikov", "normalization": "anchored"},
    "fixed": {"kernel": "cosine", "normalization": "fixed", "similarity": "euclidean"},
    "fixed-zero": {"kernel": "biweight", "normalization": epan.Fixed(empty="zero"), "similarity": "euclidean"},
    "radius": {"kernel": epan.Uniform(radius=2.0), "normalization": "fixed", "similarity": "euclidean"},
    "nearest": {"kernel": "gaussian", "normalization": epan.Nearest(k=2)},
    "order-40": {"kernel": epan.Polynomial(order=40.0)},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class CountingBackend:
    """Runs the graph as it is, counts how often one was made, and remembers which operators it held."""

    def __init__(self) -> None:
        self.graphs = 0
        self.operators: set[str] = set()

    def __call__(self, module: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        self.operators |= {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
        return module.forward


def leaves(length: int = 6, dtype: torch.dtype = torch.float64, key_heads: int = 2) -> list[Tensor]:
    """query, key, value, scale, float mask, slopes, order; the same numbers at each call."""
    torch.manual_seed(length)
    shapes = [(1, 2, length, 4), (1, key_heads, length, 4), (1, key_heads, length, 3)]
    drawn = [torch.randn(shape).to(dtype) for shape in shapes]
    wide = torch.promote_types(dtype, torch.float32)
    rest = [0.5 + torch.rand(2, 1, 1), torch.randn(length, length), torch.rand(2), 1.0 + 3.0 * torch.rand(2, 1, 1)]
    return [t.requires_grad_() for t in (*drawn, *(t.to(wide) for t in rest))]


def compare(function: Callable[..., Tensor], compiled: Callable[..., Tensor], make: Callable[[], list[Tensor]]) -> None:
    """The same bits from both, forward and backward."""
    ours, theirs = make(), make()
    out, expected = compiled(*ours), function(*theirs)
    assert out.requires_grad == expected.requires_grad
    tolerance.assert_equal_bits(out.detach(), expected.detach(), "out")
    grads = torch.autograd.grad(out.sin().sum(), ours, allow_unused=True)
    wanted = torch.autograd.grad(expected.sin().sum(), theirs, allow_unused=True)
    for number, (grad, reference) in enumerate(zip(grads, wanted, strict=True)):
        blank = torch.zeros_like(ours[number])
        grad, reference = (blank if t is None else t for t in (grad, reference))
        tolerance.assert_equal_bits(grad, reference, f"gradient of input {number}")


def attend(name: str, **options: Any) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, mask: Tensor, slopes: Tensor, order: Tensor) -> Tensor:
        given = {"scale": scale, "attn_mask": mask, "alibi_slopes": slopes, "enable_gqa": q.shape[1] != k.shape[1]}
        return epan.attention(q, k, v, backend=name, **{**given, **options})

    return call


def compile_whole(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **options})


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_with_everything_at_once(kind: str, name: str) -> None:
    function = attend(name, is_causal=True, **KINDS[kind])
    compare(function, compile_whole(function), leaves)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_learnt_order_in_one_graph(name: str) -> None:
    def function(*inputs: Tensor) -> Tensor:
        return attend(name, kernel=epan.Polynomial(order=inputs[-1]))(*inputs)

    compare(function, compile_whole(function), leaves)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_shared_key_heads_and_lower_precision_in_one_graph(dtype: torch.dtype, name: str) -> None:
    function = attend(name, window=(3, 0))
    compare(function, compile_whole(function), lambda: leaves(dtype=dtype, key_heads=1))


@pytest.mark.parametrize("name", BACKENDS)
def test_autocast_inside_the_graph(name: str) -> None:
    def function(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(name)(*inputs)

    compare(function, compile_whole(function), lambda: leaves(dtype=torch.float32))


@pytest.mark.parametrize("name", BACKENDS)
def test_statistics_in_one_graph(name: str) -> None:
    def function(*inputs: Tensor) -> Any:
        return attend(name, return_stats=True)(*inputs)

    out, stats = compile_whole(function)(*leaves())
    _, expected = function(*leaves())
    for field, value, reference in zip(stats._fields[:3], stats[:3], expected[:3], strict=True):
        tolerance.assert_equal_bits(value, reference, field)
        assert not value.requires_grad
    assert out.requires_grad


@pytest.mark.parametrize("name", BACKENDS)
def test_dropout_in_one_graph_follows_the_seed(name: str) -> None:
    function = attend(name, dropout_p=0.5)
    compiled = compile_whole(function)
    outs = []
    for call, seed in ((compiled, 1), (compiled, 1), (function, 1), (compiled, 2)):
        inputs = leaves(length=12)
        torch.manual_seed(seed)
        outs.append(call(*inputs).detach())
    tolerance.assert_equal_bits(outs[1], outs[0], "second call")
    tolerance.assert_equal_bits(outs[2], outs[0], "uncompiled")
    assert not torch.equal(outs[3], outs[0])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "option",
    [
        lambda number: {"scale": number / 4},
        lambda number: {"scale": number},
        lambda number: {"window": (number, 0)},
        lambda number: {"is_causal": number > 1},
    ],
    ids=["float scale", "integer scale", "window", "causal"],
)
def test_numbers_that_change_become_symbols(option: Callable[[int], dict[str, Any]], name: str) -> None:
    """One graph for the first number and one for all others."""
    counter = CountingBackend()

    def function(x: Tensor, number: int) -> Tensor:
        return epan.attention(x, x, x, backend=name, **option(number))

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    x = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    for number in (2, 3, 4, 5):
        tolerance.assert_within(compiled(x, number), function(x, number), band=tolerance.EXACT)
    assert counter.graphs <= 2


@pytest.mark.parametrize("name", BACKENDS)
def test_packed_sequences_in_one_graph(name: str) -> None:
    offsets = torch.tensor([0, 2, 2, 6], dtype=torch.int32)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        packed = epan.attention_varlen(q, k, v, offsets, offsets, 4, 4, is_causal=True, backend=name)
        assert isinstance(packed, Tensor)
        return packed

    def make() -> list[Tensor]:
        torch.manual_seed(0)
        return [torch.randn(7, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    compare(function, compile_whole(function), make)


def test_auto_puts_the_tiled_operator_into_the_graph() -> None:
    for name, expected in (("auto", True), ("tiled", True), ("eager", False)):
        counter = CountingBackend()
        torch.compile(attend(name), fullgraph=True, backend=counter)(*leaves())
        assert any("epan.tiled" in operator for operator in counter.operators) == expected


@pytest.mark.parametrize(("name", "most"), [("eager", 1), ("tiled", 3)])
@pytest.mark.parametrize("kind", ["biweight", "fixed"])
def test_a_dynamic_length_is_compiled_once(kind: str, name: str, most: int) -> None:
    """Once on eager; on tiled once more for several tiles of keys, and once for several blocks of queries."""
    counter = CountingBackend()
    function = attend(name, is_causal=True, **KINDS[kind])
    compiled = compile_whole(function, backend=counter, dynamic=True)
    for length in (7, 12):
        compare(function, compiled, lambda length=length: leaves(length))
    assert counter.graphs == 1
    for length in (100, 300, 33):
        compare(function, compiled, lambda length=length: leaves(length))
    assert counter.graphs <= most


@pytest.mark.parametrize("name", BACKENDS)
def test_lower_right_causal_as_a_window_of_symbolic_lengths(name: str) -> None:
    counter = CountingBackend()

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return epan.attention(q, k, v, window=(None, k.shape[2] - q.shape[2]), backend=name)

    compiled = compile_whole(function, backend=counter, dynamic=True)
    for q_len, k_len in ((3, 9), (4, 12), (5, 40)):

        def make(q_len: int = q_len, k_len: int = k_len) -> list[Tensor]:
            torch.manual_seed(0)
            return [torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (q_len, k_len, k_len)]

        compare(function, compiled, make)
    assert counter.graphs == 1


@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")), reason="inductor needs a C++ compiler"
)
@pytest.mark.parametrize("name", ["tiled", pytest.param("eager", marks=pytest.mark.slow)])
def test_inductor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    function = attend(name, kernel="biweight", is_causal=True)
    ours, theirs = leaves(), leaves()
    out, expected = torch.compile(function, fullgraph=True)(*ours), function(*theirs)
    # Generated code sums in another order than the library.
    tolerance.assert_within(out, expected, band=tolerance.EXACT)
    used = slice(0, 6)
    grads = torch.autograd.grad(out.sin().sum(), ours[used])
    for grad, reference in zip(grads, torch.autograd.grad(expected.sin().sum(), theirs[used]), strict=True):
        tolerance.assert_within(grad, reference, band=tolerance.EXACT * max(1.0, tolerance.largest(reference)))


class Module(torch.nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return epan.attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    ("kind", "strict"),
    [("biweight", True), *((kind, False) for kind in ("biweight", "fixed", "nearest"))],
)
def test_an_exported_program_takes_any_length(kind: str, strict: bool) -> None:
    """ "auto" exports the eager backend, so the program needs nothing of this package's operators but the threshold."""
    options = {**KINDS[kind], "is_causal": True}
    length = torch.export.Dim("length", min=2, max=4096)
    example = tuple(t.detach() for t in leaves(9)[:3])
    program = torch.export.export(Module(options), example, dynamic_shapes=[{2: length}] * 3, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("epan.tiled" in target for target in targets)
    module = program.module()
    for size in (9, 5, 150):
        q, k, v = (t.detach() for t in leaves(size)[:3])
        expected = epan.attention(q, k, v, backend="eager", **options)
        tolerance.assert_within(module(q, k, v), expected, band=tolerance.EXACT, label=f"length {size}")


def test_an_exported_program_takes_two_lengths() -> None:
    dims = [{2: torch.export.Dim("q_len")}, *[{2: torch.export.Dim("k_len")}] * 2]
    example = tuple(torch.randn(1, 2, n, 4) for n in (5, 9, 9))
    module = torch.export.export(Module({"backend": "eager"}), example, dynamic_shapes=dims).module()
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float32) for n in (3, 30, 30))
    assert module(q, k, v).shape == (1, 2, 3, 4)
    out64 = epan.attention(q.double(), k.double(), v.double(), backend="eager")
    tolerance.assert_within(
        module(q, k, v), out64, epan.attention(q, k, v, backend="eager"), band=tolerance.ROW_SUM[torch.float32]
    )
