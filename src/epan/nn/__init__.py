"""Layers: memories, attention, and the parts they are made of."""

from __future__ import annotations

from .attention import AttentionCache, KernelAttention
from .bandwidth import (
    ContextualScale,
    HeadScale,
    LearnableOrder,
    LengthAdaptiveScale,
    initial_scale,
    radius_of_random_keys,
    similarity_for,
)
from .documents import Documents
from .extractors import KeyExtractor, ValueExtractor
from .feedforward import GELUFeedForward, SwiGLU
from .inspection import ReadsSequence, scaled
from .leaky_average import GatedLeakyAverage, LeakyAverage, leaky_average
from .length_scaling import ASEntmax, SSMax
from .memories import ContextualCache, ContextualMemory, PersistentMemory
from .positions import alibi_slopes, rotate
from .short_convolution import ShortConvolution

__all__ = [
    "ASEntmax",
    "AttentionCache",
    "ContextualCache",
    "ContextualMemory",
    "ContextualScale",
    "Documents",
    "GELUFeedForward",
    "GatedLeakyAverage",
    "HeadScale",
    "KernelAttention",
    "KeyExtractor",
    "LeakyAverage",
    "LearnableOrder",
    "LengthAdaptiveScale",
    "PersistentMemory",
    "ReadsSequence",
    "SSMax",
    "ShortConvolution",
    "SwiGLU",
    "ValueExtractor",
    "alibi_slopes",
    "initial_scale",
    "leaky_average",
    "radius_of_random_keys",
    "rotate",
    "scaled",
    "similarity_for",
]
