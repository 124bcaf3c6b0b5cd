"""First and second derivatives, forward mode and vmap of every rule, the learnt order, and the streaming methods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import epan
from epan.kernels import Kernel, Polynomial
from epan.normalizations import Normalization
from epan.testing import catalogue, inputs, oracles, tolerance

KERNELS: dict[str, Kernel] = {
    **catalogue.kernels(),
    "polynomial-16.5": Polynomial(16.5),
    "polynomial-1e3": Polynomial(1e3),
    "polynomial-tensor": Polynomial(torch.tensor([[1.7], [2.0], [24.0]], dtype=torch.float64)),
}
# What the fixed rule does in empty rows is tried elsewhere.
RULES: dict[str, Normalization] = {name: catalogue.normalizations()[name] for name in ("adaptive", "anchored", "fixed")}


def is_legal(kernel: Kernel, rule: Normalization) -> bool:
    try:
        rule.check(kernel, None)
    except epan.EpanError:
        return False
    return True


PAIRS = [(k, r) for k, kernel in KERNELS.items() for r, rule in RULES.items() if is_legal(kernel, rule)]
every_pair = pytest.mark.parametrize(("kernel", "rule"), PAIRS)


def scores(seed: int = 0, length: int = 5) -> Tensor:
    """Three rows (the last too far for most fixed kernels) without ties, off every boundary of a support."""
    generator = torch.Generator().manual_seed(seed)
    z = -3.0 * torch.rand((3, length), generator=generator, dtype=torch.float64)
    z[2] -= 6.0
    return z


# Some keys of two rows, none of the last.
SOME = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0], [0] * 5]).bool()


@pytest.mark.parametrize("mask", [None, SOME], ids=["all", "some"])
@every_pair
def test_derivatives_agree_with_finite_differences(kernel: str, rule: str, mask: Tensor | None) -> None:
    def weights(z: Tensor) -> Tensor:
        return epan.attention_weights(z, kernel=KERNELS[kernel], normalization=RULES[rule], mask=mask)

    z = scores().requires_grad_()
    assert torch.autograd.gradcheck(weights, z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(weights, z)


@every_pair
def test_transforms_agree_with_plain_calls(kernel: str, rule: str) -> None:
    """vmap over any dimension, jvp, and jacobians both ways; the mask goes along."""

    def weights(z: Tensor, kept: Tensor = SOME) -> Tensor:
        return epan.attention_weights(z, kernel=KERNELS[kernel], normalization=RULES[rule], mask=kept)

    stack = torch.stack([scores(seed) for seed in range(4)])
    plain = torch.stack([weights(z) for z in stack])
    tolerance.assert_within(vmap(weights)(stack), plain, band=tolerance.EXACT, label="vmap")
    last = vmap(weights, in_dims=2, out_dims=1)(stack.permute(1, 2, 0))
    tolerance.assert_within(last.transpose(0, 1), plain, band=tolerance.EXACT, label="vmap of the last dimension")
    masks = torch.stack([SOME, ~SOME, SOME | True, SOME & False])
    both = torch.stack([weights(z, kept) for z, kept in zip(stack, masks, strict=True)])
    tolerance.assert_within(vmap(weights)(stack, masks), both, band=tolerance.EXACT, label="vmap of scores and masks")
    z, tangent = stack[0], torch.cos(torch.arange(15.0, dtype=torch.float64)).view(3, 5)
    backward, forward = jacrev(weights)(z), jacfwd(weights)(z)
    tolerance.assert_within(forward, backward, band=tolerance.EXACT, label="jacobians")
    along = jvp(weights, (z,), (tangent,))[1]
    expected = torch.einsum("ijkl,kl->ij", backward, tangent)
    tolerance.assert_within(along, expected, band=tolerance.EXACT, label="jvp")

    def loss(z: Tensor) -> Tensor:
        return (weights(z) ** 2 * tangent).sum()

    per_sample = vmap(grad(loss))(stack)
    leaf = stack.clone().requires_grad_()
    (whole,) = torch.autograd.grad(sum(loss(z) for z in leaf), leaf) if weights(leaf[0]).requires_grad else (leaf * 0,)
    tolerance.assert_within(per_sample, whole, band=tolerance.EXACT, label="gradients per sample")
    curvature = hessian(loss)(z).reshape(15, 15)
    tolerance.assert_within(curvature, curvature.T, band=tolerance.EXACT, label="hessian")


@pytest.mark.parametrize(("kernel", "rule"), [pair for pair in PAIRS if not pair[0].startswith("uniform")])
def test_gradients_of_shifted_scores_sum_to_zero(kernel: str, rule: str) -> None:
    """Adding a constant changes nothing, so no gradient points along it; the fixed rule is not of that kind."""
    z = scores().requires_grad_()
    weights = epan.attention_weights(z, kernel=KERNELS[kernel], normalization=RULES[rule])
    pull = torch.sin(torch.arange(15.0, dtype=torch.float64)).view(3, 5)
    (found,) = torch.autograd.grad(weights, z, pull)
    flow = found.sum(-1)
    if RULES[rule].name != "fixed" or kernel == "gaussian":
        tolerance.assert_within(flow, torch.zeros_like(flow), band=tolerance.EXACT)
    else:
        assert tolerance.largest(flow) > tolerance.EXACT


@pytest.mark.parametrize("rule", ["adaptive", "anchored", "fixed"])
def test_a_learnt_order_has_the_derivatives_of_finite_differences(rule: str) -> None:
    def weights(z: Tensor, order: Tensor) -> Tensor:
        return epan.attention_weights(z, kernel=Polynomial(order), normalization=RULES[rule], mask=SOME)

    for orders in ([[1.3], [2.0], [3.7]], [[15.9], [16.1], [300.0]], [[4.0]]):
        order = torch.tensor(orders, dtype=torch.float64, requires_grad=True)
        z = scores(1).requires_grad_()
        assert torch.autograd.gradcheck(weights, (z, order), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(weights, (z, order))


@pytest.mark.parametrize("rule", ["adaptive", "anchored", "fixed"])
def test_a_learnt_order_follows_the_formula(rule: str) -> None:
    for length in (1, 7, 128, 300):
        z = scores(2, length)
        order = torch.tensor([[1.2], [7.0], [45.0]], dtype=torch.float64, requires_grad=True)
        kernel, allowed = Polynomial(order), torch.ones_like(z, dtype=torch.bool)
        pull = torch.sin(torch.arange(3.0 * length, dtype=torch.float64)).view(3, length)
        weights = epan.attention_weights(z, kernel=kernel, normalization=rule)
        (found,) = torch.autograd.grad(weights, order, pull)
        expected = oracles.order_gradient(z, allowed, kernel, RULES[rule], pull)
        width = tolerance.EXACT * max(1.0, tolerance.largest(expected))
        tolerance.assert_within(found, expected, kind="gradient", band=width)


@pytest.mark.parametrize("rule", ["adaptive", "anchored", "fixed"])
def test_orders_go_through_vmap_and_forward_mode(rule: str) -> None:
    def weights(z: Tensor, order: Tensor) -> Tensor:
        return epan.attention_weights(z, kernel=Polynomial(order), normalization=rule)

    z, order = scores(3), torch.tensor([[1.3], [2.7], [30.0]], dtype=torch.float64)
    plain = weights(z, order)
    tolerance.assert_within(vmap(weights)(z, order), plain, band=tolerance.EXACT, label="both")
    over = vmap(weights, in_dims=(None, 0))(z, order.squeeze(-1))
    expected = torch.stack([weights(z, one) for one in order.squeeze(-1)])
    tolerance.assert_within(over, expected, band=tolerance.EXACT, label="orders alone")
    under = vmap(weights, in_dims=(0, None))(z, order[1])
    tolerance.assert_within(under, weights(z, order[1]), band=tolerance.EXACT, label="scores alone")
    ways = [transform(lambda n: weights(z, n))(order) for transform in (jacrev, jacfwd)]
    tolerance.assert_within(*ways, band=tolerance.EXACT, label="jacobians")


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "polynomial-tensor"])
@pytest.mark.parametrize("rule", catalogue.normalizations())
def test_streaming_methods_repeat_the_definition(rule: str, kernel: str) -> None:
    """solve, apply and differentiate against weights and autograd, the last two also on the keys with weight alone."""
    normalization, it = catalogue.normalizations()[rule], KERNELS[kernel]
    if not is_legal(it, normalization):
        return
    z = -1.5 * inputs.make_scores("normal", 6, 40).abs()
    # A row that no compact kernel reaches.
    z[2] -= 2000.0
    generator = torch.Generator().manual_seed(3)
    allowed = torch.rand(z.shape, generator=generator) < 0.7
    allowed[1] = False
    pull = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    leaf = z.clone().requires_grad_()
    weights, stats = normalization.weights(leaf, allowed, it)
    slope = torch.autograd.grad(weights, leaf, pull)[0] if weights.requires_grad else torch.zeros_like(z)
    solved, rows, other = normalization.solve(z.clone(), allowed, it)
    tolerance.assert_within(solved, weights, band=tolerance.EXACT, label="solve")
    assert other is not None
    for name, one, two in zip(stats._fields[:3], stats[:3], other[:3], strict=True):
        width = tolerance.EXACT * max(1.0, tolerance.largest(torch.where(torch.isfinite(one.double()), one, 0)))
        tolerance.assert_within(two, one.double(), band=width, label=name)
    assert normalization.solve(z.clone(), allowed, it, with_stats=False)[0].equal(solved)
    keeps = [torch.ones(40, dtype=torch.bool)]
    if normalization.is_local:
        keeps.append((weights != 0).any(0))
        assert not bool(slope[:, ~keeps[-1]].any())
    for keep in keeps:
        part, mask = z[:, keep], allowed[:, keep]
        applied = normalization.apply(part.clone(), mask, it, rows)
        tolerance.assert_within(applied, weights[:, keep], band=tolerance.EXACT, label="apply")
        again, found, _ = normalization.differentiate(part.clone(), mask, it, rows, pull[:, keep].clone())
        tolerance.assert_within(again, weights[:, keep], band=tolerance.EXACT, label="weights of differentiate")
        width = tolerance.EXACT * max(1.0, tolerance.largest(slope))
        tolerance.assert_within(found, slope[:, keep], kind="gradient", band=width, label="differentiate")


@every_pair
def test_minus_infinity_is_a_mask_in_both_passes(kernel: str, rule: str) -> None:
    z = scores(4)
    pull = torch.cos(torch.arange(15.0, dtype=torch.float64)).view(3, 5)
    found = []
    for values, kept in ((z, SOME), (z.masked_fill(~SOME, -math.inf), None)):
        leaf = values.clone().requires_grad_()
        weights = epan.attention_weights(leaf, kernel=KERNELS[kernel], normalization=RULES[rule], mask=kept)
        slope = torch.autograd.grad(weights, leaf, pull)[0] if weights.requires_grad else torch.zeros_like(leaf)
        found.append((weights.detach(), slope))
    for one, two in zip(*found, strict=True):
        tolerance.assert_equal_bits(one, two)
