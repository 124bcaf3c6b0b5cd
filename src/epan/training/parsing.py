"""Configs from dicts, files and `key=value` texts, with errors that name the dotted path of the key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from epan.errors import EpanError
from epan.training.config import RunConfig

__all__ = ["build", "differences", "load_config", "override"]

T = TypeVar("T")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _known_paths(cls: type, path: str = "") -> list[str]:
    paths = []
    for name, hint in typing.get_type_hints(cls).items():
        paths += [_join(path, name)]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            paths += _known_paths(hint, _join(path, name))
    return paths


def _unknown_key(path: str, key: str, legal: Iterable[str]) -> EpanError:
    legal = sorted(legal)
    # A key at the wrong level is the most frequent slip: its name may exist elsewhere.
    likely = [known for known in _known_paths(RunConfig) if known.rsplit(".", 1)[-1] == key]
    likely = likely or [_join(path, match) for match in difflib.get_close_matches(key, legal, n=2, cutoff=0.5)]
    fix = f"did you mean {' or '.join(map(repr, likely))}?" if likely else "remove it, or use an allowed key"
    return EpanError(f"Unknown config key {_join(path, key)!r}", allowed=legal, fix=fix)


def _describe(hint: object) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    if hint in names:
        return names[hint]  # type: ignore[index]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_describe(argument) for argument in arguments))
    if origin is tuple:
        kind = _describe(arguments[0])
        return (
            f"a list of values, each {kind}" if arguments[-1] is Ellipsis else f"{len(arguments)} values, each {kind}"
        )
    if origin is list:
        return "a list"
    return "a table of keys and values"


def _convert(hint: object, value: object, path: str) -> object:
    """``value`` as the type ``hint``, or the EpanError that names ``path``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        return build(hint, value, path)
    if origin in (types.UnionType, typing.Union):
        # bool is an int in Python and 1 is a float in JSON: the exact type goes first.
        for member in sorted(arguments, key=lambda member: type(value) is not member):
            try:
                return _convert(member, value, path)
            except EpanError:
                continue
    elif origin is Literal:
        if any(type(value) is type(legal) and value == legal for legal in arguments):
            return value
        if isinstance(value, str):
            close = difflib.get_close_matches(value, [str(legal) for legal in arguments], n=1, cutoff=0.5)
            raise EpanError(
                f"Config key {path!r} has a value that does not exist",
                found=repr(value),
                allowed=_describe(hint),
                fix=f"did you mean {close[0]!r}?" if close else None,
            )
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value) and (value or arguments[-1] is not Ellipsis):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_convert(kind, item, f"{path}[{i}]") for i, (kind, item) in pairs)
    elif origin is list and isinstance(value, list | tuple):
        return [_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    elif origin is dict and isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _convert(arguments[1], item, _join(path, key)) for key, item in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise EpanError(f"Config key {path!r} has the wrong type", found=repr(value), allowed=_describe(hint))


def build(cls: type[T], values: object, path: str = "") -> T:
    """The dataclass ``cls`` from a dict; every key must exist and every value must have its type.

    Raises
    ------
    EpanError: names the dotted path of the key, what was found and what is allowed.
    """
    where = f"Config key {path!r}" if path else "The config"
    if not isinstance(values, dict):
        raise EpanError(f"{where} must be a table of keys and values", found=repr(values))
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise _unknown_key(path, str(key), hints)
    return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def load_config(path: str | Path) -> RunConfig:
    """The config of a ``.json`` or ``.toml`` file, or of a run that was made before (its folder or ``record.jsonl``).

    Raises
    ------
    EpanError: no such file, another ending, a syntax error (with its place), an unknown key or a wrong value.
    """
    from epan.training import records

    path = Path(path)
    if path.is_dir() or path.suffix == ".jsonl":
        values: object = records.header(records.read(path), path).get("config")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            fix = "give the path of a .json or .toml config"
            raise EpanError(f"The config cannot be read: {reason}", found=str(path), fix=fix) from None
        if path.suffix not in (".json", ".toml"):
            raise EpanError("Unknown kind of config file", found=str(path), allowed=".json, .toml, or a run folder")
        try:
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except ValueError as error:
            raise EpanError(f"The config has a syntax error: {error}", found=str(path)) from None
    return RunConfig.from_dict(values)  # type: ignore[arg-type]


def override(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """``config`` with some keys changed, each given as ``dotted.key=value``.

    The value is JSON (``64``, ``0.1``, ``true``, ``null``, ``[32, 64]``, ``{"name": "nearest", "k": 16}``) or a bare
    word.

    Raises
    ------
    EpanError: no ``=``, an unknown key, a wrong value.
    """
    values = config.to_dict()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise EpanError("A setting must look like key=value", found=assignment, fix="e.g. model.kernel=gaussian")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
            value = None if value.lower() == "none" else value
        table: dict[str, object] = values
        for depth, part in enumerate(parts[:-1]):
            inner = table.get(part)
            if not isinstance(inner, dict):
                path = ".".join(parts[: depth + 1])
                if part not in table:
                    raise _unknown_key(".".join(parts[:depth]), part, table)
                raise EpanError(f"Config key {path!r} has no keys below it", found=assignment)
            table = inner
        table[parts[-1]] = value
    return RunConfig.from_dict(values)


def differences(old: dict[str, object], new: dict[str, object], path: str = "") -> list[str]:
    """One line for every key whose value differs, such as ``optimizer.clip: 1.0 -> 0.5``."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, _join(path, key))
        elif before != after:
            lines.append(f"{_join(path, key)}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines
