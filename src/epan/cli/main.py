"""The entry point: finds the command, imports it, and turns mistakes into one line and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence

from epan._version import __version__
from epan.cli.catalogue import COMMANDS
from epan.cli.output import is_main
from epan.errors import LAB, EpanError, not_installed, unknown_name

__all__ = ["main", "run"]

EXIT_OK, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130


def help_text() -> str:
    """The overview of ``epan --help``, made without importing any command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Attention as compact kernel regression: exact sparse attention, models, tasks and experiments.",
            "",
            "Usage: epan COMMAND [OPTIONS]",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --help      This text; after a command, its options.",
            "  --version   The version of epan.",
            "  --debug     Show the traceback of an error.",
            "",
            "New here? `epan demo` takes a few minutes on two CPU cores.",
        ]
    )


def main() -> None:
    """Run the command of ``sys.argv`` and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of ``epan ARGUMENTS``: 0, 1 (a run or check failed), 2 (a mistake to mend), 130 (Ctrl-C)."""
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        # A warning is for the user, who has no use for the line of code that gave it.
        warnings.formatwarning = lambda message, *_: f"epan: warning: {message}\n"
    try:
        code = _dispatch(rest)
        # What is still in the buffer may find the pipe closed, too.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _tell("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has gone; nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text())
        return EXIT_OK
    if arguments[0] in ("--version", "-V"):
        print(f"epan {__version__}")
        return EXIT_OK
    name, *rest = arguments
    if name.startswith("-"):
        raise EpanError(
            "The command comes first, then its options", found=name, allowed=COMMANDS, fix="see epan --help"
        )
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    asks_for_help = "--help" in rest or "-h" in rest
    # The doctor itself says what is wrong with torch, and no help needs it.
    needed = LAB if asks_for_help or name == "doctor" else (*LAB, "torch")
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    module, _, function = COMMANDS[name].target.partition(":")
    if missing:
        if name == "doctor" and rest in ([], ["--json"]):
            # The command that says what is missing must not miss it.
            return int(getattr(importlib.import_module(module), function)(json=bool(rest)))
        raise not_installed(missing, f"The command {name!r}")
    from cyclopts import App, Parameter

    app = App(
        name=f"epan {name}",
        help_flags=["--help", "-h"],
        version_flags=[],
        help_format="plaintext",
        default_parameter=Parameter(show_default=False),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        print_error=False,
        exit_on_error=False,
    )
    app.default(getattr(importlib.import_module(module), function))
    result = app(rest)
    return result if isinstance(result, int) else EXIT_OK


def _explain(error: Exception) -> int:
    """One clear message for a mistake of the user; an error of epan itself is called one."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if "epan.training.errors.TrainingError" in kinds:
        return _tell(str(error), EXIT_FAILED)
    if isinstance(error, EpanError):
        return _tell(str(error), EXIT_USER)
    if any(kind.startswith("cyclopts.") for kind in kinds):
        return _tell(" ".join(str(error).split()), EXIT_USER)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in (*LAB, "torch"):
            return _tell(str(not_installed([package], "The command")), EXIT_USER)
    hint = "Fix: run it again with --debug, and report what it shows."
    return _tell(f"epan failed unexpectedly: {type(error).__name__}: {error}. {hint}", EXIT_FAILED)


def _tell(message: str, code: int) -> int:
    sys.stdout.flush()
    # What a message quotes may come from a file that somebody else wrote: no terminal is to take it for a command.
    message = "".join(mark if mark.isprintable() or mark == "\n" else ascii(mark)[1:-1] for mark in message)
    # Of several processes that torchrun started all make the same mistake, and one says so.
    if is_main() or code == EXIT_FAILED:
        print(f"epan: {message}", file=sys.stderr)
    return code
