"""Kernels and normalizations as a config writes them: a name, or a name with options."""

from __future__ import annotations

import json
import re

from epan.errors import EpanError

__all__ = ["Scalar", "choice_text", "parse_choice"]

Scalar = int | float | bool | str | None

_FORMS = "a name such as biweight, name:option=value such as nearest:k=16, or a dict with the key 'name'"
_SPEC = re.compile(r"^\s*([\w-]+)\s*(?::\s*([^()]*)|\(\s*(.*?)\s*\))\s*$")


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) or value is None else text


def parse_choice(value: str | dict[str, Scalar], key: str) -> str | dict[str, Scalar]:
    """A kernel or normalization as a name or a dict with a ``name``.

    ``"biweight"`` stays; ``"nearest:k=16"`` and ``"nearest(k=16)"`` become ``{"name": "nearest", "k": 16}``; JSON is
    read.

    Parameters
    ----------
    value: a name, text of one of these forms, or the dict itself.
    key: the config key, for the message.

    Raises
    ------
    EpanError: text that has none of these forms, a dict without a name.
    """
    try:
        parsed = _parse_text(value) if isinstance(value, str) else value
    except ValueError as error:
        raise EpanError(f"Config key {key!r} cannot be read: {error}", found=value, allowed=_FORMS) from None
    if isinstance(parsed, str):
        return parsed
    if not isinstance(parsed, dict) or not isinstance(parsed.get("name"), str):
        raise EpanError(f"Config key {key!r} needs a name", found=value, allowed=_FORMS)
    return parsed if len(parsed) > 1 else str(parsed["name"])


def _parse_text(text: str) -> str | dict[str, Scalar]:
    if text.lstrip().startswith("{"):
        parsed = json.loads(text)
        assert isinstance(parsed, dict)
        return parsed
    match = _SPEC.match(text)
    if match is None:
        if not text.strip() or any(mark in text for mark in ":()="):
            raise ValueError("it has no known form")
        return text.strip()
    options: dict[str, Scalar] = {"name": match[1]}
    for part in filter(None, re.split(r"[,;]\s*", match[2] or match[3] or "")):
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise ValueError(f"{part!r} is no option=value")
        options[option.strip()] = _scalar(value.strip())
    return options


def choice_text(choice: str | dict[str, Scalar]) -> str:
    """How a kernel or normalization is shown: ``biweight``, ``nearest(k=16)``."""
    if isinstance(choice, str):
        return choice
    options = ", ".join(f"{key}={value}" for key, value in choice.items() if key != "name")
    return f"{choice['name']}({options})"
