"""Compiles the fused GPU kernels for sm_90 on a machine without a GPU: ``python tests/ops/compiled.py [CASE ...]``.

Prints a line per kernel: the case, its name, the number of matrix instructions of a warp group, and of those in TF32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import epan
from epan.masks import Masking
from epan.normalizations import Normalization
from epan.ops.triton.launch import Problem
from epan.ops.triton.schedules import backward, forward

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
seen: set[tuple[str, str]] = set()
case = ""


def compile_only(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **named: Any) -> None:
    """In the place of a launch: compiles the kernel for the arguments as the launcher would specialise them."""
    if (case, self.__name__) in seen:
        return
    seen.add((case, self.__name__))
    options = {name: named.pop(name) for name in OPTIONS if name in named}
    values = {**dict(zip(self.arg_names, args, strict=False)), **named}
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(self.params):
        value = values[parameter.name]
        kind = "fp32"
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            kind, constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            kind, hints[(place,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            kind = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                hints[(place,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    source = ASTSource(fn=self, signature=signature, constexprs=constants, attrs=hints)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    code = kernel.asm["ptx"]
    print(case, self.__name__, code.count("wgmma.mma_async"), code.count(".tf32."), flush=True)


def go(
    name: str,
    kernel: str,
    rule: str | Normalization,
    size: int,
    *,
    euclidean: bool = False,
    slopes: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    forward_only: bool = False,
) -> None:
    global case
    case = name
    length, heads = 512, 2
    q, k, v, grad = (torch.zeros(1, heads, length, size, dtype=dtype) for _ in range(4))
    scale, seed = torch.full((), 0.1).expand(1, heads, length), torch.zeros((), dtype=torch.long)
    alibi = torch.ones(1, heads, 1, 1) if slopes else None
    masking = Masking(length, length, None, None, 0, alibi)
    plain = not slopes
    problem = Problem(masking, epan.kernels.get(kernel), epan.normalizations.get(rule), euclidean, 0.0, plain)
    found = forward(problem, q, k, v, scale, seed, slopes)
    if forward_only:
        return
    needs = {"q", "k", "v"} | ({"scale", "slopes"} if slopes else set())
    backward(problem, grad, q, k, v, scale, seed, found.out, found.saved, needs)


def go_short(name: str, kernel: str, rule: str | epan.Nearest) -> None:
    """A block of keys with a tail, ALiBi and a scale with gradient."""
    global case
    case = name
    length, heads = 130, 2
    q, k, v, grad = (torch.zeros(1, heads, length, 16, dtype=torch.bfloat16) for _ in range(4))
    scale, seed = torch.full((1, heads, 1), 0.1).expand(1, heads, length), torch.zeros((), dtype=torch.long)
    masking = Masking(length, length, None, None, 0, torch.ones(1, heads, 1, 1))
    problem = Problem(masking, epan.kernels.get(kernel), epan.normalizations.get(rule), False, 0.1, False, True)
    found = forward(problem, q, k, v, scale, seed, False)
    backward(problem, grad, q, k, v, scale, seed, found.out, found.saved, {"q", "k", "v", "scale"})


CASES: dict[str, Callable[[], None]] = {
    "plain-64": lambda: go("plain-64", "biweight", "adaptive", 64),
    "plain-128": lambda: go("plain-128", "biweight", "adaptive", 128),
    "alibi": lambda: go("alibi", "epanechnikov", "anchored", 64, slopes=True),
    "short": lambda: go_short("short", "biweight", "adaptive"),
    "short-nearest": lambda: go_short("short-nearest", "gaussian", epan.Nearest(k=16)),
    "fixed": lambda: go("fixed", "triweight", "fixed", 64, euclidean=True),
    "float32-16": lambda: go("float32-16", "biweight", "adaptive", 16, dtype=torch.float32, forward_only=True),
    "float32-64": lambda: go("float32-64", "biweight", "adaptive", 64, dtype=torch.float32),
    "float32-128": lambda: go("float32-128", "biweight", "adaptive", 128, dtype=torch.float32),
    "nearest-64": lambda: go("nearest-64", "gaussian", epan.Nearest(k=4), 64, dtype=torch.float32),
    "nearest-128": lambda: go("nearest-128", "gaussian", epan.Nearest(k=4), 128, dtype=torch.float32),
}

if __name__ == "__main__":
    JITFunction.run = compile_only
    for name in sys.argv[1:] or CASES:
        CASES[name]()
