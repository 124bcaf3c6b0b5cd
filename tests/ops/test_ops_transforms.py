"""torch.func on the eager backend: vmap, forward mode, per-sample gradients, Hessians; the tiled backend refuses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import epan
from epan.errors import UnsupportedError
from epan.testing import catalogue, tolerance
from epan.testing.catalogue import Entry

ENTRIES = [
    e for e in catalogue.legal() if e.normalization_id not in ("fixed-zero", "fixed-uniform") and e.order is None
]
# A boxcar's weights are constants, so there is no derivative to transform.
SMOOTH = [e for e in ENTRIES if not (e.kernel.name == "uniform" and e.normalization.name == "nearest")]
KINDS = [
    {"kernel": "biweight"},
    {"kernel": "epanechnikov", "normalization": "anchored"},
    {"kernel": "triweight", "normalization": "fixed", "similarity": "euclidean"},
]


def eager(entry: Entry) -> Callable[..., Tensor]:
    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return epan.attention(
            query,
            key,
            value,
            kernel=entry.kernel,
            normalization=entry.normalization,
            similarity=entry.similarity,
            backend="eager",
        )

    return call


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def same(actual: Tensor, expected: Tensor, label: str = "result") -> None:
    tolerance.assert_within(actual, expected, band=tolerance.EXACT * max(1.0, tolerance.largest(expected)), label=label)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_vmap_is_a_loop(entry: Entry) -> None:
    call = eager(entry)
    q, k, v = draw(3, 1, 2, 3, 4), draw(3, 1, 2, 5, 4), draw(3, 1, 2, 5, 2)
    same(vmap(call)(q, k, v), torch.stack([call(*each) for each in zip(q, k, v, strict=True)]))
    same(vmap(call, in_dims=(None, 0, 0))(q[0], k, v), torch.stack([call(q[0], *b) for b in zip(k, v, strict=True)]))
    moved = vmap(call, in_dims=(3, None, None), out_dims=1)(q.movedim(0, 3), k[0], v[0])
    same(moved, torch.stack([call(each, k[0], v[0]) for each in q], dim=1))


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "scale per head": ("scale", lambda: 0.5 + torch.rand(3, 2, 1, 1, dtype=torch.float64)),
        "scalar scale": ("scale", lambda: 0.5 + torch.rand(3, dtype=torch.float64)),
        "boolean mask": ("attn_mask", lambda: torch.rand(3, 4, 4) < 0.6),
        "float mask": ("attn_mask", lambda: draw(3, 4, 4)),
        "slopes": ("alibi_slopes", lambda: torch.rand(3, 2, dtype=torch.float64)),
        "order": ("kernel", lambda: 1.0 + 20.0 * torch.rand(3, 2, 1, 1, dtype=torch.float64)),
        "scalar order": ("kernel", lambda: 1.0 + 20.0 * torch.rand(3, dtype=torch.float64)),
    }.values(),
    ids=["scale per head", "scalar scale", "boolean mask", "float mask", "slopes", "order", "scalar order"],
)
def test_vmap_over_every_other_input(option: str, values: Callable[[], Tensor]) -> None:
    x, many = draw(3, 1, 2, 4, 4), values()

    def call(point: Tensor, one: Tensor) -> Tensor:
        options = {option: epan.Polynomial(order=one) if option == "kernel" else one}
        return epan.attention(point, point, point, backend="eager", **options)  # type: ignore[arg-type]

    same(vmap(call)(x, many), torch.stack([call(*each) for each in zip(x, many, strict=True)]))
    same(vmap(call, in_dims=(None, 0))(x[0], many), torch.stack([call(x[0], one) for one in many]))


def test_vmap_nests() -> None:
    x, orders = draw(2, 3, 1, 2, 4, 4), torch.tensor([1.0, 2.0], dtype=torch.float64)

    def call(point: Tensor, order: Tensor) -> Tensor:
        return epan.attention(point, point, point, kernel=epan.Polynomial(order=order), backend="eager")

    inner = vmap(vmap(call, in_dims=(0, None)), in_dims=(0, 0))(x, orders)
    same(inner, torch.stack([torch.stack([call(p, n) for p in row]) for row, n in zip(x, orders, strict=True)]))
    outer = vmap(vmap(call, in_dims=(None, 0)), in_dims=(0, None))(x[0], orders)
    same(outer, torch.stack([torch.stack([call(p, n) for n in orders]) for p in x[0]]))


def test_the_threshold_operator_under_vmap_along_any_dimension() -> None:
    """In attention the mapped dimension usually comes first; the operator itself takes any."""
    x, orders = -torch.rand(3, 4, 6, dtype=torch.float64), torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64)

    def level(rows: Tensor, order: Tensor) -> Tensor:
        return torch.ops.epan.adaptive_level(rows, order, 0.0)

    expected = torch.stack([level(rows, order) for rows, order in zip(x, orders, strict=True)])
    for dim in range(3):
        same(vmap(level, in_dims=(dim, 0))(x.movedim(0, dim), orders), expected)
    same(
        vmap(level, in_dims=(1, None))(x.movedim(0, 1), orders[0]), torch.stack([level(rows, orders[0]) for rows in x])
    )
    same(vmap(level, in_dims=(None, 0))(x[0], orders), torch.stack([level(x[0], order) for order in orders]))


def test_vmap_over_packed_sequences() -> None:
    x, offsets = draw(3, 5, 2, 4), torch.tensor([0, 2, 5])

    def call(point: Tensor) -> Tensor:
        packed = epan.attention_varlen(point, point, point, offsets, offsets, 3, 3, is_causal=True, backend="eager")
        assert isinstance(packed, Tensor)
        return packed

    same(vmap(call)(x), torch.stack([call(point) for point in x]))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_obeys_its_rule_of_randomness(randomness: str) -> None:
    x = draw(1, 1, 12, 4).expand(4, 1, 1, 12, 4)
    out = vmap(lambda p: epan.attention(p, p, p, dropout_p=0.5, backend="eager"), randomness=randomness)(x)
    assert bool((out == out[0]).all()) == (randomness == "same")


@pytest.mark.parametrize("entry", SMOOTH, ids=str)
def test_forward_mode_equals_finite_differences_and_reverse_mode(entry: Entry) -> None:
    call = eager(entry)
    leaves = tuple(t.requires_grad_() for t in (draw(1, 1, 2, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 2)))
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)
    points = tuple(t.detach() for t in leaves)
    tangents = tuple(torch.randn_like(t) for t in points)
    out, forward = jvp(call, points, tangents)
    again, pull = vjp(call, *points)
    same(out, again)
    upstream = torch.randn_like(out)
    # ⟨u, J t⟩ = ⟨Jᵀu, t⟩ whatever the direction of the sweep.
    backward = sum((g * t).sum() for g, t in zip(pull(upstream), tangents, strict=True))
    assert isinstance(backward, Tensor)
    same((upstream * forward).sum(), backward)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_jacobians_hessians_and_per_sample_gradients(kind: dict[str, str]) -> None:
    q, k, v = draw(3, 1, 1, 2, 3), draw(3, 1, 1, 4, 3), draw(3, 1, 1, 4, 2)

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return epan.attention(query, key, value, backend="eager", **kind).sin().sum()

    for argnum in range(3):
        forward, reverse = (f(loss, argnums=argnum)(q[0], k[0], v[0]) for f in (jacfwd, jacrev))
        same(forward, reverse)
        curvature = hessian(loss, argnums=argnum)(q[0], k[0], v[0])
        point = [q[0], k[0], v[0]]
        fixed = torch.autograd.functional.hessian(
            lambda t, point=point, argnum=argnum: loss(*point[:argnum], t, *point[argnum + 1 :]), point[argnum]
        )
        same(curvature, fixed)
        size = point[argnum].numel()
        same(curvature.reshape(size, size).T, curvature.reshape(size, size), "symmetry")
    per_sample = vmap(grad(loss, argnums=(0, 1, 2)))(q, k, v)
    for b in range(3):
        leaves = [t[b].clone().requires_grad_() for t in (q, k, v)]
        for each, expected in zip(per_sample, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            same(each[b], expected)


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_forward_mode_without_functorch(name: str) -> None:
    x, tangent = draw(1, 2, 4, 3), draw(1, 2, 4, 3)

    def call(t: Tensor) -> Tensor:
        return epan.attention(t, t, t, backend=name)

    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(x, tangent)))
    out, expected = jvp(call, (x,), (tangent,))
    same(dual.primal, out)
    assert dual.tangent is not None
    same(dual.tangent, expected)


def test_weights_take_every_transform() -> None:
    z = draw(3, 2, 6)
    for rule in ("adaptive", "anchored", "fixed"):

        def weights(scores: Tensor, rule: str = rule) -> Tensor:
            return epan.attention_weights(scores - 0.5, kernel="biweight", normalization=rule)

        same(vmap(weights)(z), weights(z))
        same(vmap(weights, in_dims=2, out_dims=2)(z.transpose(1, 2)).transpose(1, 2), weights(z))
        same(jacfwd(weights)(z[0]), jacrev(weights)(z[0]))
        scores = z[0].clone().requires_grad_()
        assert gradcheck(weights, (scores,), check_forward_ad=True)
        assert gradgradcheck(weights, (scores,), check_fwd_over_rev=True)


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "dual"])
def test_tiled_refuses_transforms_and_auto_takes_eager(transform: str) -> None:
    x = draw(1, 2, 4, 3)

    def apply(name: str) -> object:
        def call(t: Tensor) -> Tensor:
            return epan.attention(t, t, t, backend=name)

        if transform == "vmap":
            return vmap(call)(x.unsqueeze(0))
        if transform == "jvp":
            return jvp(call, (x,), (x,))
        if transform == "grad":
            return grad(lambda t: call(t).sum())(x)
        with forward_ad.dual_level():
            return call(forward_ad.make_dual(x, x))

    with pytest.raises(UnsupportedError) as caught:
        apply("tiled")
    assert "tiled" in str(caught.value)
    assert 'backend="eager"' in str(caught.value.fix)
    apply("auto")
