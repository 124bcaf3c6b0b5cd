"""The short convolution: torch's own, causal, and off unless asked for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from epan.errors import EpanError
from epan.models import build
from epan.nn import KernelAttention, ShortConvolution


@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_it_is_torchs_depthwise_convolution(steps: int) -> None:
    layer = ShortConvolution(6, 4).double()
    x = torch.randn(3, steps, 6, dtype=torch.float64)
    kernel = layer.weight.flip(0).T[:, None]
    expected = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), kernel, groups=6).transpose(1, 2) if steps else x
    assert layer(x).shape == x.shape
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_it_computes_in_float32_at_least_and_keeps_the_dtype() -> None:
    layer, x = ShortConvolution(8, 3), torch.randn(2, 20, 8).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, layer(x.float()).bfloat16())


def test_attention_mixes_queries_keys_and_values_before_the_heads() -> None:
    layer = KernelAttention(8, 2, kernel="gaussian", short_conv=3, kv_heads=1).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    q = layer.query_convolution(x @ layer.query.weight.T).view(2, 7, 2, 4).transpose(1, 2)
    k = layer.key_convolution(x @ layer.key.weight.T)[:, None]
    v = layer.value_convolution(x @ layer.value.weight.T)[:, None]
    read = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = read.transpose(1, 2).flatten(2) @ layer.output.weight.T
    assert (layer(x, is_causal=True) - expected).abs().max() <= 1e-12


def test_without_it_a_model_has_the_parameters_that_it_had() -> None:
    sizes = {"vocab_size": 11, "layers": 1, "heads": 2, "width": 8}
    assert not any("convolution" in name for name in build("transformer", sizes).state_dict())
    for size in (1, 0, True):
        with pytest.raises(EpanError, match="short_conv"):
            build("transformer", {**sizes, "short_conv": size})
    with pytest.raises(EpanError, match="size"):
        ShortConvolution(8, 1)
