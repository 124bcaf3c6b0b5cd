"""Cases and the inputs they stand for: shapes, strides, contents, scales, masks; drawn in the target dtype first.

>>> case = Case(kernel="triweight", dtype=torch.bfloat16, mask="float", scale="head", alibi="head")
>>> inputs = case.build()
>>> out = epan.attention(inputs.query, inputs.key, inputs.value, **inputs.options())
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from ..kernels import Kernel, Polynomial
from ..kernels import get as get_kernel
from ..normalizations import Normalization
from ..normalizations import get as get_normalization
from .tolerance import NOISE, working_dtype

__all__ = ["CONTENTS", "LAYOUTS", "LOADED", "MASKS", "PER_QUERY", "SCALES", "SCORES", "Case", "Inputs", "make_scores"]

MASKS = (
    "none",
    "bool",
    "bool_full",
    "padding",
    "float",
    "float_full",
    "float_inf",
    "float32",
    "some_rows",
    "all_rows",
    "lower_right",
)
SCALES = (None, 0.7, "scalar", "head", "query")
LAYOUTS = ("contiguous", "heads_last", "sliced", "strided", "expanded")
CONTENTS = ("normal", "ties", "duplicates", "constant", "near", "huge_key", "unit")
SCORES = (
    "normal",
    "constant",
    "near",
    "ties",
    "offset_down",
    "offset_up",
    "wide",
    "one_huge",
    "sorted",
    "minus_infinity",
)


#: Changes of a case: everything at once that may be combined, biases, masks, shared key heads, strides.
LOADED: dict[str, Any] = {
    "scale": "head",
    "mask": "float_inf",
    "alibi": "head",
    "heads": 4,
    "key_heads": 2,
    "window": (6, 4),
    "layout": "heads_last",
}
#: The same with a number and a mask per query, an odd shape, and values of another size than the keys.
PER_QUERY: dict[str, Any] = {
    "scale": "query",
    "mask": "some_rows",
    "is_causal": True,
    "q_len": 9,
    "value_size": 5,
    "layout": "strided",
}


@dataclass(frozen=True)
class Inputs:
    """The arguments of one attention call, and the gradient that comes back into it.

    Attributes
    ----------
    query, key, value, grad: (B, H, Lq, D), (B, Hk, Lk, D), (B, Hk, Lk, Dv), (B, H, Lq, Dv).
    scale, attn_mask, alibi_slopes, order: differentiable where they are floating-point tensors.
    lower_right: whether ``attn_mask`` of the call is torch's causal_lower_right.
    noise: float64, added to the scores of a moved case; for oracles only.
    factor: (B, H, Lq, Lk) what dropout multiplied the weights by; for oracles only.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    kernel: Kernel
    normalization: Normalization
    similarity: str = "dot"
    scale: float | Tensor | None = None
    attn_mask: Tensor | None = None
    is_causal: bool = False
    lower_right: bool = False
    window: tuple[int | None, int | None] | None = None
    alibi_slopes: Tensor | None = None
    order: Tensor | None = None
    dropout_p: float = 0.0
    noise: Tensor | None = None
    factor: Tensor | None = None

    def leaves(self) -> dict[str, Tensor]:
        """Every differentiable tensor by name."""
        named = {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "scale": self.scale,
            "attn_mask": self.attn_mask,
            "alibi_slopes": self.alibi_slopes,
            "order": self.order,
        }
        return {name: t for name, t in named.items() if isinstance(t, Tensor) and t.is_floating_point()}

    def with_leaves(self, leaves: dict[str, Tensor]) -> Inputs:
        """The same inputs with some tensors replaced; a new order makes a new kernel."""
        changed: dict[str, Any] = dict(leaves)
        if "order" in leaves:
            changed["kernel"] = Polynomial(order=leaves["order"])
        return dataclasses.replace(self, **changed)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``epan.attention`` beside query, key and value."""
        options: dict[str, Any] = {
            "kernel": self.kernel,
            "normalization": self.normalization,
            "similarity": self.similarity,
        }
        if self.lower_right:
            options["attn_mask"] = causal_lower_right(self.query.shape[-2], self.key.shape[-2])
        elif self.attn_mask is not None:
            options["attn_mask"] = self.attn_mask
        if self.query.shape[1] != self.key.shape[1]:
            options["enable_gqa"] = True
        for name in ("scale", "window", "alibi_slopes"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        if self.is_causal:
            options["is_causal"] = True
        if self.dropout_p:
            options["dropout_p"] = self.dropout_p
        return options

    def beta(self) -> Tensor:
        """The scale in float64, of four dimensions; 1/√D if none is given."""
        scale = 1.0 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale
        beta = torch.as_tensor(scale, dtype=torch.float64).detach()
        return beta.reshape(*[1] * (4 - beta.dim()), *beta.shape)

    def moved(self, seed: int) -> Inputs:
        """Inputs in float64, off by some units in the last place of the precision that attention works in.

        Scores get noise as large as the rounding of the products that make them, so that a key within rounding of the
        boundary of the support may cross it.
        """
        generator = torch.Generator().manual_seed(seed)
        eps = NOISE * torch.finfo(working_dtype(self.query.dtype)).eps

        def shake(tensor: Tensor) -> Tensor:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
            return tensor.double() * (1 + eps * noise)

        q, k = self.query.double(), self.key.double()
        norms = q.norm(dim=-1, keepdim=True), k.norm(dim=-1).unsqueeze(-2).repeat_interleave(self._groups(), 1)
        # Heights and sums of a row are of the order of 1, and rounded as such.
        size = 1.0 + self.beta() * norms[0] * norms[1]
        if self.similarity == "euclidean":
            size = size + self.beta() * (norms[0] ** 2 + norms[1] ** 2) / 2
        mask = self.attn_mask
        if mask is not None and mask.is_floating_point():
            size = size + torch.where(torch.isfinite(mask), mask.double(), 0.0).abs()
        if self.alibi_slopes is not None:
            size = size + self.alibi_slopes.double().abs()[..., None, None] * self.key.shape[-2]
        noise = size * eps * (torch.rand(size.shape, generator=generator, dtype=torch.float64) * 2 - 1)
        leaves = {name: shake(leaf) for name, leaf in self.leaves().items() if name != "attn_mask"}
        if "order" in leaves:
            leaves["order"] = leaves["order"].clamp(min=1.0)
        return dataclasses.replace(self.with_leaves(leaves), grad=shake(self.grad), noise=noise)

    def _groups(self) -> int:
        return self.query.shape[1] // max(1, self.key.shape[1])


@dataclass(frozen=True)
class Case:
    """One call of an attention function, described by words; every field has a legal default.

    Attributes
    ----------
    kernel, normalization, similarity: as in ``epan.attention``.
    order: orders per head, in turn, of a polynomial kernel whose order is a tensor; overrides ``kernel``.
    key_heads: None for as many as query heads; fewer share key heads.
    value_size: None for ``size``.
    scale: None, a float, or "scalar", "head", "query" for a tensor of that extent.
    mask: one of :data:`MASKS`.
    alibi: None, "head" or "batch".
    layout: one of :data:`LAYOUTS`, the strides of query, key and value.
    content: one of :data:`CONTENTS`, the numbers in query and key.
    spread: standard deviation of query and key.
    """

    kernel: str | Kernel = "biweight"
    normalization: str | Normalization = "adaptive"
    similarity: str = "dot"
    dtype: torch.dtype = torch.float64
    order: tuple[float, ...] | None = None
    batch: int = 2
    heads: int = 2
    key_heads: int | None = None
    q_len: int = 7
    k_len: int = 9
    size: int = 8
    value_size: int | None = None
    scale: float | str | None = None
    mask: str = "none"
    is_causal: bool = False
    window: tuple[int | None, int | None] | None = None
    alibi: str | None = None
    layout: str = "contiguous"
    content: str = "normal"
    spread: float = 1.0
    dropout_p: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.').replace(' ', '')}")
        return "-".join(words) or "default"

    def but(self, **changes: Any) -> Case:
        """The same case with some fields changed."""
        return dataclasses.replace(self, **changes)

    def build(self) -> Inputs:
        """The tensors of the case; the same case gives the same bits."""
        generator = torch.Generator().manual_seed(self.seed)
        key_heads = self.heads if self.key_heads is None else self.key_heads
        value_size = self.size if self.value_size is None else self.value_size
        query = self._points((self.batch, self.heads, self.q_len, self.size), generator)
        key = self._points((self.batch, key_heads, self.k_len, self.size), generator)
        if self.content == "duplicates" and self.k_len > 1:
            source = torch.randint(max(1, self.k_len // 3), (self.k_len,), generator=generator)
            key = key[:, :, source]
        if self.content == "huge_key" and self.k_len:
            key[:, :, self.k_len // 2] *= 100.0
        value = torch.randn((self.batch, key_heads, self.k_len, value_size), generator=generator, dtype=torch.float64)
        grad = torch.randn((self.batch, self.heads, self.q_len, value_size), generator=generator, dtype=torch.float64)
        value, grad = value.to(self.dtype), grad.to(self.dtype)
        order = None
        kernel = get_kernel(self.kernel)
        if self.order is not None:
            per_head = [self.order[h % len(self.order)] for h in range(self.heads)]
            order = torch.tensor(per_head, dtype=working_dtype(self.dtype)).view(-1, 1, 1)
            kernel = Polynomial(order=order)
        mask = self._mask(generator)
        return Inputs(
            query=_lay_out(query, self.layout),
            key=_lay_out(key, self.layout),
            value=_lay_out(value, self.layout),
            grad=grad,
            kernel=kernel,
            normalization=get_normalization(self.normalization),
            similarity=self.similarity,
            scale=self._scale(generator),
            attn_mask=mask,
            is_causal=self.is_causal,
            lower_right=self.mask == "lower_right",
            window=self.window,
            alibi_slopes=self._slopes(generator),
            order=order,
            dropout_p=self.dropout_p,
        )

    def _points(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.content == "constant":
            return torch.full(shape, 0.5, dtype=self.dtype)
        points = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.content == "near":
            points = 1.0 + 0.01 * points
        elif self.content == "ties":
            points = points.round().clamp(-1, 1)
        elif self.content == "unit":
            points = points / points.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        return (points * self.spread).to(self.dtype)

    def _scale(self, generator: torch.Generator) -> float | Tensor | None:
        if self.scale is None or isinstance(self.scale, float):
            return self.scale
        shape = {"scalar": (), "head": (self.heads, 1, 1), "query": (self.batch, self.heads, self.q_len, 1)}[self.scale]
        drawn = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        return (drawn * 2.0 / math.sqrt(self.size)).to(working_dtype(self.dtype))

    def _slopes(self, generator: torch.Generator) -> Tensor | None:
        if self.alibi is None:
            return None
        shape = {"head": (self.heads,), "batch": (self.batch, self.heads)}[self.alibi]
        drawn = 0.05 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
        return drawn.to(working_dtype(self.dtype))

    def _mask(self, generator: torch.Generator) -> Tensor | None:
        full = (self.batch, self.heads, self.q_len, self.k_len)
        plane = full[2:]
        keep = torch.rand(full, generator=generator) < 0.6
        drawn = torch.randn(full, generator=generator, dtype=torch.float64)
        if self.mask in ("none", "lower_right"):
            return None
        if self.mask == "bool":
            return keep[0, 0]
        if self.mask == "bool_full":
            return keep
        if self.mask == "padding":
            lengths = torch.randint(1, max(2, self.k_len + 1), (self.batch, 1, 1, 1), generator=generator)
            return torch.arange(self.k_len) < lengths
        if self.mask == "some_rows":
            return keep & (torch.arange(self.q_len) % 3 != 1).view(-1, 1)
        if self.mask == "all_rows":
            return torch.zeros(plane, dtype=torch.bool)
        if self.mask == "float":
            return drawn[0, 0].to(self.dtype)
        if self.mask == "float32":
            return drawn[0].to(torch.float32)
        if self.mask == "float_full":
            return drawn.to(self.dtype)
        if self.mask == "float_inf":
            return torch.where(keep[:, :1], drawn[:, :1], -math.inf).to(self.dtype)
        raise ValueError(f"unknown mask {self.mask!r}; one of {MASKS}")


def _lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in other strides."""
    if layout == "contiguous":
        return tensor
    if layout == "heads_last":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        wide = torch.nn.functional.pad(tensor, (1, 2, 1, 1), value=math.nan)
        return wide[:, :, 1:-1, 1:-2]
    if layout == "strided":
        return torch.stack([tensor, torch.full_like(tensor, math.nan)], dim=-1).flatten(-2)[..., ::2]
    if layout == "expanded":
        return tensor[:, :1].expand(tensor.shape)
    raise ValueError(f"unknown layout {layout!r}; one of {LAYOUTS}")


