"""``epan demo``: five attention methods on one task, side by side."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from epan.cli.output import cores, duration, number, print_table, share
from epan.cli.room import make_room
from epan.errors import EpanError

if TYPE_CHECKING:
    from epan.report.summary import Setting, Spread
    from epan.training import RunConfig

__all__ = ["METHODS", "DemoOptions", "configs", "demo", "tables"]

METHODS = (
    ("gaussian", "adaptive"),
    ("epanechnikov", "adaptive"),
    ("biweight", "adaptive"),
    ("triweight", "adaptive"),
    ("epanechnikov", "anchored"),
)


@Parameter(name="*")
@dataclass(frozen=True)
class DemoOptions:
    """Options of ``epan demo``."""

    text: Annotated[
        str | None,
        Parameter(help="Learn to write like this text instead: a file, a folder or a glob; one model, bytes."),
    ] = None
    out: Annotated[
        Path | None, Parameter(help="Folder of runs and report (default runs/demo, with --text runs/text).")
    ] = None
    seeds: Annotated[int, Parameter(help="Seeds of every method (default 1; each takes as long again).")] = 1
    workers: Annotated[
        int | None, Parameter(help="Runs at a time, one thread each (default: one per core, at most 5).")
    ] = None
    quick: Annotated[bool, Parameter(negative="", help="A few steps only: tries everything out, learns nothing.")] = (
        False
    )


def configs(seeds: int = 1, quick: bool = False) -> list[RunConfig]:
    """The runs of the demo: every method with every seed, equal in all else."""
    from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

    return [
        RunConfig(
            seed=seed,
            steps=8 if quick else 300,
            batch=32,
            lengths=(2, 8),
            task=TaskConfig("mqar", {"words": 128}),
            model=ModelConfig("memory_mosaic", {"persistent_size": 64, "dropout": 0.0}, kernel, normalization),
            optimizer=OptimizerConfig(learning_rate=3e-3, final_learning_rate=1e-4),
            evaluation=EvaluationConfig(
                lengths=(8, 16) if quick else (8, 16, 32, 64), sequences=16 if quick else 200, decoding="teacher-forced"
            ),
            device="cpu",
            log_every=2 if quick else 10,
        )
        for seed in range(seeds)
        for kernel, normalization in METHODS
    ]


def demo(*, options: DemoOptions | None = None) -> int:
    """Train Memory Mosaics with five attention methods on a recall task, test them on longer sequences, and report.

    Takes a few minutes on two CPU cores. The same command goes on where an interrupted demo stopped.
    """
    options = options or DemoOptions()
    if options.text is not None:
        from epan.cli.textdemo import text_demo

        return text_demo(options.text, options.out or Path("runs/text"), options.quick)
    out = options.out or Path("runs/demo")
    if options.seeds < 1:
        raise EpanError("The demo needs at least one seed", found=options.seeds, fix="--seeds 1")
    if options.workers is not None and options.workers < 1:
        raise EpanError("The demo needs at least one worker", found=options.workers, fix="--workers 1")
    from epan.cli.sweep import show_sweep
    from epan.training import run_sweep

    start = time.monotonic()
    planned = configs(options.seeds, options.quick)
    workers = min(len(METHODS), cores()) if options.workers is None else options.workers
    make_room(out, planned)
    first = planned[0]
    print(
        f"Memory Mosaics with {len(METHODS)} attention methods on {first.task.name}: {first.steps} steps each, "
        f"{workers} at a time. Everything is kept in {out}",
        flush=True,
    )
    shown = show_sweep()
    try:
        result = run_sweep(planned, out, workers=workers, threads=1, progress=shown, validate=False)
    finally:
        shown.close()
    if result.interrupted:
        print("Interrupted; every run is saved. The same command goes on.")
        return result.exit_code
    for state in result.states:
        if state.status == "failed":
            print(f"FAILED {state.label}: {state.message}")
    _conclude(out, start)
    return result.exit_code


def _conclude(out: Path, start: float) -> None:
    from epan.report import build, find, remarks, summarise

    command = shlex.join(["epan", *sys.argv[1:]])
    page = build(out, out / "report", title="Five attention methods, one task", command=command)
    (setting,) = summarise(find(out)).settings
    for title, columns, rows in tables(setting):
        print(f"\n{title}\n")
        print_table(columns, rows)
    print()
    for remark in remarks(setting):
        print(f"* {remark}")
    print()
    print(f"Done in {duration(time.monotonic() - start)}. Open the report in a browser:")
    print(f"  {page.resolve()}")


def tables(setting: Setting) -> list[tuple[str, list[str], list[list[str]]]]:
    """Accuracy, support and density of every method at every length, each table narrow enough for a terminal.

    Returns
    -------
    Title, column names and rows of each table; over several seeds the mean, and the range of the accuracy.
    """

    def accuracy(value: Spread | None) -> str:
        if value is None:
            return "-"
        low, high = (share(bound).rstrip("%") for bound in (value.low, value.high))
        return share(value.mean) + (f" ({low}-{high})" if low != high else "")

    def support(size: Spread | None, density: Spread | None) -> str:
        return f"{number(size and size.mean)} ({share(density and density.mean)})"

    lengths = setting.lengths
    columns = ["method", *(f"{n} ({setting.times(n)})" if setting.reference else str(n) for n in lengths)]
    right = [[method.name, *(accuracy(method.at(n, "exact_match")) for n in lengths)] for method in setting.methods]
    keys = [
        [method.name, *(support(method.at(n, "support_size"), method.at(n, "density")) for n in lengths)]
        for method in setting.methods
    ]
    seeds = ", mean over seeds (and their range)" if any(method.seeds > 1 for method in setting.methods) else ""
    return [
        (f"Sequences without a mistake, by length{seeds}:", columns, right),
        ("Keys with weight per query (and their share of those that it may see), by length:", columns, keys),
    ]
