"""Runs scripts of this folder in processes forked from one that has imported what they all need.

python tests/ops/forking.py

It reads lines of JSON, [script, argument, …], and answers each with a line [exit code, output] when the script has ended.
Importing torch and Triton takes seconds, which a few dozen groups of cases would otherwise spend each for itself.
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
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent


class Scripts:
    """The process that forks, as a test sees it. It is started by the first script."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, script: str, *arguments: str) -> str:
        """What the script prints; one that fails is an assertion that fails."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-W", "ignore", __file__]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([script, *arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BaseException:
            # Nobody is to read the answer to a question that was given up.
            self.close()
            raise
        assert answer, "the process that starts scripts has ended"
        code, said = json.loads(answer)
        assert code == 0, said[-6000:]
        return str(said)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_here(script: str, arguments: list[str], output: IO[bytes]) -> int:
    """The exit code of the script in this process, all of whose output goes to a file."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.argv = [str(HERE / script), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve() -> None:
    for name in ("interpreter", "epan.testing.conformance", "epan.nn", "epan.ops.triton.launch", "torch._dynamo"):
        importlib.import_module(name)
    for line in sys.stdin:
        script, *arguments = json.loads(line)
        assert threading.active_count() == 1, "a process with threads is not to be forked"
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = run_here(script, arguments, output)
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            said = output.read().decode(errors="replace")
        print(json.dumps([code, said]), flush=True)


if __name__ == "__main__":
    serve()
