"""How fast tasks make sequences: ``python benchmarks/tasks.py``.

One core. Each task draws batches of 256 training sequences, a new step each time; MQMTAR also 8 sequences of 65,536
tokens. Shown are the median and the slowest time of a batch; tokens count source and target, not padding. To beat: 20
ms a batch of 256, well below a second for the 8 long sequences.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from epan import tasks
from epan.tasks import Task
from epan.tasks.base import PAD


def measure(
    task: Task, batch: int, lengths: int | tuple[int, int], repeats: int, device: str
) -> tuple[float, float, int]:
    """Median and slowest milliseconds of a batch, and the tokens of one."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    task.sample(0, 0, batch, lengths, device=device)
    spans, tokens = [], 0
    for step in range(1, repeats + 1):
        wait()
        start = time.perf_counter()
        drawn = task.sample(0, step, batch, lengths, device=device)
        wait()
        spans.append(1e3 * (time.perf_counter() - start))
        tokens = int((drawn.tokens != PAD).sum())
    return statistics.median(spans), max(spans), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="batches per row (default: 50)")
    parser.add_argument("--device", default="cpu", help="device (default: cpu)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {options.device}, 1 thread\n")
    print(f"{'task':<14}{'sequences':>10}{'lengths':>12}{'ms (median)':>13}{'ms (worst)':>12}{'tokens/s':>14}")
    rows: list[tuple[str, int, int | tuple[int, int], int]] = [
        (name, 256, tasks.get(name).train_lengths, options.repeats) for name in tasks.names()
    ]
    rows.append(("mqar", 64, 512, 10))
    rows.append(("mqmtar", 8, 65_536, 10))
    for name, batch, lengths, repeats in rows:
        median, worst, tokens = measure(tasks.get(name), batch, lengths, repeats, options.device)
        shown = "{}-{}".format(*lengths) if isinstance(lengths, tuple) else f"{lengths:,}"
        print(f"{name:<14}{batch:>10}{shown:>12}{median:>13.2f}{worst:>12.2f}{1e3 * tokens / median:>14,.0f}")


if __name__ == "__main__":
    main()
