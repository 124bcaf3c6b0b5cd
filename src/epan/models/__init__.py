"""Models, each with a configuration: found by name, built from a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import unknown_name
from .base import LanguageModel
from .config import make_config
from .generation import TextStream, generate
from .memory_mosaic import MemoryMosaic, MemoryMosaicConfig
from .transformer import Transformer, TransformerConfig

__all__ = [
    "LanguageModel",
    "MemoryMosaic",
    "MemoryMosaicConfig",
    "TextStream",
    "Transformer",
    "TransformerConfig",
    "build",
    "config_of",
    "generate",
    "names",
    "option_names",
]

_CATALOGUE: dict[str, tuple[Any, Any]] = {
    "memory_mosaic": (MemoryMosaicConfig, MemoryMosaic),
    "transformer": (TransformerConfig, Transformer),
}
_HINTS = {
    "mosaic": 'the name is "memory_mosaic"',
    "memory-mosaic": 'the name is "memory_mosaic"',
    "gpt": 'use "transformer" with positions, norm and feed_forward of your choice',
}


def names() -> tuple[str, ...]:
    """The names of the models."""
    return tuple(_CATALOGUE)


def option_names(name: str) -> tuple[str, ...]:
    """The keys of the configuration of the model ``name``; EpanError, with a suggestion, for an unknown name."""
    return tuple(field.name for field in dataclasses.fields(_entry(name)[0]))


def config_of(name: str, values: Mapping[str, Any]) -> MemoryMosaicConfig | TransformerConfig:
    """The checked configuration of the model ``name`` from a mapping.

    Raises
    ------
    EpanError: for an unknown name or key, with a suggestion, and for values that do not fit.
    """
    return make_config(_entry(name)[0], values)


def build(name: str, values: Mapping[str, Any]) -> LanguageModel:
    """The model ``name`` with the configuration ``values``, freshly initialised from torch's random state.

    Raises
    ------
    EpanError: for an unknown name or key, with a suggestion, and for values that do not fit.
    """
    return _entry(name)[1](config_of(name, values))


def _entry(name: str) -> tuple[Any, Any]:
    entry = _CATALOGUE.get(name)
    if entry is None:
        raise unknown_name("model", name, _CATALOGUE, _HINTS)
    return entry
