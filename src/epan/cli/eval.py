"""``epan eval``: test a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from epan.cli.output import evaluation_table, is_terminal, lengths

__all__ = ["EvalOptions", "evaluate"]


@Parameter(name="*")
@dataclass(frozen=True)
class EvalOptions:
    """Options of ``epan eval``; what is not given is taken from the config of the run."""

    lengths: Annotated[
        tuple[str, ...], Parameter(negative="", consume_multiple=True, help="Test lengths, such as 64,128,256.")
    ] = ()
    sequences: Annotated[int | None, Parameter(help="Test sequences of every length.")] = None
    decoding: Annotated[
        Literal["auto", "greedy", "teacher-forced"] | None,
        Parameter(help="Token by token, or the one pass that gives the same exact match."),
    ] = None
    seed: Annotated[int | None, Parameter(help="Seed of the test sequences.")] = None
    split: Annotated[
        Literal["test", "validation", "train"], Parameter(help="Which sequences, or which part of the run's text.")
    ] = "test"
    text: Annotated[
        str | None, Parameter(help="Another text to test a run on that learnt from text: a file, a folder, a glob.")
    ] = None
    step: Annotated[
        int | Literal["best"] | None,
        Parameter(
            help="Which checkpoint: its step, or the best in the run's own tests (default: the newest good one)."
        ),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto"
    dry: Annotated[bool, Parameter(name="--no-record", negative="", help="Leave the record of the run as it is.")] = (
        False
    )


def evaluate(
    run: Annotated[Path, Parameter(help="The run folder, or one of its checkpoint folders.")],
    /,
    *,
    options: EvalOptions | None = None,
) -> int:
    """Test a trained run, also on lengths that it never saw, and add the results to its record.

    Parameters
    ----------
    run: the run folder, or one of its checkpoint folders.
    """
    options = options or EvalOptions()
    chosen = lengths(options.lengths, "--lengths")
    from epan.training import EvaluationInfo, Progress, evaluate_run

    class Shown(Progress):
        def on_evaluation(self, info: EvaluationInfo) -> None:
            if info.result is not None and not is_terminal():
                print(f"tested length {info.length}", flush=True)
            elif is_terminal():
                print(f"\r\033[Klength {info.length}: {info.done}/{info.total} sequences", end="", flush=True)

    print(f"Testing {run}", flush=True)
    try:
        found = evaluate_run(
            run,
            chosen or None,
            sequences=options.sequences,
            decoding=options.decoding,
            seed=options.seed,
            split=options.split,
            text=options.text,
            step=options.step,
            device=options.device,
            append=not options.dry,
            progress=Shown(),
        )
    finally:
        if is_terminal():
            print("\r\033[K", end="", flush=True)
    evaluation_table(found)
    if options.step == "best":
        print(
            f"Step {found[0]['step']} did best in the run's own tests; --seed tests it on sequences that did not choose it."
        )
    if not options.dry:
        print(f"Added to the record of {run}")
    return 0
