"""``epan bench``: how fast attention is here, and the launch parameters of the fused kernels for this GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from epan.cli.output import print_table
from epan.cli.wording import in_options
from epan.errors import EpanError

if TYPE_CHECKING:
    import torch

__all__ = ["BenchOptions", "bench"]

#: Scores of the eager backend above which it is left out, in bytes.
EAGER_LIMIT = 1 << 30
# Intermediate tensors of the size of the scores that it holds at its peak, forward and backward.
EAGER_COPIES = 6
_ONLY = {
    "quick": ("batch", "heads", "length", "size", "dtype", "kernel", "normalization", "device", "full", "forward_only"),
    "tune": ("schedules", "sizes", "dtypes", "out", "dry"),
}


@Parameter(name="*")
@dataclass(frozen=True)
class BenchOptions:
    """Options of ``epan bench``; --seconds belongs to both parts, the others to the part that their help names."""

    seconds: Annotated[
        float | None, Parameter(help="Seconds of timing: in all (quick, 5) or per candidate (tune, 0.2).")
    ] = None
    batch: Annotated[int | None, Parameter(help="quick: sequences (1).")] = None
    heads: Annotated[int | None, Parameter(help="quick: heads (16 on a GPU, else 4).")] = None
    length: Annotated[int | None, Parameter(help="quick: tokens (16384 on a GPU, else 1024).")] = None
    size: Annotated[int | None, Parameter(help="quick: head size (64).")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None, Parameter(help="quick: bfloat16 on a GPU, else float32.")
    ] = None
    kernel: Annotated[str | None, Parameter(help="quick: kernel (biweight).")] = None
    normalization: Annotated[str | None, Parameter(help="quick: normalization (adaptive).")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None, Parameter(help="quick: where to compute (auto).")
    ] = None
    full: Annotated[bool, Parameter(negative="", help="quick: without a causal mask.")] = False
    forward_only: Annotated[bool, Parameter(negative="", help="quick: no backward pass.")] = False
    schedules: Annotated[
        tuple[str, ...], Parameter(negative="", consume_multiple=True, help="tune: only these schedules (all).")
    ] = ()
    sizes: Annotated[
        tuple[str, ...], Parameter(negative="", consume_multiple=True, help="tune: head sizes (64,128).")
    ] = ()
    dtypes: Annotated[
        tuple[Literal["bfloat16", "float16", "float32"], ...],
        Parameter(negative="", consume_multiple=True, help="tune: dtypes (bfloat16 float16)."),
    ] = ()
    out: Annotated[Path | None, Parameter(help="tune: the file to write (the user's cache folder).")] = None
    dry: Annotated[bool, Parameter(name="--no-save", negative="", help="tune: only show what is fastest.")] = False


def bench(
    what: Annotated[
        Literal["quick", "tune"], Parameter(help="Time attention here, or tune the fused kernels.")
    ] = "quick",
    /,
    *,
    options: BenchOptions | None = None,
) -> int:
    """Time attention on this machine (quick), or find the fastest launch parameters of the fused kernels (tune).

    Parameters
    ----------
    what: "quick" times the backends of epan beside PyTorch's own attention; "tune" needs an NVIDIA GPU.
    """
    options = options or BenchOptions()
    _check(what, options)
    if what == "tune":
        from epan.cli.tuning import tune

        return tune(options.schedules, options.sizes, options.dtypes, options.seconds or 0.2, options.out, options.dry)
    return _quick(options)


def _check(what: str, options: BenchOptions) -> None:
    other = "tune" if what == "quick" else "quick"
    defaults = BenchOptions()
    given = [f.name for f in fields(options) if getattr(options, f.name) != getattr(defaults, f.name)]
    foreign = [name for name in given if name in _ONLY[other]]
    if foreign:
        shown = "--no-save" if foreign[0] == "dry" else "--" + foreign[0].replace("_", "-")
        raise EpanError(f"{shown} belongs to epan bench {other}, not to epan bench {what}", fix="leave it out")
    for name in ("seconds", "batch", "heads", "length", "size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise EpanError(f"--{name} must be above zero", found=value, fix=f"e.g. --{name} 4")


def _device(asked: str | None) -> str:
    import torch

    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    best = next(name for name in ("cuda", "mps", "cpu") if usable[name])
    if asked in (None, "auto"):
        return best
    if not usable[asked]:
        raise EpanError(f"torch finds no {asked} device here", fix=f"--device {best}")
    return asked


def _quick(options: BenchOptions) -> int:
    import torch

    from epan.kernels import get as get_kernel
    from epan.normalizations import get as get_normalization
    from epan.training.choices import parse_choice

    device = torch.device(_device(options.device))
    on_gpu = device.type == "cuda"
    batch, heads = options.batch or 1, options.heads or (16 if on_gpu else 4)
    length, size = options.length or (16384 if on_gpu else 1024), options.size or 64
    dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    names = {"kernel": options.kernel or "biweight", "normalization": options.normalization or "adaptive"}
    with in_options():
        kernel = get_kernel(parse_choice(names["kernel"], "kernel"))
        rule = get_normalization(parse_choice(names["normalization"], "normalization"))
        similarity = "euclidean" if rule.name == "fixed" else "dot"
        rule.check(kernel, similarity)
    torch.manual_seed(0)
    q, k, v, grad = (
        torch.randn(batch, heads, length, size, device=device, dtype=getattr(torch, dtype)) for _ in range(4)
    )
    leaves = [t.requires_grad_() for t in (q, k, v)]
    arguments = {"is_causal": not options.full, "kernel": kernel, "normalization": rule, "similarity": similarity}
    methods, notes = _methods(leaves, arguments, device)
    where = torch.cuda.get_device_name(device) if on_gpu else f"{device.type}, {torch.get_num_threads()} threads"
    print(f"{names['kernel']}, {names['normalization']}, {'full' if options.full else 'causal'}, B={batch} H={heads} "
          f"L={length} D={size}, {dtype}, {where}, torch {torch.__version__}", flush=True)  # fmt: skip
    rows = _rows(methods, notes, leaves, grad, device, options)
    columns = ["method", "forward ms", "quartiles", "with backward ms", "quartiles", "times SDPA"]
    if options.forward_only:
        del columns[3:5]
    print_table(columns, rows)
    for name, reason in notes.items():
        print(f"{name}: {reason}")
    print("Inputs are independent normal numbers, which leave few tiles empty: the hardest case for sparse kernels.")
    return 0


def _methods(
    leaves: list[torch.Tensor], arguments: dict[str, Any], device: torch.device
) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """(name → forward pass, name → why it is left out)."""
    import torch

    from epan.ops import attention
    from epan.ops.attention import BACKENDS

    q, k, v = leaves
    batch, heads, length, _ = q.shape
    causal = bool(arguments["is_causal"])

    def ours(backend: str) -> Callable[[], torch.Tensor]:
        return lambda: attention(q, k, v, **arguments, backend=backend)

    def dense() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    methods: dict[str, Callable[[], torch.Tensor]] = {"torch SDPA (softmax)": dense}
    notes: dict[str, str] = {}
    scores = EAGER_COPIES * 4 * batch * heads * length**2
    for backend in BACKENDS:
        name = f"epan {backend}"
        if backend == "eager" and scores > EAGER_LIMIT:
            notes[name] = f"left out, it would need about {scores / 2**30:.0f} GiB"
        elif backend == "triton" and device.type != "cuda":
            notes[name] = "left out, it needs an NVIDIA GPU"
        elif backend != "auto":
            methods[name] = ours(backend)
    return methods, notes


def _rows(
    methods: dict[str, Callable[[], torch.Tensor]],
    notes: dict[str, str],
    leaves: list[torch.Tensor],
    grad: torch.Tensor,
    device: torch.device,
    options: BenchOptions,
) -> list[list[str]]:
    """The lines of the table; a method that refuses is moved to the notes."""
    import torch

    from epan._timing import alternate, quartiles

    for name in list(methods):
        try:
            methods[name]()
        except (EpanError, torch.cuda.OutOfMemoryError) as error:
            notes[name] = f"left out, {error}"
            del methods[name]

    def ahead(forward: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return torch.no_grad()(forward)

    def both(forward: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    forwards = {name: ahead(forward) for name, forward in methods.items()}
    steps = {name: both(forward) for name, forward in methods.items()}
    passes: tuple[Mapping[str, Callable[[], object]], ...] = (forwards,) if options.forward_only else (forwards, steps)
    seconds = (options.seconds or 5.0) / len(passes)
    times = [{name: quartiles(found) for name, found in alternate(part, device, seconds).items()} for part in passes]
    base = next(iter(times[-1].values()))[0]
    rows = []
    for name in methods:
        cells = [
            text for part in times for text in (f"{part[name][0]:.3f}", f"{part[name][1]:.3f}-{part[name][2]:.3f}")
        ]
        rows.append([name, *cells, f"{times[-1][name][0] / base:.2f}"])
    return rows
