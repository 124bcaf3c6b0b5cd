"""Say clearly whether this Python can run epan, before anything is downloaded.

Exit status 0: it can.  1: it cannot, and the reason and the way out are on stderr.
"""
# This file must parse on every Python, the old ones above all: no f-strings, no annotations.

import sys

LOWEST, BEYOND = (3, 11), (3, 15)


def complaint(version):
    """The sentence that refuses ``version`` (a tuple), or an empty string when it is fine."""
    if LOWEST <= tuple(version[:2]) < BEYOND:
        return ""
    return (
        "epan needs Python {0}.{1} to {2}.{3}; {4} is Python {5}.\n"
        "Install a newer one (python.org, your package manager, or 'uv python install 3.13'),\n"
        "or name one that you have:  make demo PYTHON=/path/to/python3.13"
    ).format(
        LOWEST[0],
        LOWEST[1],
        BEYOND[0],
        BEYOND[1] - 1,
        sys.executable or "this interpreter",
        ".".join(str(part) for part in version[:3]),
    )


def main():
    message = complaint(sys.version_info)
    if not message:
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError:
            message = (
                "{0} has no 'venv' module, which 'make' needs to build its environment.\n"
                "On Debian and Ubuntu:  sudo apt install python3-venv"
            ).format(sys.executable)
    if message:
        sys.stderr.write(message + "\n")
    return 1 if message else 0


if __name__ == "__main__":
    sys.exit(main())
