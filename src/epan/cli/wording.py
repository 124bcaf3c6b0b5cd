"""Errors of the library in the words of the command line: ``kernel="gaussian"`` becomes ``--kernel gaussian``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from epan.errors import EpanError

__all__ = ["as_options", "in_options"]

_CHOICE = re.compile(r"""(?<![\w.-])(kernel|normalization)=(["'])([\w:=.-]+)\2""")
# epan.Nearest(k=16), alone or as the value of an argument; brackets may stand in the parameters.
_OBJECT = re.compile(r"(?:\b(?:kernel|normalization)=)?\bepan\.(Nearest|Polynomial|Uniform)\(((?:[^()]|\([^()]*\))*)\)")
# The models choose the similarity that a normalization needs.
_SIMILARITY = re.compile(r""",? (?:with )?similarity=(["'])\w+\1""")


def as_options(text: str) -> str:
    """``text`` with arguments of Python as options of ``epan train``."""

    def instance(match: re.Match[str]) -> str:
        option = "--normalization" if match[1] == "Nearest" else "--kernel"
        return f"{option} {match[1].lower()}:{'k=16' if match[2] == 'k' else match[2]}"

    text = _OBJECT.sub(instance, _SIMILARITY.sub("", text))
    return _CHOICE.sub(r"--\1 \3", text).replace(", --", " --")


@contextmanager
def in_options() -> Iterator[None]:
    """An EpanError from inside the block names options."""
    try:
        yield
    except EpanError as error:
        fix = as_options(error.fix) if error.fix else None
        raise EpanError(as_options(error.what), found=error.found, allowed=error.allowed, fix=fix) from error
