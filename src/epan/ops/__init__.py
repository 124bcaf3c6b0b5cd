"""Operators: attention on several backends, and the weights alone."""

from __future__ import annotations

from ..normalizations import Stats
from .attention import attention, attention_varlen
from .reorder import probe as reorder_probe
from .weights import attention_weights

__all__ = ["Stats", "attention", "attention_varlen", "attention_weights", "reorder_probe"]
