"""Language models of compact kernels: do they write as well as the Gaussian, and what happens on longer contexts?

**Claim** (Santos et al. 2601.22766). Memory Mosaics with compact kernels model language as well as with the Gaussian (softmax);
the paper has a validation loss of 1.5008 on BabiStories, which is not used here. Here models of equal size are compared on
novels, a Memory Mosaic and a GPT-2-style transformer (layer norm, GELU, tied head; rotary positions, since those of GPT-2 end
with the context), at equal tokens **and** at equal time.

**Text.** 96 English novels, 1839 to 1927: 86 to train, and of every tenth by name the last one held out, five for validation
and five for the test. A BPE of 16,384 tokens trained on the 86: 16.9 million tokens. Out of domain: WikiText-2, whose tokens
are those of the same BPE. The sweep expects the tokens where this makes them, about 40 seconds on two cores:

    epan data novels --tokenizer bpe:size=16384 --split every:10 --out runs/tokens/novels

**Runs.** 8 layers, 8 heads, width 512: 33.56 million parameters in both models; 32,768 tokens a step, dropout 0.1, AdamW with a
cosine to a twentieth, bfloat16. The budget is fixed beforehand (``STEPS``), the same for all methods, two seeds.

**Learning rate.** Two (``LEARNING_RATES``), seed 0, on the Gaussian and the biweight of each model; a model takes the one with
the lower mean validation loss of the two, for all methods. ``RATES`` holds what came out.

**Equal time.** ``speed`` measures tokens a second of each method in short runs on one GPU with nothing beside them; ``SPEEDS``
holds what came out. ``time`` gives each method as many steps as fit into the time that the Gaussian of its model takes for
``STEPS``, with the cosine over those.

**Tests.** Nats per token at one to eight times the context: of the validation text by the run itself, of the test text and of
WikiText-2 by ``test``, on all of their tokens but the rest of a block of eight contexts. ``table.csv`` has means over seeds of
runs at equal tokens: ``validation`` at the context, ``ood`` on WikiText-2 at the context, ``loss_1x`` … ``loss_8x`` on the test
text; ``ranges.csv`` has lowest and highest, the runs at equal time and at the longer context, and the peak memory of a step.

**Judged** at equal tokens and at equal time: ``against_gaussian.csv`` has what each method has more than the Gaussian of the same
seed, which at equal time is that of ``main``. A compact kernel is as good if that is at most 0.01 nats on the validation text.

**Stages**, each a function of this file (``main`` is the table; ``runs`` is all):

    rates    both rates, seed 0, Gaussian and biweight of each model, a quarter of the budget
    speed    every method for 200 steps
    main     every method at context 512, seeds 0 and 1
    time     every compact method at equal time, seeds 0 and 1
    long     context 2,048 at the same tokens: Gaussian, biweight, ReLUmax, seeds 0 and 1

**Commands.** Runs are resumable: the same command goes on, and SIGTERM saves.

    timeout 540 epan sweep experiments/language_modeling.py --runs main --workers 1
    python experiments/language_modeling.py test runs/language_modeling --ood wikitext2-test.txt --seconds 500
    python experiments/language_modeling.py collect runs/language_modeling
    python experiments/language_modeling.py pack runs/language_modeling --out archives
    python experiments/language_modeling.py choose
    python experiments/language_modeling.py tables

``choose`` applies the rules for rates and speeds to the records. ``tables`` makes the tables and the figures: loss by length
and by position, and by layer and length the keys with weight and the tiles that are worked on. A run folder is about 400 MB
while it goes on: one checkpoint with weights and both moments of 33.6 million float32 parameters.

**Cost.** Not measured yet; planned for 15 minutes of one H100 a run of ``main``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

if TYPE_CHECKING:
    from tabulating_language import Plan
    from testing import TextStudy

RESULTS = Path(__file__).resolve().parents[1] / "results" / "language_modeling"
#: A folder of tokens, below the folder in which the commands are given.
TOKENS = "runs/tokens/novels"

CONTEXT, LONG = 512, 2048
TOKENS_A_STEP = 32_768
STEPS = 6_000
SEEDS = (0, 1)
LEARNING_RATES = (1e-3, 3e-3)
FACTORS = (1, 2, 4, 8)
SIZES = {"layers": 8, "heads": 8, "width": 512, "dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "memory_mosaic": SIZES,
    "transformer": {**SIZES, "norm": "layer", "feed_forward": "gelu", "positions": "rope"},
}
SHORT = {"memory_mosaic": "mosaic", "transformer": "transformer"}


@dataclass(frozen=True)
class Method:
    """Kernel and normalization."""

    kernel: str
    normalization: str = "adaptive"


GAUSSIAN, BIWEIGHT, RELUMAX = Method("gaussian"), Method("biweight"), Method("epanechnikov", "anchored")
COMPACT = (Method("epanechnikov"), BIWEIGHT, Method("triweight"), RELUMAX)
METHODS = (GAUSSIAN, *COMPACT)

# Stage "rates" decides these, by the rule above; until it has, nothing here has chosen them.
RATES: dict[str, float] = {"memory_mosaic": 1e-3, "transformer": 1e-3}
# Stage "speed" decides these: tokens a second by model and label of the method. A method without one has no run at equal time.
SPEEDS: dict[tuple[str, str], float] = {}


def config(
    model: str, method: Method, seed: int, *, rate: float, steps: int = STEPS, context: int = CONTEXT, suffix: str = ""
) -> RunConfig:
    """One run."""
    made = RunConfig(
        seed=seed,
        steps=steps,
        batch=TOKENS_A_STEP // context,
        lengths=(context, context),
        task=TaskConfig("text", {"path": TOKENS}),
        model=ModelConfig(model, dict(MODELS[model]), method.kernel, method.normalization),
        optimizer=OptimizerConfig(learning_rate=rate, final_learning_rate=rate / 20, warmup=0.02),
        evaluation=EvaluationConfig(
            lengths=tuple(context * factor for factor in FACTORS),
            # All of the validation text.
            sequences=1_000_000,
            every=max(1, steps // 4),
            batch_tokens=65_536,
        ),
        precision="bf16",
        compile=True,
        log_every=50,
        checkpoint_every=1_000,
        keep=1,
    )
    name = f"{SHORT[model]}-{made.method}{suffix}-context{context}-lr{rate:g}-seed{seed}"
    return dataclasses.replace(made, name=name)


def rates() -> list[RunConfig]:
    """Both learning rates, a quarter of the budget."""
    return [
        config(model, method, 0, rate=rate, steps=STEPS // 4, suffix="-rates")
        for model in MODELS
        for method in (GAUSSIAN, BIWEIGHT)
        for rate in LEARNING_RATES
    ]


def speed() -> list[RunConfig]:
    """A short run of every method, for its tokens a second."""
    return [
        dataclasses.replace(
            config(model, method, 0, rate=RATES[model], steps=200, suffix="-speed"),
            evaluation=EvaluationConfig(lengths=(CONTEXT,), sequences=64),
        )
        for model in MODELS
        for method in METHODS
    ]


def main() -> list[RunConfig]:
    """Every method at equal tokens: the runs of the table."""
    return [config(model, method, seed, rate=RATES[model]) for model in MODELS for method in METHODS for seed in SEEDS]


def time() -> list[RunConfig]:
    """Every compact method in the time that the Gaussian takes, as far as speeds are known."""
    found = []
    for model in MODELS:
        base = SPEEDS.get((model, "gaussian-adaptive"))
        for method in COMPACT:
            own = SPEEDS.get((model, f"{method.kernel}-{method.normalization}"))
            if base is not None and own is not None:
                steps = max(1, round(STEPS * own / base))
                found += [config(model, method, seed, rate=RATES[model], steps=steps, suffix="-time") for seed in SEEDS]
    return found


def long() -> list[RunConfig]:
    """The longer context at the same tokens."""
    return [
        config(model, method, seed, rate=RATES[model], context=LONG)
        for model in MODELS
        for method in (GAUSSIAN, BIWEIGHT, RELUMAX)
        for seed in SEEDS
    ]


STAGES = {"rates": rates, "speed": speed, "main": main, "time": time, "long": long}


def runs() -> list[RunConfig]:
    """The runs of all stages, each once."""
    return list({run.label: run for stage in STAGES.values() for run in stage()}.values())


def method_of(run: RunConfig) -> str:
    """Kernel and normalization, as the table has them."""
    return run.method


def stage_of(run: RunConfig) -> str:
    """Which question a run answers: rates, speed, time, long or main."""
    for stage in ("rates", "speed", "time"):
        if f"-{stage}-" in run.label:
            return stage
    return "long" if run.lengths == (LONG, LONG) else "main"


# ---------------------------------------------------------------------- what is done with trained runs


def tests(ood: Path | None) -> TextStudy:
    """The tests that trained runs are to have: the test text and ``ood``, or any other text if None."""
    from testing import TextStudy

    return TextStudy(
        lambda run: () if stage_of(run) in ("rates", "speed") else tuple(run.evaluation.lengths or ()), ood
    )


def choose(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rules say of the records: a line for each model's rate, and the speeds as a dict to copy."""
    from collecting import identity
    from tabulating_language import loss

    said = []
    known = {record["identity"]: record for record in records}
    for model in MODELS:
        scores = {}
        for rate in LEARNING_RATES:
            tried = [run for run in rates() if run.model.name == model and run.optimizer.learning_rate == rate]
            found = [loss(known[identity(run)], "validation", 1) for run in tried if identity(run) in known]
            values = [value for value in found if value is not None]
            if len(values) == len(tried):
                scores[rate] = statistics.fmean(values)
        told = "  ".join(f"{rate:g}: {value:.4f}" for rate, value in scores.items())
        whole = len(scores) == len(LEARNING_RATES)
        taken = f"take {min(scores, key=scores.__getitem__):g}" if whole else "not all runs are there"
        said.append(f"{model}  {told}  -> {taken} (RATES has {RATES[model]:g})")
    speeds = {
        (record["model"], record["method"]): record["tokens_per_second"]
        for run in speed()
        if (record := known.get(identity(run))) is not None and record["status"] == "finished"
    }
    missed = len(MODELS) * len(METHODS) - len(speeds)
    said.append(f"SPEEDS = {speeds}" + (f" ({missed} are not there yet)" if missed else ""))
    return said


