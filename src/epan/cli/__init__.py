"""The command line: ``epan`` and ``python -m epan``. Each command is one file, imported when it is asked for."""
