"""Documents in one row: each is computed as if it were alone, in one pass and with the cache, on every path of the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from epan.errors import EpanError
from epan.metrics import next_token_loss
from epan.models import LanguageModel, build
from epan.nn import Documents, KernelAttention

TOKEN = 5
SIZES = {"vocab_size": 9, "layers": 2, "heads": 2, "width": 16, "dropout": 0.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("memory_mosaic", {}),
    ("memory_mosaic", {"kernel": "gaussian"}),
    ("memory_mosaic", {"normalization": "anchored"}),
    ("memory_mosaic", {"normalization": "fixed"}),
    ("memory_mosaic", {"kernel": "gaussian", "normalization": {"name": "nearest", "k": 2}}),
    ("memory_mosaic", {"adaptive_bandwidth": True, "gated_keys": True}),
    ("memory_mosaic", {"short_window": 4, "adaptive_bandwidth": True}),
    ("memory_mosaic", {"learn_order": True}),
    ("memory_mosaic", {"persistent": "swiglu"}),
    ("transformer", {}),
    ("transformer", {"positions": "alibi", "learn_scale": True}),
    ("transformer", {"positions": "half", "length_scaling": "asentmax"}),
    ("transformer", {"positions": "nope", "length_scaling": "ssmax"}),
    ("transformer", {"kv_heads": 1, "learn_order": True}),
]


def twins(name: str, options: dict[str, Any]) -> tuple[LanguageModel, LanguageModel]:
    """The same weights in a model that knows documents, and in one that does not."""
    knowing = build(name, {**SIZES, **options, "document_token": TOKEN}).double().eval()
    plain = build(name, {**SIZES, **options}).double().eval()
    plain.load_state_dict(knowing.state_dict())
    return knowing, plain


def documents(*lengths: int) -> list[torch.Tensor]:
    found = [torch.randint(0, TOKEN, (1, length)) for length in lengths]
    for document in found[1:]:
        document[:, 0] = TOKEN
    return found


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_document_is_as_if_alone(name: str, options: dict[str, Any]) -> None:
    knowing, plain = twins(name, options)
    rows = [documents(7, 1, 12), documents(1, 15, 4)]
    tokens = torch.cat([torch.cat(row, 1) for row in rows])
    alone = torch.cat([torch.cat([plain(document) for document in row], 1) for row in rows])
    together = knowing(tokens)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    # Without documents the numbers are others, so that the comparison says something.
    assert bool((plain(tokens)[:, 7:] - alone[:, 7:]).abs().max() > 1e-3)

    cache, pieces = knowing.init_cache(2), []
    for piece in tokens.split([3, 0, 5, 1, 11], 1):
        logits, cache = knowing.step(piece, cache)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_gradient_crosses_a_boundary(name: str, options: dict[str, Any]) -> None:
    """Changing one document changes no output and no gradient of the others, and the loss is the sum of theirs."""
    knowing, plain = twins(name, options)
    first, second = documents(6, 9)
    tokens = torch.cat([first, second], 1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    # The first token of the second document is predicted by the first, and by nobody where it is alone.
    mask[:, 6] = False
    next_token_loss(knowing(tokens), tokens, mask)[0].backward()
    for document in (first, second):
        next_token_loss(plain(document), document, torch.ones_like(document, dtype=torch.bool))[0].backward()
    for (key, one), other in zip(knowing.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", ["memory_mosaic", "transformer"])
def test_statistics_and_checkpointing(name: str) -> None:
    knowing, plain = twins(name, {})
    first, second = documents(6, 9)
    tokens = torch.cat([first, second], 1)
    logits, stats = knowing(tokens, return_stats=True)
    _, alone = plain(second, return_stats=True)
    for key, found in stats.items():
        assert found.support_size.shape == (1, 2, 15)
        assert torch.equal(found.support_size[..., 6:], alone[key].support_size)
    knowing.gradient_checkpointing = True
    again = knowing.train()(tokens)
    torch.testing.assert_close(again, logits, rtol=1e-12, atol=1e-12)
    again.sum().backward()


def test_where_documents_begin() -> None:
    tokens = torch.tensor([[1, 2, TOKEN, 3], [TOKEN, TOKEN, 1, 1]])
    found = Documents.of(tokens, TOKEN)
    assert found is not None
    assert found.position.tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]]
    assert found.offsets.tolist() == [0, 2, 4, 5, 8]
    assert Documents.of(tokens, None) is None
    assert Documents.of(tokens[:, :0], TOKEN) is None


def test_traced_offsets_are_those_of_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where their number may not be looked at, empty documents fill up, and outputs are the same."""
    knowing, _ = twins("memory_mosaic", {})
    tokens = torch.cat(documents(7, 5), 1)
    expected = knowing(tokens)
    monkeypatch.setattr("epan.nn.documents.is_traced", lambda: True)
    found = Documents.of(tokens, TOKEN)
    assert found is not None
    assert found.offsets.tolist() == [0, 7] + [12] * 11
    torch.testing.assert_close(knowing(tokens), expected, rtol=1e-12, atol=1e-12)


def test_what_documents_are_not_for() -> None:
    layer = KernelAttention(8, 2)
    x, found = torch.randn(1, 4, 8), Documents.of(torch.tensor([[1, 2, TOKEN, 3]]), TOKEN)
    with pytest.raises(EpanError, match="causal attention over the sequence itself"):
        layer(x, documents=found)
    for name in ("memory_mosaic", "transformer"):
        with pytest.raises(EpanError, match="document_token"):
            build(name, {**SIZES, "document_token": 9})
