"""The Python file that lists the runs of a sweep. Needs no torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from epan.errors import EpanError
from epan.training.config import RunConfig

__all__ = ["load_sweep", "select"]


def load_sweep(path: str | Path, name: str = "runs") -> list[RunConfig]:
    """The runs of a Python file: what its function ``name()`` returns, or its list ``name``. The file is executed.

    Raises
    ------
    EpanError: no such file, an error in it (with the line), nothing of that name, something in it that is no RunConfig.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise EpanError("A sweep is a Python file", found=str(path), fix="give a .py file that defines runs()")
    spec = importlib.util.spec_from_file_location(f"epan_sweep_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses of the file look their module up here.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        runs = found() if callable(found) else found
    except EpanError:
        raise
    except Exception as error:
        raise EpanError(f"The sweep file fails: {type(error).__name__}: {error}", found=_place(error, path)) from error
    example = f"def {name}() -> list[RunConfig]: return [RunConfig(seed=seed) for seed in range(3)]"
    if not isinstance(runs, list | tuple) or not runs:
        raise EpanError("The sweep file defines no runs", found=f"{name} = {runs!r} in {path}", fix=f"define {example}")
    for run in runs:
        if not isinstance(run, RunConfig):
            raise EpanError("The sweep file lists something that is no RunConfig", found=repr(run), fix=example)
    return list(runs)


def select(runs: Sequence[RunConfig], patterns: Sequence[str]) -> list[RunConfig]:
    """The runs whose label fits one of the ``patterns`` (``*``, ``?`` and ``[…]`` as in a shell); all without patterns.

    Raises
    ------
    EpanError: a pattern fits no run.
    """
    for pattern in patterns:
        if not any(fnmatchcase(run.label, pattern) for run in runs):
            shown = ", ".join(run.label for run in runs[:3])
            more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
            raise EpanError("No run has such a label", found=pattern, allowed=shown + more, fix="e.g. --only '*seed0'")
    return [run for run in runs if not patterns or any(fnmatchcase(run.label, pattern) for pattern in patterns)]


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {path}"
    line, trace = 0, error.__traceback__
    while trace is not None:
        # The import system makes a relative path absolute.
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line} of {path}"
