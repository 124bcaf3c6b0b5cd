"""Checks that every model configuration shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import EpanError, unknown_name

__all__ = ["check_choice", "check_count", "check_document_token", "check_flag", "check_probability", "make_config"]

C = TypeVar("C")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise EpanError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise EpanError(f"{name} must be an integer", found=value, allowed=f"{name} >= {least}")
    if value < least:
        raise EpanError(f"{name} is too small", found=value, allowed=f"{name} >= {least}")


def check_flag(name: str, value: object) -> None:
    """Raise EpanError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise EpanError(f"{name} must be true or false", found=value)


def check_document_token(value: object, vocab_size: int) -> None:
    """Raise EpanError unless ``value`` is None or a token."""
    if value is not None:
        check_count("document_token", value, 0)
        if value >= vocab_size:  # type: ignore[operator]
            raise EpanError("document_token is no token", found=value, allowed=f"0 to {vocab_size - 1}")


def check_probability(name: str, value: object) -> None:
    """Raise EpanError unless ``value`` is a number in [0, 1)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or math.isnan(value) or not 0 <= value < 1:  # type: ignore[arg-type, operator]
        raise EpanError(f"{name} must be a probability", found=value, allowed=f"0 <= {name} < 1")


def check_choice(name: str, value: object, options: Iterable[str]) -> None:
    """Raise EpanError, with a suggestion, unless ``value`` is one of ``options``."""
    options = tuple(options)
    if value not in options:
        raise unknown_name(name, value, options)


def make_config(cls: type[C], values: Mapping[str, Any]) -> C:
    """The configuration ``cls`` from a mapping such as a JSON object.

    Raises
    ------
    EpanError: for an unknown key, with a suggestion, for a missing one, and for whatever ``cls`` itself refuses.
    """
    if not isinstance(values, Mapping):
        raise EpanError("A model configuration must be a mapping", found=type(values).__name__)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_name(f"key of {cls.__name__}", key, fields)
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise EpanError(
            f"{cls.__name__} lacks a required key", found=sorted(map(str, values)), fix=f"add {', '.join(missing)}"
        )
    return cls(**values)
