"""Clustering reorder: exactly the same attention, fewer tiles with weight, and a probe that tells whether it pays."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import epan
from epan.masks import Masking, Packing
from epan.ops import reorder
from epan.testing import conformance, tolerance
from epan.testing.execution import Attention, backend, device_of, on_device, run
from epan.testing.inputs import Case

EAGER = backend("eager")


def sorted_by_cluster(name: str) -> Attention:
    """``epan.attention`` with queries and keys reordered before the backend sees them."""
    return on_device(functools.partial(epan.attention, backend=name, reorder="kmeans"), device_of(name))


CASES = [
    Case(mask="bool_full", scale="query", q_len=11),
    Case(mask="float_inf", scale="head", heads=4, key_heads=2, value_size=5, layout="heads_last"),
    Case(normalization="fixed", similarity="euclidean", mask="padding", scale="query", kernel="triweight"),
    Case(normalization="anchored", order=(1.5, 3.0), mask="bool", layout="strided"),
    Case(kernel="gaussian", mask="some_rows", dtype=torch.float32),
    Case(normalization=epan.Nearest(k=3), kernel="uniform", content="duplicates"),
    Case(q_len=150, k_len=300, batch=1, dtype=torch.float32, mask="float", spread=2.0),
    Case(q_len=40, k_len=70, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("name", ["eager", "tiled"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_result_is_that_of_the_formula(case: Case, name: str) -> None:
    attention = sorted_by_cluster(name)
    conformance.agrees_with_formula(attention, case, EAGER)
    conformance.gradients_agree_with_formula(attention, case, EAGER)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in CASES if case.order is None], ids=str)
def test_the_result_is_that_of_the_formula_on_a_gpu(case: Case) -> None:
    dtype = torch.float32 if case.dtype == torch.float64 else case.dtype
    conformance.gradients_agree_with_formula(sorted_by_cluster("triton"), case.but(dtype=dtype), EAGER)


@pytest.mark.parametrize("case", [Case(mask="some_rows", scale="query"), CASES[2], CASES[5]], ids=str)
def test_statistics_come_back_in_the_order_of_the_queries(case: Case) -> None:
    conformance.reports_statistics(sorted_by_cluster("tiled"), case, EAGER)


def test_dead_rows_and_empty_inputs() -> None:
    case = Case(mask="some_rows", scale="query")
    conformance.fully_masked_rows_are_zero(sorted_by_cluster("tiled"), case)
    conformance.handles_nothing(sorted_by_cluster("tiled"), Case(scale="head"))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_nonfinite_row_reaches_exactly_the_queries_that_see_it(name: str) -> None:
    inputs = Case(mask="bool_full", scale="query", q_len=11).build()
    bad = getattr(inputs, name).clone()
    bad[0, 0, 3, 1] = torch.nan
    poisoned = inputs.with_leaves({name: bad})
    expected, found = run(EAGER, poisoned), run(sorted_by_cluster("tiled"), poisoned)
    lost = torch.isnan(expected.out)
    assert lost.any()
    assert not lost.all()
    clean = torch.where(lost, 0.0, expected.out)
    tolerance.assert_within(found.out, clean, band=tolerance.band(clean, [], clean.dtype), expected_nan=lost)
    assert all(torch.isfinite(grad).all() for grad in found.grads.values())


def random_order(query: Tensor, key: Tensor, *, similarity: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    orders = [torch.rand(tensor.shape[:3], generator=generator).argsort(-1) for tensor in (query, key)]
    return orders[0], orders[1]


def test_any_permutation_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder, "cluster", random_order)
    for case in CASES[:4]:
        conformance.gradients_agree_with_formula(sorted_by_cluster("eager"), case, EAGER)
    conformance.reports_statistics(sorted_by_cluster("eager"), CASES[0], EAGER)


@pytest.mark.parametrize(
    "case", [Case(mask="bool_full"), Case(mask="padding"), Case(scale="query", spread=2.0)], ids=str
)
def test_a_mask_or_scale_left_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(reorder, "cluster", random_order)
    monkeypatch.setattr(reorder, "_rows", lambda tensor, order, heads: tensor)
    with pytest.raises(AssertionError):
        conformance.agrees_with_formula(sorted_by_cluster("eager"), case, EAGER)


def test_statistics_left_in_place_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder, "cluster", random_order)
    monkeypatch.setattr(reorder, "map_stats", lambda function, stats: stats)
    with pytest.raises(AssertionError):
        conformance.reports_statistics(sorted_by_cluster("eager"), Case(scale="query", spread=2.0), EAGER)


def test_the_same_inputs_give_the_same_order_and_each_row_once() -> None:
    query, key = clustered(300, clusters=5, heads=4), clustered(260, clusters=5, heads=2)
    first, second = (reorder.cluster(query, key) for _ in range(2))
    for order, again, tensor in zip(first, second, (query, key), strict=True):
        assert torch.equal(order, again)
        assert torch.equal(order.sort(-1).values, torch.arange(tensor.shape[2]).expand(tensor.shape[:3]))


def test_rows_of_a_cluster_keep_their_order() -> None:
    # Equal rows are one cluster, so a stable sort changes nothing.
    same = torch.ones(1, 1, 200, 4)
    for order in reorder.cluster(same, same):
        assert torch.equal(order[0, 0], torch.arange(200))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"is_causal": True}, "causal"),
        ({"window": (3, None)}, "window"),
        ({"alibi_slopes": torch.ones(2)}, "alibi_slopes"),
    ],
)
def test_what_depends_on_places_is_refused(options: dict[str, Any], word: str) -> None:
    inputs = Case(q_len=9).build()
    with pytest.raises(epan.UnsupportedError, match=word) as caught:
        sorted_by_cluster("eager")(inputs.query, inputs.key, inputs.value, **options)
    assert "attn_mask" in caught.value.fix


def test_packed_sequences_are_refused() -> None:
    offsets = torch.tensor([0, 4])
    rows = torch.ones(1, 1, 4, 2)
    masking = Masking(4, 4, packing=Packing(offsets, offsets))
    kernel, rule = epan.Biweight(), epan.Adaptive()
    with pytest.raises(epan.UnsupportedError, match="packed"):
        reorder.reordered(lambda *_: (rows, None), rows, rows, rows, masking, 1.0, kernel, rule, "dot")


def test_an_unknown_method_names_the_one_there_is() -> None:
    rows = torch.ones(1, 1, 4, 2)
    with pytest.raises(epan.EpanError, match="did you mean 'kmeans'"):
        epan.attention(rows, rows, rows, reorder="kmean")
    for wrong in (True, 3, ""):
        with pytest.raises(epan.EpanError, match="kmeans"):
            epan.attention(rows, rows, rows, reorder=wrong)


def test_nothing_is_moved_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(query: Tensor, key: Tensor, *, similarity: str) -> tuple[Tensor, Tensor]:
        seen.append(query.dim())
        return random_order(query, key, similarity=similarity)

    monkeypatch.setattr(reorder, "cluster", noted)
    # Three dimensions, as torch takes them.
    rows = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = epan.attention(rows, rows, rows)
    assert not seen
    moved = epan.attention(rows, rows, rows, reorder="kmeans")
    assert seen == [4]
    tolerance.assert_within(moved, plain, band=tolerance.band(plain, [], plain.dtype))


def test_it_is_part_of_one_graph() -> None:
    compiled = torch.compile(sorted_by_cluster("tiled"), fullgraph=True, backend="aot_eager")
    inputs = Case(q_len=20, k_len=30).build()
    tensors = (inputs.query, inputs.key, inputs.value)
    expected = sorted_by_cluster("tiled")(*tensors)
    tolerance.assert_within(compiled(*tensors), expected, band=tolerance.band(expected, [], expected.dtype))


def clustered(length: int, clusters: int, heads: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    """Unit vectors around some centres, in random order; the centres do not depend on the seed."""
    centres = torch.nn.functional.normalize(
        torch.randn(clusters, size, generator=torch.Generator().manual_seed(9)), dim=-1
    )
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(clusters, (1, heads, length), generator=generator)
    noise = 0.05 * torch.randn(1, heads, length, size, generator=generator)
    return torch.nn.functional.normalize(centres[label] + noise, dim=-1)


def used_tiles(query: Tensor, key: Tensor, scale: float) -> float:
    """The share of the 128 × 128 tiles with weight, from the matrix of weights."""
    weights = epan.attention_weights(scale * query @ key.mT, kernel="biweight", normalization="adaptive")
    some = (weights > 0).unflatten(-1, (-1, 128)).any(-1).unflatten(-2, (-1, 128)).any(-2)
    return float(some.double().mean())


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_clusters_in_random_order_become_sparse(similarity: str) -> None:
    query, key = clustered(2048, 12, seed=1), clustered(2048, 12, seed=2)
    by_query, by_key = reorder.cluster(query, key, similarity=similarity)
    before = used_tiles(query, key, 20.0)
    after = used_tiles(query[:, :, by_query[0, 0]], key[:, :, by_key[0, 0]], 20.0)
    # Twelve clusters of sixteen tiles: a twelfth, and twice that for clusters cut by tiles and for one that was split.
    assert before == 1.0
    assert after < 0.25


def test_a_cluster_far_from_the_origin_is_found_in_half_precision() -> None:
    query, key = clustered(2048, 12, seed=1), clustered(2048, 12, seed=2)
    for tensor in (query, key):
        tensor[..., 0] += 20.0
    order = reorder.cluster(query.bfloat16(), key.bfloat16(), similarity="euclidean")
    centred = [tensor - tensor.new_tensor([20.0] + [0.0] * 15) for tensor in (query, key)]
    assert used_tiles(centred[0][:, :, order[0][0, 0]], centred[1][:, :, order[1][0, 0]], 20.0) < 0.3


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_probe_tells_clusters_from_noise(similarity: str) -> None:
    options: dict[str, Any] = {"similarity": similarity, "scale": 20.0}
    query, key = clustered(2048, 12, heads=2, seed=1), clustered(2048, 12, heads=2, seed=2)
    found = epan.reorder_probe(query, key, **options)
    assert found.helps
    assert found.before == 1.0
    assert found.after < 0.25
    noise = [torch.randn(1, 2, 2048, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    nothing = epan.reorder_probe(*noise, similarity=similarity)
    assert not nothing.helps
    assert not epan.reorder_probe(query, key, kernel="gaussian", **options).helps


def test_the_probe_estimates_the_density_of_all_blocks() -> None:
    query, key = clustered(1024, 6, seed=1), clustered(1024, 6, seed=2)
    found = epan.reorder_probe(query, key, scale=20.0, sample=8)
    by_query, by_key = reorder.cluster(query, key)
    assert found.after == pytest.approx(used_tiles(query[:, :, by_query[0, 0]], key[:, :, by_key[0, 0]], 20.0))


def test_the_probe_takes_tensors_of_scale_and_order() -> None:
    query, key = clustered(300, 3, heads=4), clustered(200, 3, heads=2)
    scale, order = torch.full((4, 1, 1), 20.0), torch.full((1, 4, 300, 1), 2.0)
    found = epan.reorder_probe(query, key, scale=scale, kernel=epan.Polynomial(order))
    assert found == epan.reorder_probe(query, key, scale=20.0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((torch.ones(1, 2, 4, 3), torch.ones(1, 2, 4, 2)), "queries and keys"),
        ((torch.ones(1, 3, 4, 3), torch.ones(1, 2, 4, 3)), "queries and keys"),
        ((torch.ones(1, 2, 0, 3), torch.ones(1, 2, 4, 3)), "queries and keys"),
        ((torch.ones(2, 4, 3), torch.ones(2, 4, 3)), "queries and keys"),
    ],
)
def test_the_probe_says_what_it_needs(arguments: tuple[Tensor, Tensor], word: str) -> None:
    with pytest.raises(epan.EpanError, match=word):
        epan.reorder_probe(*arguments)


def test_the_probe_checks_its_options() -> None:
    rows = torch.ones(1, 1, 4, 3)
    with pytest.raises(epan.EpanError, match="sample"):
        epan.reorder_probe(rows, rows, sample=0)
    with pytest.raises(epan.EpanError, match="euclidean"):
        epan.reorder_probe(rows, rows, similarity="euclid")
    with pytest.raises(epan.UnsupportedError, match="fixed"):
        epan.reorder_probe(rows, rows, normalization="fixed")


def test_the_order_is_a_constant_of_the_gradient() -> None:
    inputs = Case(q_len=20, k_len=30).build()
    plain, moved = run(EAGER, inputs), run(sorted_by_cluster("eager"), inputs)
    for name, grad in plain.grads.items():
        tolerance.assert_within(moved.grads[name], grad, band=tolerance.band(grad, [], grad.dtype), label=name)
