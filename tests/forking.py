"""Runs scripts and modules in processes forked from one that has imported what they all need.

python tests/forking.py MODULE ...

It imports the modules, then reads lines of JSON, [folder or null, script or module, argument, …], and answers each with a line
[exit code, output, errors] when it has ended. Importing torch takes seconds, which dozens of them would otherwise spend each for
itself.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Forks"]


class Forks:
    """The process that forks, as a test sees it. It is started by the first call of :meth:`run`.

    Parameters
    ----------
    modules: what it imports. options: of its Python. environment: of it and all that it starts.
    """

    def __init__(self, modules: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> None:
        self.command = [sys.executable, *options, __file__, *modules]
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None

    def run(self, target: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """What the script (a path that ends in .py) or module gives, as :func:`subprocess.run` would tell it."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([None if cwd is None else str(cwd), target, *arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BaseException:
            # Nobody is to read the answer to a question that was given up.
            self.close()
            raise
        assert answer, "the process that forks has ended"
        return subprocess.CompletedProcess([target, *arguments], *json.loads(answer))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_here(folder: str | None, target: str, arguments: list[str], outputs: Sequence[IO[bytes]]) -> int:
    """The exit code of the script or module in this process."""
    for stream, file in zip((1, 2), outputs, strict=True):
        os.dup2(file.fileno(), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if folder is not None:
        os.chdir(folder)
    sys.argv = [target, *arguments]
    try:
        if target.endswith(".py"):
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        folder, target, *arguments = json.loads(line)
        assert threading.active_count() == 1, "a process with threads is not to be forked"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = run_here(folder, target, arguments, (out, errors))
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, errors):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        print(json.dumps([code, *said]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
