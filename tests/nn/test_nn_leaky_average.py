"""The leaky average: against the recurrence itself, at any length and rate, with all its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from epan.errors import EpanError
from epan.nn import GatedLeakyAverage, LeakyAverage, leaky_average
from epan.testing.tolerance import NOISE, assert_equal_bits, assert_within, band

LENGTHS = [1, 2, 15, 16, 17, 47, 48, 49, 50, 67, 128, 130, 251, 1000]
RATES = [0.0, 1e-6, 0.3, 5.0, 40.0, 1e4]


def recurrence(x: Tensor, rate: Tensor, state: Tensor | None = None) -> Tensor:
    """k_T = x_T + e^{−λ_T} k_{T−1}, one step at a time."""
    steps = rate[None, :, None].expand(x.shape[:3]) if rate.dim() == 1 else rate
    current = torch.zeros_like(x[:, :, 0]) if state is None else state
    out = []
    for t in range(x.shape[2]):
        current = x[:, :, t] + torch.exp(-steps[:, :, t])[..., None] * current
        out.append(current)
    return torch.stack(out, dim=2)


def matrix(x: Tensor, rate: Tensor) -> Tensor:
    """The same as a product with the T×T matrix of powers."""
    step = torch.arange(x.shape[2], dtype=x.dtype)
    lag = step[:, None] - step
    return torch.exp(-rate[:, None, None] * lag).tril() @ x


def rates_of(kind: str, batch: int, length: int) -> Tensor:
    if kind == "per head":
        return torch.tensor(RATES, dtype=torch.float64)
    choice = torch.tensor(RATES, dtype=torch.float64)
    return choice[torch.randint(len(RATES), (batch, len(RATES), length))]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["per head", "per step"])
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_the_recurrence(length: int, kind: str, with_state: bool) -> None:
    x = torch.randn(2, len(RATES), length, 3, dtype=torch.float64)
    state = torch.randn(2, len(RATES), 3, dtype=torch.float64) if with_state else None
    rate = rates_of(kind, 2, length)
    expected = recurrence(x, rate, state)
    assert (leaky_average(x, rate, state) - expected).abs().max() <= 1e-13 * (1 + expected.abs().max())


@pytest.mark.parametrize("length", [1, 31, 100])
def test_equals_the_matrix_of_powers(length: int) -> None:
    x, rate = torch.randn(2, 3, length, 4, dtype=torch.float64), torch.tensor([1e-3, 0.5, 4.0], dtype=torch.float64)
    assert (leaky_average(x, rate) - matrix(x, rate)).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["per head", "per step"])
@pytest.mark.parametrize("cut", [1, 16, 40, 99])
def test_the_last_output_is_the_state_to_go_on_from(kind: str, cut: int) -> None:
    x, rate = torch.randn(2, len(RATES), 100, 3, dtype=torch.float64), rates_of(kind, 2, 100)
    first, second = (rate, rate) if rate.dim() == 1 else (rate[..., :cut], rate[..., cut:])
    head = leaky_average(x[:, :, :cut], first)
    tail = leaky_average(x[:, :, cut:], second, head[:, :, -1])
    assert (torch.cat([head, tail], dim=2) - leaky_average(x, rate)).abs().max() <= 1e-12


def test_65536_steps_of_a_constant_are_the_geometric_sum() -> None:
    steps, rate = 65_536, torch.tensor([1e-5, 0.05, 3.0], dtype=torch.float64)
    out = leaky_average(torch.ones(1, 3, steps, 1, dtype=torch.float64), rate)[0, :, :, 0]
    count = torch.arange(1, steps + 1, dtype=torch.float64)
    expected = torch.expm1(-rate[:, None] * count) / torch.expm1(-rate)[:, None]
    assert ((out - expected) / expected).abs().max() <= 1e-11


def test_a_long_average_needs_memory_linear_in_the_length() -> None:
    # The matrix of powers alone would be 2^32 numbers per head.
    x = torch.randn(1, 2, 65_536, 4, requires_grad=True)
    rate = torch.tensor([0.01, 2.0], requires_grad=True)
    leaky_average(x, rate).square().mean().backward()
    assert x.grad is not None
    assert rate.grad is not None
    assert bool(torch.isfinite(x.grad).all() & torch.isfinite(rate.grad).all())


@pytest.mark.parametrize("length", [5, 49, 70])
@pytest.mark.parametrize("rates", [(1e-7, 25.0), (0.5, 5.0)])
def test_gradients_agree_with_finite_differences(length: int, rates: tuple[float, float]) -> None:
    x = torch.randn(1, 2, length, 1, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(rates, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert gradcheck(leaky_average, (x, rate, state))
    steps = torch.rand(1, 2, length, dtype=torch.float64, requires_grad=True)
    assert gradcheck(leaky_average, (x, steps, state))


def test_gradient_of_the_rate_over_a_long_sequence() -> None:
    x = torch.randn(2, 4, 3000, 2, dtype=torch.float64)
    weight = torch.randn_like(x)
    rate = torch.tensor([1e-4, 0.02, 0.7, 6.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad((leaky_average(x, rate) * weight).sum(), rate)
    for head in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[head] = 1e-6 * float(rate[head])
        upper, lower = ((recurrence(x, rate.detach() + sign * step) * weight).sum() for sign in (1, -1))
        difference = (upper - lower) / (2 * step[head])
        assert abs(float(grad[head] - difference)) <= 1e-5 * abs(float(difference)) + 1e-6


@pytest.mark.parametrize("length", [6, 49])
def test_second_derivatives(length: int) -> None:
    x = torch.randn(1, 2, length, 1, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor([0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(leaky_average, (x, rate))
    steps = torch.rand(1, 2, length, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(leaky_average, (x, steps))


@pytest.mark.parametrize("kind", ["per head", "per step"])
def test_no_step_sees_a_later_one(kind: str) -> None:
    x, rate = torch.randn(1, len(RATES), 90, 2), rates_of(kind, 1, 90).float()
    out = leaky_average(x, rate)
    for t in (0, 1, 47, 60, 89):
        changed = x.clone()
        changed[:, :, t] += 1e3
        difference = leaky_average(changed, rate) - out
        assert bool((difference[:, :, :t] == 0).all())
        assert bool((difference[:, :, t] != 0).all())


def test_sixteen_bit_inputs_are_averaged_in_float32() -> None:
    x, rate = torch.randn(1, 1, 4000, 8).bfloat16(), torch.tensor([1e-3])
    expected = recurrence(x.double(), rate.double())
    for out in (leaky_average(x, rate), _under_autocast(x.float(), rate)):
        assert ((out.double() - expected).abs() / expected.abs().mean()).max() <= 0.02
    assert leaky_average(x, rate).dtype == torch.bfloat16
    assert (_under_autocast(x.float(), rate).double() - expected).abs().max() <= 1e-4 * expected.abs().max()


def _under_autocast(x: Tensor, rate: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return leaky_average(x, rate)


def test_empty_sequences_and_batches() -> None:
    assert leaky_average(torch.randn(2, 3, 0, 4), torch.ones(3)).shape == (2, 3, 0, 4)
    assert leaky_average(torch.randn(0, 3, 60, 4), torch.ones(3)).shape == (0, 3, 60, 4)
    assert leaky_average(torch.randn(0, 3, 60, 4), torch.ones(0, 3, 60)).shape == (0, 3, 60, 4)


@pytest.mark.parametrize(("length", "kind"), [(20, "per head"), (60, "per head"), (60, "per step")])
def test_compiles_into_one_graph(length: int, kind: str) -> None:
    torch.compiler.reset()
    x, rate = torch.randn(1, len(RATES), length, 2), rates_of(kind, 1, length).float().requires_grad_()
    compiled = torch.compile(leaky_average, fullgraph=True, dynamic=False, backend="aot_eager")
    out, expected = compiled(x, rate), leaky_average(x, rate)
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5)
    (grad,), (wanted,) = (torch.autograd.grad(result.square().mean(), rate) for result in (out, expected))
    assert torch.allclose(grad, wanted, rtol=1e-4, atol=1e-6)


def test_the_layer_holds_ten_times_its_parameter() -> None:
    layer = LeakyAverage(4)
    assert torch.allclose(layer.rate, torch.linspace(0.5, 5.0, 4))
    with torch.no_grad():
        layer.leak[0] = -0.2
    assert float(layer.rate[0]) == pytest.approx(2.0)
    x = torch.randn(1, 4, 20, 2)
    assert torch.allclose(layer(x), recurrence(x, layer.rate), atol=1e-5)


def test_the_gated_layer_is_its_formula() -> None:
    layer = GatedLeakyAverage(6, 2).double()
    keys, inputs = torch.randn(3, 2, 25, 4, dtype=torch.float64), torch.randn(3, 25, 6, dtype=torch.float64)
    current = torch.zeros(3, 2, 4, dtype=torch.float64)
    out = layer(keys, inputs)
    for t in range(25):
        gate = torch.exp(inputs[:, t] @ layer.gate.weight.T)[..., None]
        decay = torch.exp(-(inputs[:, t] @ layer.decay.weight.T).abs())[..., None]
        current = gate * keys[:, :, t] + decay * current
        assert torch.allclose(out[:, :, t], current, rtol=1e-12, atol=1e-12)


def test_huge_gates_stay_finite() -> None:
    layer = GatedLeakyAverage(1, 1)
    with torch.no_grad():
        layer.gate.weight.fill_(1.0)
    out = layer(torch.randn(1, 1, 4, 8), torch.tensor([[[1e4], [-1e4], [1.0], [1e4]]]))
    assert bool(torch.isfinite(out.square().sum(-1)).all())


@pytest.mark.parametrize(
    ("x", "rate", "state"),
    [
        ((2, 3, 4), (3,), None),
        ((2, 3, 4, 5), (4,), None),
        ((2, 3, 4, 5), (2, 3), None),
        ((2, 3, 4, 5), (3,), (2, 3, 4)),
    ],
)
def test_wrong_shapes_are_refused(x: tuple[int, ...], rate: tuple[int, ...], state: tuple[int, ...] | None) -> None:
    with pytest.raises(EpanError, match="leaky_average"):
        leaky_average(torch.randn(x), torch.rand(rate), None if state is None else torch.randn(state))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["per head", "per step"])
@pytest.mark.parametrize("length", [1, 100, 4097, 20_000])
def test_the_gpu_agrees_with_plain_torch(length: int, kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, length, len(RATES) * 24).unflatten(-1, (len(RATES), 24)).transpose(1, 2).to(dtype)
    rate, state = rates_of(kind, 2, length), torch.randn(2, len(RATES), 24)
    grad = torch.randn_like(x)

    def answers(device: str, precision: torch.dtype, noise: float = 0.0) -> list[Tensor]:
        kept = torch.promote_types(precision, torch.float32)
        leaves = [x.to(device, precision), rate.to(device, kept), state.to(device, kept)]
        leaves = [(leaf * (1 + noise * torch.randn_like(leaf))).detach().requires_grad_() for leaf in leaves]
        out = leaky_average(*leaves)
        assert_equal_bits(leaky_average(*leaves), out)
        found = [out, *torch.autograd.grad(out, leaves, grad.to(device, out.dtype))]
        return [result.detach().cpu() for result in found]

    reference = answers("cpu", torch.float64)
    moved = answers("cpu", torch.float64, NOISE * torch.finfo(torch.float32).eps)
    results = zip(answers("cuda", dtype), reference, moved, answers("cpu", dtype), strict=True)
    for place, (got, right, other, base) in enumerate(results):
        width = band(right, [other], got.dtype)
        assert_within(got, right, base, kind="gradient" if place else "output", band=width, label=f"result {place}")
