"""Tokenises shards in a process of its own: ``python -m epan.data.worker FOLDER``.

It reads numbers of shards from standard input, a line each, and answers each with a line of JSON: {} or what went wrong. The
end of its input, also because the process that started it is gone, ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

__all__ = ["PLAN", "main"]

PLAN = "plan.json"


def main(folder: Path) -> int:
    """Do what is asked for until nothing more is."""
    # Processes are what runs side by side here, and Ctrl-C is for the one that started them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from epan.data.shards import write_shard
    from epan.data.sources import Plan
    from epan.data.tokenizing import load_tokenizer
    from epan.errors import EpanError

    values = json.loads((folder / PLAN).read_text("utf-8"))
    plan, identity = Plan.from_dict(values["plan"]), values["identity"]
    tokenizer = load_tokenizer(folder)
    for line in sys.stdin:
        answer = {}
        try:
            write_shard(folder, plan, int(line), tokenizer, identity)
        except EpanError as error:
            answer = {"what": error.what, "found": error.found, "allowed": error.allowed, "fix": error.fix}
        print(json.dumps(answer, default=str), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
