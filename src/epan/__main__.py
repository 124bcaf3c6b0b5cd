"""``python -m epan`` is the command ``epan``."""

from __future__ import annotations

from epan.cli.main import main

if __name__ == "__main__":
    main()