def make_scores(kind: str, rows: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Rows of scores (rows, length) of one of the kinds :data:`SCORES`, drawn in ``dtype``.

    normal: N(0, 2²). constant: all equal. near: N(0, 0.01²), which hides nothing that equal scores hide. ties: small
    integers. offset_down, offset_up: normal − 2000, normal + 10000. wide: N(0, 10000²). one_huge: one key far above.
    sorted: normal, descending. minus_infinity: a third of the keys at −inf, and one row entirely.
    """
    generator = torch.Generator().manual_seed(seed)
    z = 2.0 * torch.randn((rows, length), generator=generator, dtype=torch.float64)
    if kind == "constant":
        z = torch.full_like(z, 0.3)
    elif kind == "near":
        z = 0.005 * z
    elif kind == "ties":
        z = z.round()
    elif kind == "offset_down":
        z = z - 2e3
    elif kind == "offset_up":
        z = z + 1e4
    elif kind == "wide":
        z = z * 5e3
    elif kind == "one_huge":
        z[:, length // 2 : length // 2 + 1] += 1e4
    elif kind == "sorted":
        z = z.sort(dim=-1, descending=True).values
    elif kind == "minus_infinity":
        z = torch.where(torch.rand(z.shape, generator=generator) < 1 / 3, -math.inf, z)
        z[:1] = -math.inf
    elif kind != "normal":
        raise ValueError(f"unknown scores {kind!r}; one of {SCORES}")
    return z.to(dtype)
