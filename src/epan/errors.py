"""Errors for people: what happened, what was found, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["LAB", "EpanError", "UnsupportedError", "lab_imports", "not_installed", "unknown_name"]

# What the extra [lab] brings: training, reports and the commands need it, the mathematics does not.
LAB = ("accelerate", "cyclopts", "matplotlib", "numpy", "rich", "safetensors")


class EpanError(ValueError):
    """A mistake that the caller can mend; the message says how.

    Parameters
    ----------
    what: one sentence that says what went wrong.
    found: the offending value, shown with ``repr`` unless it is already a string.
    allowed: the legal values, a sentence or an iterable of names.
    fix: what to do instead.
    """

    def __init__(
        self,
        what: str,
        *,
        found: object | None = None,
        allowed: str | Iterable[object] | None = None,
        fix: str | None = None,
    ) -> None:
        parts = [what.rstrip(".") + "."]
        if found is not None:
            parts.append(f"Found: {found if isinstance(found, str) else repr(found)}.")
        if allowed is not None:
            listed = allowed if isinstance(allowed, str) else ", ".join(str(item) for item in allowed)
            parts.append(f"Allowed: {listed.rstrip('.')}.")
        if fix is not None:
            parts.append(f"Fix: {fix}" if fix.endswith("?") else f"Fix: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))
        self.what, self.found, self.allowed, self.fix = what, found, allowed, fix


class UnsupportedError(EpanError):
    """A combination that has no meaning, or no implementation on the backend that was asked for.

    Parameters
    ----------
    subject: the backend or the combination, e.g. ``"tiled"`` or ``"normalization='fixed' with similarity='dot'"``.
    reason: why it cannot be.
    fix: what to do instead.
    """

    def __init__(self, subject: str, reason: str, fix: str) -> None:
        super().__init__(f"{subject} is not supported: {reason}", fix=fix)
        self.subject, self.reason = subject, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.subject, self.reason, self.fix or "")


def unknown_name(kind: str, name: object, options: Iterable[str], hints: dict[str, str] | None = None) -> EpanError:
    """An error for a misspelt ``name`` of a ``kind``, with the closest legal names or a hint."""
    options = sorted(options)
    key = str(name).lower()
    if hints and key in hints:
        return EpanError(f"Unknown {kind} {name!r}", allowed=options, fix=hints[key])
    close = difflib.get_close_matches(key, options, n=2, cutoff=0.5)
    fix = f"did you mean {' or '.join(repr(match) for match in close)}?" if close else "use one of the allowed values"
    return EpanError(f"Unknown {kind} {name!r}", allowed=options, fix=fix)


def not_installed(packages: Iterable[str], what: str) -> EpanError:
    """An error for ``packages`` (of the extra ``[lab]``, or torch) that ``what`` needs and that are not there."""
    packages = list(packages)
    extra = 'pip install ".[lab]" in a checkout of epan, or ' if set(packages) & set(LAB) else ""
    return EpanError(
        f"{what} needs {', '.join(packages)}, which {'is' if len(packages) == 1 else 'are'} not installed",
        fix=f"{extra}pip install {' '.join(packages)}",
    )


@contextmanager
def lab_imports(what: str) -> Iterator[None]:
    """Around imports of the extra ``[lab]`` that ``what`` needs: a package that is not there becomes an EpanError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in LAB:
            raise
        raise not_installed([package], what) from error
