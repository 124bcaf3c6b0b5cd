"""Length generalisation of attention kernels: which of them still work on sequences longer than those of training?

**Claim** (Santos et al. 2601.22766). Inside Memory Mosaics, compact kernels (biweight, triweight) generalise to longer
contexts than the Gaussian (softmax), sparsity costs no quality at the training length, and ReLUmax (Epanechnikov, anchored)
is stable.

**Expected.** The paper prints no tables; those of transformers in Vasylenko et al. 2506.16640 are the best published numbers
(exact match in %, best of seeds and learning rates, training lengths 32 to 64):

    MQMTAR             64    128    256     1k     4k    16k    65k
    softmax           100    100    100   99.5   97.8   80.2    3.0
    1.5-entmax        100    100    100   99.5   92.7   66.8    9.3
    ASEntmax          100    100    100   99.7   99.6   99.0   95.3

                  reverse 64    96   128   256   512      sort 64   128   256   512
    softmax              100    36     0     0     0          100     0     0     0
    1.5-entmax           100   100  93.5  28.5   2.5          100   100  57.8     0
    ASEntmax             100   100  99.8  96.4  56.7          100   100  79.7     0

**Runs.** Memory Mosaics and, beside them, a transformer whose heads are half ALiBi and half without positions: 2 layers,
8 heads, width 128, bfloat16. One budget of steps and sequences per task for all methods, fixed beforehand (``PLANS``), three
seeds.

**Learning rate.** Two rates (``LEARNING_RATES``, cosine to a twentieth, a tenth of the steps warm-up), each with seed 0, on
one method of each family (``PROBES``): Gaussian, adaptive, anchored, fixed; for the transformer on all four methods. A family
takes the rate with the higher exact match on validation sequences of the longest training length (64); among equals that with
the lower validation loss. The top-k methods take that of the Gaussian, adaptive bandwidths that of their kernel. No test
sequence and no length beyond training has a say. ``rates`` writes what came out to rates.json beside the records.

**Tests.** 1,000 test sequences of each length (200 above 16,384 tokens), the same for every run, in one pass per sequence:
exact match by that is the same as by greedy decoding, because a sequence is right only if every token is right after the right
ones. Above a length at which a run has not one of all sequences right, the first 100 are enough. Training itself only looks at
the training length, four times, on 256 sequences. ``table.csv`` has the last checkpoint of each run and no other.

**Stages**, each a function of this file (``main`` is the table; ``runs`` is all):

    rates        both rates, seed 0, on the probes of each task
    main         every method at the rate of its family, seeds 0 to 2
    neighbours   other k for the top-k methods, seed 0; k with the best validation score, by the rule above, goes to TUNED_K
    longer       reverse at five times the budget: Gaussian, biweight, ReLUmax, seeds 0 to 2
    compat       reverse with the mask that published code shifts by a key for NormReLU, ReLUmax and top-k uniform, seeds 0 to 2
    beyond       other shapes of transformers on reverse and sort and of Memory Mosaics on MQMTAR, seed 0, to find one that goes
                 beyond the published numbers

**Commands.** Runs are resumable: the same command goes on, and SIGTERM saves. A stage in pieces of nine minutes:

    timeout 540 epan sweep experiments/length_generalization.py --runs rates --only 'reverse-*' --workers 8
    python experiments/length_generalization.py test runs/length_generalization --seconds 500
    python experiments/length_generalization.py temperature runs/length_generalization --only '*-seed0' --seconds 500
    python experiments/length_generalization.py diagnose runs/length_generalization --seconds 500
    python experiments/length_generalization.py collect runs/length_generalization
    python experiments/length_generalization.py rates
    python experiments/length_generalization.py tables

``test`` tests what is trained and not yet tested. ``collect`` adds one line per run to
results/length_generalization/records.jsonl; run folders may go after that. ``rates`` applies the rule. ``tables`` makes all
tables and figures from the records, in less than a minute on a CPU:

    table.csv, TASK.png                     exact match: mean, lowest and highest seed
    diagnostics.csv                         token accuracy, loss, support, density, empty rows; entropy and bandwidth h_i
    temperature.csv, TASK-temperature.png   exact match with β multiplied
    recall.csv, TASK-recall.png             weight on the right key, by layer and head
    plateau.csv, mqmtar-plateau.png         the step at which MQMTAR leaves its plateau

**Temperature.** ``temperature`` tests trained runs with β of all contextual memories, or attention heads, times 0.5 to 4
(``FACTORS``; a fixed radius shrinks with its root; equal weights on the k nearest keys do not depend on β and are left out), on
the first 200 test sequences of each length (50 above 16,384). Beside these, what would have been chosen without the test:
a constant factor, on 200 validation sequences at 64 or at 128 and 256; and a factor that grows with the length, (L/64)^γ or
1 + γ·log(L/64), γ chosen at 128 and 256, by exact match, then loss. At 64 any γ leaves β as it is, so that γ cannot be chosen
there: what is chosen at 128 and 256 has seen longer sequences than training has, if only of the validation split.

**Diagnostics.** ``diagnose`` computes the weights of 64 test sequences a length, up to 1,024, again, for at most 64 queries
each that predict the target: entropy, support, bandwidth, and the weight on the right key, by layer and head (``diagnosing``).
A run has left the plateau of MQMTAR at the first logged step at which the median of three losses is below half of what
guessing the value costs, 0.54 nats a token (``tabulating_plateaus``).

A run folder is about 5 MB: 4.8 MB (MQMTAR 5.2 MB) for the one checkpoint that stays, weights and both moments of 0.4 million
float32 parameters, and some 0.1 MB of record. To take runs to another machine, all of it or, for runs that are finished and
tested, the record alone (pieces of at most 15 MiB, each a whole archive, unpacked by ``tar -xf`` in the same place; with
``--whole`` all of it, for ``temperature`` and ``diagnose`` to come):

    tar -cf runs.tar runs/length_generalization
    python experiments/length_generalization.py pack runs/length_generalization --out packed

**Cost.** Optimizer steps, without what a stage before has done: ``python experiments/length_generalization.py stages``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epan.errors import EpanError
from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

RESULTS = Path(__file__).resolve().parents[1] / "results" / "length_generalization"


@dataclass(frozen=True)
class Plan:
    """Budget and test lengths of a task, the same for all methods."""

    steps: int
    lengths: tuple[int, ...]
    batch: int = 128


PLANS = {
    # In a trial, 8,000 steps of 128 sequences left a Memory Mosaic at 97 % on the longest training length.
    "reverse": Plan(10_000, (64, 96, 128, 256, 512, 1024), batch=256),
    "sort": Plan(8_000, (64, 128, 256, 512, 1024)),
    "mqmtar": Plan(10_000, tuple(64 * 2**i for i in range(11))),
    # The control: every method is expected to learn it.
    "copy": Plan(6_000, (64, 128, 256, 512, 1024, 2048, 4096)),
}
TRAINED = (32, 64)
SEEDS = (0, 1, 2)
LEARNING_RATES = (1e-3, 3e-3)
MODELS: dict[str, dict[str, Any]] = {
    "memory_mosaic": {"layers": 2, "heads": 8, "width": 128},
    "transformer": {"layers": 2, "heads": 8, "width": 128, "positions": "half"},
}


@dataclass(frozen=True)
class Method:
    """Kernel, normalization and options of a model, and the family whose learning rate it takes."""

    family: str
    kernel: str
    normalization: str | dict[str, Any] = "adaptive"
    options: dict[str, Any] = field(default_factory=dict)


COMPACT = ("epanechnikov", "biweight", "triweight")
GAUSSIAN = Method("gaussian", "gaussian")


def nearest(k: int) -> tuple[Method, ...]:
    """Top-k softmax and top-k uniform."""
    return tuple(Method("gaussian", kernel, {"name": "nearest", "k": k}) for kernel in ("gaussian", "uniform"))


#: The methods of a figure's panels, by model and title; the Gaussian stands in every panel.
PANELS: dict[str, dict[str, tuple[Method, ...]]] = {
    "memory_mosaic": {
        "Adaptive (entmax)": tuple(Method("adaptive", kernel) for kernel in COMPACT),
        "Anchored (ReLUmax and powers)": tuple(Method("anchored", kernel, "anchored") for kernel in COMPACT),
        "Fixed (NormReLU and powers)": tuple(Method("fixed", kernel, "fixed") for kernel in COMPACT),
        "Nearest (top-k)": nearest(16),
        "Adaptive bandwidth": (
            Method("gaussian", "gaussian", options={"adaptive_bandwidth": True}),
            Method("adaptive", "biweight", options={"adaptive_bandwidth": True}),
        ),
    },
    "transformer": {
        "Transformer": (
            Method("adaptive", "biweight"),
            Method("asentmax", "biweight", options={"length_scaling": "asentmax"}),
            Method("anchored", "biweight", "anchored"),
        )
    },
}
METHODS = {
    model: (GAUSSIAN, *(method for panel in panels.values() for method in panel)) for model, panels in PANELS.items()
}
#: The methods on which both rates are tried, one of each family.
PROBES = {
    "memory_mosaic": (GAUSSIAN, *(Method(rule, "biweight", rule) for rule in ("adaptive", "anchored", "fixed"))),
    "transformer": METHODS["transformer"],
}


#: Beside the records: the rates that stage "rates" has decided, {model: {task: {family: rate}}}.
CHOSEN = "rates.json"


def _chosen(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What is in a file of chosen rates, nothing if there is none.

    Raises
    ------
    EpanError: the file is damaged, or has a rate that was not tried.
    """
    if not path.exists():
        return {}
    try:
        chosen: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text("utf-8"))
        rates = {rate for tasks in chosen.values() for families in tasks.values() for rate in families.values()}
    except (ValueError, AttributeError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    if not rates <= set(LEARNING_RATES):
        raise _damaged(path, f"the rates {sorted(rates)}")
    return chosen


def _damaged(path: Path, found: str) -> EpanError:
    return EpanError(
        "The file of chosen learning rates cannot be used",
        found=f"{found} in {path}",
        allowed=f"{{model: {{task: {{family: rate}}}}}} with the rates {LEARNING_RATES}",
        fix="restore the file, or remove it and choose again with: python experiments/length_generalization.py rates",
    )


def _rates() -> dict[tuple[str, str], dict[str, float]]:
    """The rate of each family by model and task: what was chosen, or the published 1e-3 until stage "rates" has run."""
    chosen = _chosen(RESULTS / CHOSEN)
    return {
        (model, task): {
            probe.family: chosen.get(model, {}).get(task, {}).get(probe.family, LEARNING_RATES[0]) for probe in probes
        }
        for model, probes in PROBES.items()
        for task in PLANS
    }


RATES = _rates()
NEIGHBOURS = (4, 8, 32, 64)
# Stage "neighbours" decides these: k by task, for both top-k methods, beside k = 16. A task without one has not been tuned.
TUNED_K: dict[str, int] = {}
LONGER, LONGER_TASK = 5, "reverse"
LONGER_METHODS = (GAUSSIAN, Method("adaptive", "biweight"), Method("anchored", "epanechnikov", "anchored"))

SHIFTED_TASK = "reverse"
SHIFTED = (Method("anchored", "epanechnikov", "anchored"), Method("fixed", "epanechnikov", "fixed"), nearest(16)[1])

# Reverse: matching runs of symbols needs wide heads, and queries and keys that know the symbols before them; positions mislead
# on longer sequences, and so does a first layer that sees more than its surroundings.
_REVERSING = {"positions": "nope", "heads": 2, "short_conv": 5}
_LOCAL = {"local_layers": 1, "local_window": 6}
# Sort: how often a symbol is still to come fades in a mean as the sequence grows, but not in a sum.
_SORTING = {"positions": "nope", "layers": 3}
# MQMTAR: two layers find the second letter of a value by the first one alone, which more than one pair of a long sequence has.
# A third layer, or keys that forget by what they read, may address it by the whole key.
_DEEPER = {"layers": 3}
BEYOND: dict[tuple[str, str], tuple[Method, ...]] = {
    ("memory_mosaic", "mqmtar"): (
        Method("adaptive", "biweight", options=_DEEPER),
        Method("adaptive", "biweight", options={"gated_keys": True}),
        Method("adaptive", "biweight", options={**_DEEPER, "gated_keys": True}),
        Method("adaptive", "biweight", options={**_DEEPER, "adaptive_bandwidth": True}),
        Method("adaptive", "biweight", options={"layers": 4}),
        Method("anchored", "epanechnikov", "anchored", _DEEPER),
        Method("gaussian", "gaussian", options=_DEEPER),
    ),
    ("transformer", "reverse"): (
        Method("anchored", "epanechnikov", "anchored", {"heads": 2}),
        Method("anchored", "epanechnikov", "anchored", {"heads": 2, **_LOCAL}),
        Method("anchored", "epanechnikov", "anchored", _REVERSING),
        Method("anchored", "epanechnikov", "anchored", {**_REVERSING, **_LOCAL}),
        Method("anchored", "epanechnikov", "anchored", {**_REVERSING, **_LOCAL, "heads": 1}),
        Method("adaptive", "biweight", options={**_REVERSING, **_LOCAL}),
        Method("gaussian", "gaussian", options={**_REVERSING, **_LOCAL}),
    ),
    ("transformer", "sort"): (
        Method("anchored", "epanechnikov", "anchored", {"positions": "nope"}),
        Method("anchored", "epanechnikov", "anchored", _SORTING),
        Method("anchored", "epanechnikov", "anchored", {**_SORTING, "counting_heads": 4}),
        Method("anchored", "epanechnikov", "anchored", {**_SORTING, "layers": 4, "counting_heads": 4}),
        Method("asentmax", "biweight", options={**_SORTING, "length_scaling": "asentmax"}),
    ),
}


def config(model: str, task: str, method: Method, seed: int, rate: float, budgets: int = 1) -> RunConfig:
    """One run."""
    steps = budgets * PLANS[task].steps
    made = RunConfig(
        seed=seed,
        steps=steps,
        batch=PLANS[task].batch,
        lengths=TRAINED,
        task=TaskConfig(task),
        model=ModelConfig(model, {**MODELS[model], **method.options}, method.kernel, method.normalization),
        optimizer=OptimizerConfig(learning_rate=rate, final_learning_rate=rate / 20),
        # A few looks at the training length; the tests proper come afterwards.
        evaluation=EvaluationConfig(
            lengths=(TRAINED[1],), sequences=256, every=steps // 4, decoding="teacher-forced", batch_tokens=65_536
        ),
        precision="bf16",
        compile=True,
        # Any cell of the table is to repeat to the last digit.
        deterministic=True,
        log_every=50,
        checkpoint_every=1_000,
        keep=1,
    )
    return _named(made, f"-x{budgets}" if budgets > 1 else "")


def _named(made: RunConfig, suffix: str) -> RunConfig:
    method = method_of(made).partition("-steps=")[0].replace("(k=", "-k").replace(")", "").replace("+", "-")
    rate = f"{made.optimizer.learning_rate:g}"
    name = f"{made.task.name}-{made.model.name}-{method}{suffix}-lr{rate}-seed{made.seed}"
    return dataclasses.replace(made, name=name)


def method_of(run: RunConfig) -> str:
    """What a run is called in the table: kernel and normalization, options beside them, steps that are not the budget.

    E.g. ``gaussian-nearest(k=16)``, ``biweight-adaptive+adaptive_bandwidth``, ``biweight-adaptive+asentmax``.
    """
    base = MODELS[run.model.name]
    parts = [run.method]
    for key, value in run.model.options.items():
        if key not in base or value != base[key]:
            parts.append(key if value is True else str(value) if isinstance(value, str) else f"{key}={value}")
    budget = PLANS[run.task.name].steps
    return "+".join(parts) + (f"-steps={run.steps}" if run.steps != budget else "")


def rate_of(model: str, task: str, method: Method) -> float:
    """The learning rate of a method: that of its family."""
    return RATES[model, task][method.family]


def rates() -> list[RunConfig]:
    """Both learning rates on the probes, seed 0."""
    return [
        config(model, task, probe, 0, rate)
        for task in PLANS
        for model, probes in PROBES.items()
        for probe in probes
        for rate in LEARNING_RATES
    ]


def main() -> list[RunConfig]:
    """Every method at its rate, three seeds: the runs of the table."""
    return [
        config(model, task, method, seed, rate_of(model, task, method))
        for task in PLANS
        for model, methods in METHODS.items()
        for method in (*methods, *_tuned(model, task))
        for seed in SEEDS
    ]


def _tuned(model: str, task: str) -> tuple[Method, ...]:
    return nearest(TUNED_K[task]) if model == "memory_mosaic" and task in TUNED_K else ()


def neighbours() -> list[RunConfig]:
    """Other k for the top-k methods, seed 0, on the tasks that tell methods apart."""
    return [
        config("memory_mosaic", task, method, 0, rate_of("memory_mosaic", task, method))
        for task in PLANS
        if task != "copy"
        for k in NEIGHBOURS
        for method in nearest(k)
    ]


def longer() -> list[RunConfig]:
    """One task at five times the budget: what does the budget change?"""
    return [
        config("memory_mosaic", LONGER_TASK, method, seed, rate_of("memory_mosaic", LONGER_TASK, method), LONGER)
        for method in LONGER_METHODS
        for seed in SEEDS
    ]


def compat() -> list[RunConfig]:
    """What the shifted mask of the published code does to the methods that had it, on one task."""
    shifted = [dataclasses.replace(method, options={**method.options, "compat": "shifted-mask"}) for method in SHIFTED]
    return [
        config("memory_mosaic", SHIFTED_TASK, method, seed, rate_of("memory_mosaic", SHIFTED_TASK, method))
        for method in shifted
        for seed in SEEDS
    ]


def beyond() -> list[RunConfig]:
    """What may beat the published numbers, seed 0; what does is to be trained with all seeds."""
    return [
        config(model, task, method, 0, rate_of(model, task, method))
        for (model, task), methods in BEYOND.items()
        for method in methods
    ]


STAGES = {
    "rates": rates,
    "main": main,
    "neighbours": neighbours,
    "longer": longer,
    "compat": compat,
    "beyond": beyond,
}


def runs() -> list[RunConfig]:
    """The runs of all stages, each once."""
    return list({run.label: run for stage in STAGES.values() for run in stage()}.values())


def sequences(length: int) -> int:
    """Test sequences of a length."""
    return 1_000 if length <= 16_384 else 200


# What β is multiplied by at test time, everywhere, and the γ that may be chosen for a factor that grows with the length.
FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
GROWTHS = {
    "power": (-0.5, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5),
    "logarithm": (-0.1, -0.05, 0.0, 0.1, 0.25, 0.5, 1.0),
}
LONGER_VALIDATION = (128, 256)
# Weights are written out up to this length, of so many sequences.
LOOKED_AT, LOOKS_AT = 1024, 64


def fewer_sequences(length: int) -> int:
    """Sequences of a length for each of the many temperatures, the first of those of the test."""
    return min(sequences(length), 200 if length <= 16_384 else 50)


# ---------------------------------------------------------------------- what is done with trained runs


def decided(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the rule says of every probe that has records: its score at each rate, and the rate that it chooses.

    ``scores`` is {rate: (exact match, loss)} on validation sequences of the longest training length; ``rate`` is None until
    all rates are there.
    """
    from collecting import identity, score

    known = {record["identity"]: record for record in records}
    found = []
    for (model, task), table in RATES.items():
        for probe in PROBES[model]:
            tried = {rate: config(model, task, probe, 0, rate) for rate in LEARNING_RATES}
            scores: dict[float, tuple[float, float]] = {}
            for rate, run in tried.items():
                value = score(known[identity(run)], "validation", TRAINED[1]) if identity(run) in known else None
                if value is not None:
                    scores[rate] = value
            if not scores:
                continue
            whole = len(scores) == len(LEARNING_RATES)
            best = max((exact, -loss, rate) for rate, (exact, loss) in scores.items())[2] if whole else None
            found.append(
                {"model": model, "task": task, "family": probe.family, "scores": scores, "rate": best}
                | {"constant": table[probe.family]}
            )
    return found


def _choose_rates(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Shows what the rule says, and writes it to ``path``; what has no records there stays."""
    from writing import replace_text

    chosen = _chosen(path)
    for row in decided(records):
        scores = "  ".join(f"{rate:g}: {exact:.1%}, loss {loss:.4g}" for rate, (exact, loss) in row["scores"].items())
        said = "the other rate is not there yet" if row["rate"] is None else f"take {row['rate']:g}"
        if row["rate"] not in (None, row["constant"]):
            said += f" (was {row['constant']:g})"
        if row["rate"] is not None:
            chosen.setdefault(row["model"], {}).setdefault(row["task"], {})[row["family"]] = row["rate"]
        print(f"{row['task']:<8} {row['model']:<14} {row['family']:<9} {scores}  -> {said}")
    replace_text(path, json.dumps(chosen, indent=1) + "\n")


def _show_stages() -> None:
    done: set[str] = set()
    print(f"{'stage':<12}{'task':<9}{'runs':>5}{'new':>5}{'new steps':>12}")
    for name, stage in STAGES.items():
        listed = stage()
        for task in PLANS:
            of_task = [run for run in listed if run.task.name == task]
            new = [run for run in of_task if run.label not in done]
            if of_task:
                print(f"{name:<12}{task:<9}{len(of_task):>5}{len(new):>5}{sum(run.steps for run in new):>12,}")
        done |= {run.label for run in listed}


def _titles() -> dict[str, list[tuple[str, str, str]]]:
    """Title of a panel: model, method and legend of its curves, first the Gaussian."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for model, panels in PANELS.items():
        for title, methods in panels.items():
            made = [config(model, next(iter(PLANS)), method, 0, LEARNING_RATES[0]) for method in (GAUSSIAN, *methods)]
            names = [method_of(run) for run in made]
            found[title] = [(model, name, name.replace("adaptive_bandwidth", "β₁nᵃ+β₀")) for name in names]
    return found


def command(arguments: Sequence[str] | None = None) -> int:
    """``python experiments/length_generalization.py WHAT …``; returns the exit status."""
    # Beside this file; a sweep of its runs does without.
    import commands

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("stages", help="list the stages with their runs and steps")
    tests = {
        "test": "test the trained runs below the folders, as far as it has not been done",
        "temperature": "test them with β multiplied",
        "diagnose": "look at the weights of their heads",
    }
    rules = {"rates": "apply the rule for the learning rate", "tables": "make tables and figures"}
    commands.add_commands(what, tests, rules, "mqmtar-*", RESULTS)
    return commands.run(parser, arguments, _do, "length_generalization.py")


def _looked_at(run: RunConfig) -> tuple[int, ...]:
    return tuple(length for length in PLANS[run.task.name].lengths if length <= LOOKED_AT)


def _do(options: argparse.Namespace) -> int:
    if options.what == "stages":
        _show_stages()
        return 0
    # Beside this file; a sweep of its runs needs none of them.
    import commands
    import tempering
    import testing

    ladder = tempering.Ladder(
        factors=FACTORS,
        numbers=GROWTHS,
        trained=TRAINED[1],
        longer=LONGER_VALIDATION,
        lengths=lambda run: PLANS[run.task.name].lengths,
        sequences=fewer_sequences,
    )
    study = testing.Study(
        lengths=lambda run: PLANS[run.task.name].lengths, sequences=sequences, validation=(TRAINED[1],), few=100
    )
    if options.what in commands.COMMON:
        return commands.common(options, study, runs(), method_of, "length_generalization.py")
    if options.what == "temperature":
        return tempering.temper(options.folders, ladder, commands.selection(options))
    if options.what == "diagnose":
        import diagnosing

        return diagnosing.diagnose(options.folders, _looked_at, LOOKS_AT, commands.selection(options))
    records = commands.records_of(options, runs(), method_of)
    if options.what == "rates":
        _choose_rates(records, options.results / CHOSEN)
        return 0
    import tabulating
    import tabulating_heads
    import tabulating_plateaus
    import tabulating_temperatures

    planned, panels, results = [*main(), *longer(), *beyond()], _titles(), options.results
    for made in (
        *tabulating.tabulate(records, planned, method_of, study, panels, results),
        *tabulating_temperatures.tabulate(records, planned, method_of, ladder, results),
        *tabulating_heads.tabulate(records, planned, method_of, results),
        *tabulating_plateaus.tabulate(records, planned, method_of, panels, results),
    ):
        print(made)
    return 0


if __name__ == "__main__":
    # The folder of this file is on the path of what Python runs as a script.
    raise SystemExit(command())
