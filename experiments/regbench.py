"""In-context learning of automata (RegBench): does sparse attention cost quality, and how many languages must be seen?

**Claim** (Santos et al. 2601.22766). In Memory Mosaics compact kernels learn the languages of random automata in context as well
as the Gaussian (softmax) does. Memory Mosaics need far fewer automata in training than transformers (Zhang et al. 2405.06394).

**Expected.** Read from the published figure, ±0.005; the best of a search over hyperparameters, by number of training automata:

                                100     500    1000    2500   40000
    accuracy  Memory Mosaic    .924    .929    .934    .940    .959
              transformer      .523    .543    .532    .926    .951
    TVD       Memory Mosaic    .569    .254    .215    .186    .123
              transformer      .683    .641    .631    .232    .144

Ours are measured on data without duplicates (the task's docstring says how they are drawn). 500 test automata, none of which is
in any training set. Accuracy: share of letters whose most probable prediction is legal in the state of the automaton. TVD: total
variation distance of the prediction from the uniform distribution over the legal letters. Positions whose target is the
separator are not scored, and the separator is left out of predictions.

**Ceilings**, on the same test sequences: 2-, 3- and 4-grams of the words so far with back-off (a bound that can be reached), and
the exact posterior of an observer who is shown the state at each letter (accuracy and KL divergence that no model exceeds). The
Bayesian optimum of who sees the letters alone lies between the two.

**Runs.** Published recipe: 2 layers, 8 heads, width 128, 448 persistent pairs, batch 32, 200 epochs, AdamW (0.9, 0.999), learning
rate 1e-4 with a tenth of the steps warm-up and a cosine to 0, weight decay 0.01, clip 1; dropout of the Memory Mosaic 0.05 as in
its code. The transformer has as many layers, heads and the same width (rotary positions, SwiGLU, 0.5 % more parameters). bfloat16,
three seeds, which decide weights and order; training and test data are the same for all.

**Choice.** Stage "search" tries ``RATES`` × ``DECAYS`` on every method alike, seed 0, 1000 automata. A method takes the pair with
the lowest TVD on the 500 validation automata. ``TUNED`` holds what came out; no test sequence has a say.

**Stages**, each a function of this file (``main`` and ``large`` are the table; ``runs`` is all):

    main     every method at 100, 500, 1000 and 2500 automata, seeds 0 to 2
    large    Gaussian, biweight, ReLUmax and the transformer at 10,000 and 40,000 automata, seeds 0 to 2
    search   learning rates and weight decays, seed 0
    tuned    every method with its pair at 1000 and 2500 automata, seeds 0 to 2; in the table as METHOD+lr=…+wd=…

**Commands.** Runs are resumable: the same command goes on, and SIGTERM saves. A stage in pieces of nine minutes:

    timeout 540 epan sweep experiments/regbench.py --runs main --only 'regbench-1000-*' --workers 1 --pack 8
    python experiments/regbench.py test runs/regbench --seconds 500
    python experiments/regbench.py collect runs/regbench
    python experiments/regbench.py search
    python experiments/regbench.py tables
    python experiments/regbench.py show runs/regbench/LABEL --sequence 3 --out pictures

``test`` tests what is trained and not yet tested, also on sequences of twice and four times as many words. ``collect`` adds one
line per run to results/regbench/records.jsonl; run folders may go after that. ``search`` applies the rule. ``tables`` makes
table.csv, diagnostics.csv, ceilings.json (once, about half a minute) and the figures from the records. ``show`` draws the
automaton of a test sequence and what a trained model predicts along it.

**Cost.** Optimizer steps, without what a stage before has done: ``python experiments/regbench.py stages``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

RESULTS = Path(__file__).resolve().parents[1] / "results" / "regbench"
BATCH, EPOCHS = 32, 200
SEEDS = (0, 1, 2)
AUTOMATA, LARGE = (100, 500, 1_000, 2_500), (10_000, 40_000)
#: Most words of a test sequence: as in training, and two and four times as many.
LENGTHS = (19, 38, 76)
SEQUENCES = 500
RATE, DECAY = 1e-4, 0.01
RATES, DECAYS = (1e-4, 3e-4, 1e-3), (0.01, 0.1)
SEARCHED, TUNED_AT = 1_000, (1_000, 2_500)
MODELS: dict[str, dict[str, Any]] = {
    "memory_mosaic": {"layers": 2, "heads": 8, "width": 128, "persistent_size": 448, "dropout": 0.05},
    "transformer": {"layers": 2, "heads": 8, "width": 128},
}


@dataclass(frozen=True)
class Method:
    """A model with its kernel and normalization, and how figures call it."""

    model: str
    kernel: str
    normalization: str | dict[str, Any]
    title: str
    options: dict[str, Any] = field(default_factory=dict)


GAUSSIAN = Method("memory_mosaic", "gaussian", "adaptive", "Gaussian")
BIWEIGHT = Method("memory_mosaic", "biweight", "adaptive", "biweight")
RELUMAX = Method("memory_mosaic", "epanechnikov", "anchored", "ReLUmax")
TRANSFORMER = Method("transformer", "gaussian", "adaptive", "transformer")
METHODS = (
    GAUSSIAN,
    Method("memory_mosaic", "epanechnikov", "adaptive", "Epanechnikov"),
    BIWEIGHT,
    Method("memory_mosaic", "triweight", "adaptive", "triweight"),
    RELUMAX,
    Method("memory_mosaic", "epanechnikov", "fixed", "NormReLU"),
    Method("memory_mosaic", "gaussian", {"name": "nearest", "k": 16}, "top-k (16)"),
    TRANSFORMER,
)
LARGE_METHODS = (GAUSSIAN, BIWEIGHT, RELUMAX, TRANSFORMER)
#: Accuracy and TVD read from the published figure, by model and training automata; drawn beside ours.
PUBLISHED = {
    "mosaic": {
        100: (0.924, 0.569),
        500: (0.929, 0.254),
        1_000: (0.934, 0.215),
        2_500: (0.940, 0.186),
        40_000: (0.959, 0.123),
    },
    "transformer": {
        100: (0.523, 0.683),
        500: (0.543, 0.641),
        1_000: (0.532, 0.631),
        2_500: (0.926, 0.232),
        40_000: (0.951, 0.144),
    },
}
# Stage "search" decides these: (learning rate, weight decay) by model and method. A method without a pair is not tuned yet.
TUNED: dict[tuple[str, str], tuple[float, float]] = {}


def config(method: Method, automata: int, seed: int, rate: float = RATE, decay: float = DECAY) -> RunConfig:
    """One run."""
    steps = EPOCHS * automata // BATCH
    made = RunConfig(
        seed=seed,
        steps=steps,
        batch=BATCH,
        task=TaskConfig("regbench", {"automata": automata}),
        model=ModelConfig(
            method.model, {**MODELS[method.model], **method.options}, method.kernel, method.normalization
        ),
        optimizer=OptimizerConfig(
            learning_rate=rate, final_learning_rate=0.0, weight_decay=decay, betas=(0.9, 0.999), clip=1.0
        ),
        evaluation=EvaluationConfig(
            lengths=LENGTHS[:1],
            sequences=SEQUENCES,
            every=max(1, steps // 4),
            decoding="teacher-forced",
            batch_tokens=65_536,
        ),
        precision="bf16",
        compile=True,
        # Any cell of the table is to repeat to the last digit.
        deterministic=True,
        log_every=50,
        checkpoint_every=1_000,
        keep=1,
    )
    plain = method_of(made).partition("+")[0].replace("(k=", "-k").replace(")", "")
    name = f"regbench-{automata}-{model_of(made)}-{plain}-lr{rate:g}-wd{decay:g}-seed{seed}"
    return dataclasses.replace(made, name=name)


def model_of(run: RunConfig) -> str:
    """What the table calls the model: ``mosaic`` or ``transformer``."""
    return "mosaic" if run.model.name == "memory_mosaic" else run.model.name


def method_of(run: RunConfig) -> str:
    """What the table calls a run: ``gaussian``, ``biweight-adaptive``, ``gaussian-nearest(k=16)``; beside it what is not published.

    E.g. ``biweight-adaptive+lr=0.0003+wd=0.1``.
    """
    name = "gaussian" if run.method == "gaussian-adaptive" else run.method
    pair = (run.optimizer.learning_rate, run.optimizer.weight_decay)
    return name if pair == (RATE, DECAY) else f"{name}+lr={pair[0]:g}+wd={pair[1]:g}"


def automata_of(run: RunConfig) -> int:
    """Training automata of a run."""
    count = run.task.options["automata"]
    assert isinstance(count, int)
    return count


def main() -> list[RunConfig]:
    """The published recipe on every method, three seeds."""
    return [config(method, count, seed) for count in AUTOMATA for method in METHODS for seed in SEEDS]


def large() -> list[RunConfig]:
    """The published recipe on four methods and many automata, three seeds."""
    return [config(method, count, seed) for count in LARGE for method in LARGE_METHODS for seed in SEEDS]


def search() -> list[RunConfig]:
    """Every learning rate with every weight decay on every method, seed 0."""
    return [config(method, SEARCHED, 0, rate, decay) for method in METHODS for rate in RATES for decay in DECAYS]


def tuned() -> list[RunConfig]:
    """Every method with what the search has chosen for it, three seeds."""
    chosen = [(method, TUNED.get(_key(method))) for method in METHODS]
    return [
        config(method, count, seed, *pair)
        for count in TUNED_AT
        for method, pair in chosen
        if pair is not None
        for seed in SEEDS
    ]


def _key(method: Method) -> tuple[str, str]:
    made = config(method, SEARCHED, 0)
    return model_of(made), method_of(made)


STAGES = {"main": main, "large": large, "search": search, "tuned": tuned}


def runs() -> list[RunConfig]:
    """The runs of all stages, each once."""
    return list({run.label: run for stage in STAGES.values() for run in stage()}.values())


def planned() -> list[RunConfig]:
    """The runs of the table, each once: a pair that the search chose may be the published one."""
    return list({run.label: run for run in (*main(), *large(), *tuned())}.values())


# ---------------------------------------------------------------------- what is done with trained runs


def decided(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the rule says of each method that has records of the search.

    ``scores`` is {(rate, decay): TVD on validation sequences}; ``pair`` is None until all are there.
    """
    from collecting import identity
    from tabulating_regbench import measured

    known = {record["identity"]: record for record in records}
    found = []
    for method in METHODS:
        scores: dict[tuple[float, float], float] = {}
        for rate in RATES:
            for decay in DECAYS:
                record = known.get(identity(config(method, SEARCHED, 0, rate, decay)))
                test = None if record is None else measured(record, "validation", LENGTHS[0], SEQUENCES)
                if test is not None:
                    scores[rate, decay] = test["tvd"]
        if scores:
            whole = len(scores) == len(RATES) * len(DECAYS)
            pair = min(scores, key=lambda pair: (scores[pair], pair)) if whole else None
            found.append({"key": _key(method), "scores": scores, "pair": pair, "constant": TUNED.get(_key(method))})
    return found


