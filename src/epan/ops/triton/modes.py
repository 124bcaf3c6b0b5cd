"""How something is done, where that may be forced within a ``with`` block; results are exact either way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ...errors import unknown_name

__all__ = ["Mode"]


class Mode:
    """One of some modes, "auto" unless forced; what one thread or task forces, others do not see.

    Parameters
    ----------
    title: for people, in an error. allowed: the modes.
    """

    def __init__(self, title: str, allowed: Sequence[str]) -> None:
        self.title, self.allowed = title, allowed
        self._chosen: ContextVar[str] = ContextVar(f"epan_triton_{title}", default="auto")

    @contextmanager
    def forced(self, mode: str) -> Iterator[None]:
        """This mode within a ``with`` block; EpanError for an unknown one."""
        if mode not in self.allowed:
            raise unknown_name(self.title, mode, self.allowed)
        token = self._chosen.set(mode)
        try:
            yield
        finally:
            self._chosen.reset(token)

    def in_force(self) -> str:
        """The mode that holds here."""
        return self._chosen.get()
