"""Objects from a name and options, as configs write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import EpanError, unknown_name

__all__ = ["make"]

T = TypeVar("T")


def make(kind: str, name: str, factory: Callable[..., T], options: Mapping[str, object], example: str | None) -> T:
    """The object that the dataclass ``factory`` makes of ``options``.

    Parameters
    ----------
    kind, name: what it is and what it is called, for the message.
    factory: a dataclass.
    options: its fields by name.
    example: how it is written, where fields have no default.

    Raises
    ------
    EpanError: for an unknown option, with a suggestion, for a missing one, and for whatever ``factory`` refuses.
    """
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(factory)  # type: ignore[arg-type]
    fields = tuple(field for field in fields if field.init)
    for option in options:
        if option not in (known := [field.name for field in fields]):
            raise unknown_name(f"option of the {kind} {name!r}:", option, known)
    absent = (dataclasses.MISSING, dataclasses.MISSING)
    required = [field.name for field in fields if (field.default, field.default_factory) == absent]
    missing = [option for option in required if option not in options]
    if missing:
        raise EpanError(
            f"The {kind} {name!r} lacks its option {', '.join(map(repr, missing))}",
            found={"name": name, **options},
            fix=None if example is None else f"write e.g. {example}",
        )
    return factory(**options)