def _show_search(records: Sequence[Mapping[str, Any]]) -> None:
    for row in decided(records):
        scores = "  ".join(f"{rate:g}/{decay:g}: {tvd:.4f}" for (rate, decay), tvd in row["scores"].items())
        said = "not all pairs are there yet" if row["pair"] is None else "take {:g}, {:g}".format(*row["pair"])
        if row["pair"] is not None and row["pair"] != row["constant"]:
            said += f" (TUNED has {row['constant'] or 'nothing'})"
        print(f"{' '.join(row['key']):<36} {scores}  -> {said}")


def _show_stages() -> None:
    done: set[str] = set()
    print(f"{'stage':<10}{'automata':>9}{'runs':>6}{'new':>6}{'new steps':>12}")
    for name, stage in STAGES.items():
        listed = stage()
        for count in dict.fromkeys(map(automata_of, listed)):
            here = [run for run in listed if automata_of(run) == count]
            new = [run for run in here if run.label not in done]
            print(f"{name:<10}{count:>9,}{len(here):>6}{len(new):>6}{sum(run.steps for run in new):>12,}")
        done |= {run.label for run in listed}


def command(arguments: Sequence[str] | None = None) -> int:
    """``python experiments/regbench.py WHAT …``; returns the exit status."""
    # Beside this file; a sweep of its runs does without.
    import commands

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("stages", help="list the stages with their runs and steps")
    tests = {"test": "test the trained runs below the folders, as far as it has not been done"}
    rules = {"search": "apply the rule for rate and decay", "tables": "make tables and figures"}
    commands.add_commands(what, tests, rules, "regbench-1000-*", RESULTS)
    show = what.add_parser("show", help="draw an automaton, and what a trained run predicts along its sequence")
    show.add_argument("run", type=Path, help="a run folder")
    show.add_argument("--sequence", type=int, default=0, help="number of the test sequence (default: 0)")
    show.add_argument("--tokens", type=int, default=140, help="how many of its tokens (default: 140)")
    show.add_argument("--start", type=int, default=0, help="from which one on (default: 0)")
    show.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    show.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return commands.run(parser, arguments, _do, "regbench.py")


def _do(options: argparse.Namespace) -> int:
    if options.what == "stages":
        _show_stages()
        return 0
    # Beside this file; a sweep of its runs needs none of them.
    import commands
    import testing

    if options.what == "show":
        from showing import show

        part = slice(options.start, options.start + options.tokens)
        for line in show(options.run, options.out, options.sequence, part, LENGTHS[0], options.device):
            print(line)
        return 0
    study = testing.Study(lengths=lambda run: LENGTHS, sequences=lambda length: SEQUENCES, validation=LENGTHS[:1])
    if options.what in commands.COMMON:
        return commands.common(options, study, runs(), method_of, "regbench.py")
    records = commands.records_of(options, runs(), method_of)
    if options.what == "search":
        _show_search(records)
        return 0
    import tabulating_regbench

    plan = {run.label: (run, (model_of(run), method_of(run), automata_of(run))) for run in planned()}
    titles = {_key(method): method.title for method in METHODS}
    for made in tabulating_regbench.tabulate(records, list(plan.values()), titles, PUBLISHED, study, options.results):
        print(made)
    return 0


if __name__ == "__main__":
    # The folder of this file is on the path of what Python runs as a script.
    raise SystemExit(command())