def plan() -> Plan:
    """What belongs into the tables."""
    from tabulating_language import Plan

    methods = [f"{method.kernel}-{method.normalization}" for method in METHODS]
    return Plan({"main": main(), "time": time(), "long": long()}, SHORT, methods)


def _show_stages() -> None:
    for name, stage in STAGES.items():
        listed = stage()
        total = sum(run.steps * TOKENS_A_STEP for run in listed)
        print(f"{name:<8}{len(listed):>4} runs{total / 1e6:>10,.0f} million tokens")


def command(arguments: Sequence[str] | None = None) -> int:
    """``python experiments/language_modeling.py WHAT …``; returns the exit status."""
    # Beside this file; a sweep of its runs does without.
    import commands

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("stages", help="list the stages with their runs and tokens")
    tests = {"test": "test the trained runs below the folders, as far as it has not been done"}
    rules = {"choose": "apply the rules for rates and speeds", "tables": "make tables and figures"}
    part = commands.add_commands(what, tests, rules, "mosaic-*", RESULTS)
    part["test"].add_argument("--ood", type=Path, required=True, help="the text out of domain")
    return commands.run(parser, arguments, _do, "language_modeling.py")


def _do(options: argparse.Namespace) -> int:
    if options.what == "stages":
        _show_stages()
        return 0
    # Beside this file; a sweep of its runs does without.
    import commands

    if options.what in commands.COMMON:
        study = tests(options.ood if options.what == "test" else None)
        return commands.common(options, study, runs(), method_of, "language_modeling.py")
    records = commands.records_of(options, runs(), method_of)
    if options.what == "choose":
        lines = choose(records)
    else:
        from tabulating_language import tabulate

        lines = tabulate(records, plan(), options.results)
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    # The folder of this file is on the path of what Python runs as a script.
    raise SystemExit(command())
