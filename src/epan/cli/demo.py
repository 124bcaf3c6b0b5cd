"""``epan demo``: five attention methods on one task, side by side."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from epan.cli.output import duration, print_table
from epan.errors import EpanError

if TYPE_CHECKING:
    from epan.training import RunConfig

__all__ = ["METHODS", "DemoOptions", "configs", "demo"]

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

    out: Annotated[Path, Parameter(help="Folder of runs and report (default runs/demo).")] = Path("runs/demo")
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
    if options.seeds < 1:
        raise EpanError("The demo needs at least one seed", found=options.seeds, fix="--seeds 1")
    from epan.cli.sweep import show_sweep
    from epan.training import run_sweep

    start = time.monotonic()
    planned = configs(options.seeds, options.quick)
    workers = options.workers or max(1, min(len(METHODS), os.cpu_count() or 1))
    _make_room(options.out, planned)
    first = planned[0]
    print(
        f"Memory Mosaics with {len(METHODS)} attention methods on {first.task.name}: {first.steps} steps each, "
        f"{workers} at a time. Everything is kept in {options.out}",
        flush=True,
    )
    shown = show_sweep()
    try:
        result = run_sweep(planned, options.out, workers=workers, threads=1, progress=shown, validate=False)
    finally:
        shown.close()
    if result.interrupted:
        print("Interrupted; every run is saved. The same command goes on.")
        return result.exit_code
    for state in result.states:
        if state.status == "failed":
            print(f"FAILED {state.label}: {state.message}")
    _conclude(options.out, start)
    return result.exit_code


def _conclude(out: Path, start: float) -> None:
    from epan.report import build, find, headline, remarks, summarise

    command = shlex.join(["epan", *sys.argv[1:]])
    page = build(out, out / "report", title="Five attention methods, one task", command=command)
    (setting,) = summarise(find(out)).settings
    columns, rows = headline(setting)
    print()
    print_table(columns, rows)
    print()
    for remark in remarks(setting):
        print(f"* {remark}")
    print()
    print(f"Done in {duration(time.monotonic() - start)}. Open the report in a browser:")
    print(f"  {page.resolve()}")


def _make_room(out: Path, planned: list[RunConfig]) -> None:
    """Leave a folder of the same demo as it is; move anything else aside, so that nothing is lost."""
    from epan.training import records

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    wanted = {config.label: config.hash() for config in planned}

    def fits(item: Path) -> bool:
        if item.name in ("report", ".sweep"):
            return True
        if item.name not in wanted or not item.is_dir():
            return False
        if not any(item.iterdir()):
            return True
        try:
            lines = records.read(item)
        except EpanError:
            return False
        head = next((line for line in lines if line["kind"] == "run"), None)
        return head is None or head.get("config_hash") == wanted[item.name]

    if out.is_dir() and all(fits(item) for item in out.iterdir()):
        print(f"Going on with the demo in {out}.")
        return
    number = 1
    while (aside := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    try:
        out.rename(aside)
    except OSError as error:
        raise EpanError(
            f"The folder holds something else and cannot be moved aside: {error.strerror}",
            found=str(out),
            fix="give another one with --out",
        ) from error
    print(f"{out} held something else; it is kept as {aside}.")
