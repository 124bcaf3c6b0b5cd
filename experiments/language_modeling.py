"""Language models of compact kernels: do they write as well as the Gaussian, and what happens on longer contexts?

**Claim** (Santos et al. 2601.22766). Memory Mosaics with compact kernels model language as well as with the Gaussian (softmax);
the paper has a validation loss of 1.5008 on BabiStories, which is not used here. Here models of equal size are compared on
novels, a Memory Mosaic and a GPT-2-style transformer (layer norm, GELU, tied head; rotary positions, since those of GPT-2 end
with the context), at equal tokens **and** at equal time.

**Text.** 96 English novels, 1839 to 1927: 86 to train, and of every tenth by name the last one held out, five for validation
and five for the test. A BPE of 16,384 tokens trained on the 86: 17.4 million tokens. Out of domain: WikiText-2, whose tokens
are those of the same BPE. The sweep expects the tokens where this makes them, about 40 seconds on two cores:

    epan data novels --tokenizer bpe:size=16384 --split every:10 --out runs/tokens/novels

**Runs.** 8 layers, 8 heads, width 512: 33.5 to 33.6 million parameters; 32,768 tokens a step, dropout 0.1, AdamW with a
cosine to a twentieth, bfloat16. The budget is fixed beforehand (``STEPS``), the same for all methods, two seeds.

**Learning rate.** Two (``LEARNING_RATES``), seed 0, on the Gaussian and the biweight of each model; a model takes the one with
the lower mean validation loss of the two, for all methods. ``RATES`` holds what came out.

**Equal time.** ``speed`` measures tokens a second of each method in short runs on one GPU with nothing beside them; ``SPEEDS``
holds what came out. ``time`` gives each method as many steps as fit into the time that the Gaussian of its model takes for
``STEPS``, with the cosine over those.

**Tests.** Nats per token at one to eight times the context: of the validation text by the run itself, of the test text and of
WikiText-2 by ``test``, on all of their tokens but the rest of a block of eight contexts. ``table.csv`` has means over seeds of
runs at equal tokens: ``validation`` at the context, ``ood`` on WikiText-2 at the context, ``loss_1x`` … ``loss_8x`` on the test
text; ``ranges.csv`` has lowest and highest, and the runs at equal time and at the longer context too.

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
    python experiments/language_modeling.py choose
    python experiments/language_modeling.py tables

``choose`` applies the rules for rates and speeds to the records. A run folder is about 400 MB while it goes on: one checkpoint
with weights and both moments of 33.6 million float32 parameters.

**Cost.** Not measured yet; planned for 15 minutes of one H100 a run of ``main``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import sys
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epan.errors import EpanError
from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

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


# ---------------------------------------------------------------------- tests


def test(folders: Sequence[Path], ood: Path, seconds: float | None, device: str) -> int:
    """Test what is trained and not yet tested: the test text and ``ood``. Returns 0, or 75 if something is left.

    Raises
    ------
    EpanError: no run is finished, or ``ood`` is no text.
    """
    from collecting import folders_below
    from epan.training import evaluate_run, records

    began, left, tested = clock.monotonic(), 0, 0
    for folder in folders_below(folders):
        entries = records.read(folder)
        if records.summary(entries).status != "finished":
            continue
        run = RunConfig.from_dict(records.header(entries, folder)["config"])
        if stage_of(run) in ("rates", "speed"):
            continue
        tested += 1
        there = {(entry["split"], entry["length"]) for entry in entries if entry["kind"] == "eval"}
        for split, text in (("test", None), (ood.name, str(ood))):
            for length in run.evaluation.lengths or ():
                if (split, length) in there:
                    continue
                if seconds is not None and clock.monotonic() - began > seconds:
                    left += 1
                    continue
                found = evaluate_run(folder, [length], text=text, device=device)[0]
                print(f"{run.label}  {split} {length}: {found['loss']:.4f} nats a token", flush=True)
    if not tested:
        raise EpanError("No run is finished", found=", ".join(map(str, folders)), fix="let the sweep go on first")
    if left:
        print(f"The time is over; {left} tests are left. The same command goes on.")
    return 75 if left else 0


# ---------------------------------------------------------------------- rules and tables


def loss(record: Mapping[str, Any], split: str, factor: int) -> float | None:
    """Nats per token of a finished run on a split at a multiple of its context; ``ood`` is whatever other text there is."""
    wanted = factor * record["config"]["lengths"][1]
    for test in record["evaluations"]:
        other = test["split"] not in ("train", "validation", "test")
        if (
            record["status"] == "finished"
            and test["length"] == wanted
            and (split == test["split"] or (split == "ood" and other))
        ):
            return float(test["loss"])
    return None


def choose(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rules say of the records: a line for each model's rate, and the speeds as a dict to copy."""
    said = []
    of_stage = {(record["name"]): record for record in records}
    for model in MODELS:
        scores = {}
        for rate in LEARNING_RATES:
            names = [run.label for run in rates() if run.model.name == model and run.optimizer.learning_rate == rate]
            values = [loss(of_stage[name], "validation", 1) for name in names if name in of_stage]
            known = [value for value in values if value is not None]
            if len(known) == len(names):
                scores[rate] = statistics.fmean(known)
        told = "  ".join(f"{rate:g}: {value:.4f}" for rate, value in scores.items())
        whole = len(scores) == len(LEARNING_RATES)
        taken = f"take {min(scores, key=scores.__getitem__):g}" if whole else "not all runs are there"
        said.append(f"{model}  {told}  -> {taken} (RATES has {RATES[model]:g})")
    speeds = {
        (record["model"], record["method"]): record["tokens_per_second"]
        for record in records
        if "-speed-" in record["name"]
    }
    said.append(f"SPEEDS = {speeds}")
    return said


HEADER = (
    "model", "method", "parameters", "tokens", "validation", "ood", "loss_1x", "loss_2x", "loss_4x", "loss_8x",
    "tokens_per_second", "seeds",
)  # fmt: skip
VALUES = ("validation", "ood", "loss_1x", "loss_2x", "loss_4x", "loss_8x", "tokens_per_second")


def measured(record: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of one run that the table has means of."""
    found = {"validation": loss(record, "validation", 1), "ood": loss(record, "ood", 1)}
    found |= {f"loss_{factor}x": loss(record, "test", factor) for factor in FACTORS}
    return {**found, "tokens_per_second": record["tokens_per_second"]}


def rows(records: Sequence[Mapping[str, Any]], stage: str) -> list[dict[str, Any]]:
    """A row for each model and method of a stage: means, and lowest and highest, over its seeds."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if stage_of(RunConfig.from_dict(record["config"])) == stage and record["status"] == "finished":
            groups.setdefault((record["model"], record["method"]), []).append(record)
    found = []
    for (model, method), group in sorted(groups.items(), key=lambda item: _place(*item[0])):
        config = group[0]["config"]
        row: dict[str, Any] = {
            "stage": stage,
            "model": SHORT[model],
            "method": method,
            "parameters": group[0]["parameters"],
            "tokens": config["steps"] * config["batch"] * config["lengths"][1],
            "seeds": len({record["seed"] for record in group}),
        }
        for name in VALUES:
            values = [value for record in group if (value := measured(record)[name]) is not None]
            digits = 0 if name == "tokens_per_second" else 4
            # A mean over some of the seeds would be one of another choice.
            whole = len(values) == len(group)
            for suffix, of in (("", statistics.fmean), ("_min", min), ("_max", max)):
                row[name + suffix] = f"{of(values):.{digits}f}" if whole else ""
        found.append(row)
    return found


def _place(model: str, method: str) -> tuple[int, int]:
    order = [f"{known.kernel}-{known.normalization}" for known in METHODS]
    return list(MODELS).index(model), order.index(method)


def tabulate(records: Sequence[Mapping[str, Any]], results: Path) -> list[Path]:
    """Write table.csv, ranges.csv, positions.csv and the figure from the records; returns what was written."""
    results.mkdir(parents=True, exist_ok=True)
    table, ranges = rows(records, "main"), [row for stage in ("main", "time", "long") for row in rows(records, stage)]
    spread = [name for name in HEADER if name not in VALUES] + [
        name + end for name in VALUES for end in ("", "_min", "_max")
    ]
    made = [_write(results / "table.csv", HEADER, table), _write(results / "ranges.csv", ("stage", *spread), ranges)]
    positions = [
        {
            "name": record["name"], "split": test["split"], "length": test["length"], "first": first, "last": last,
            "loss": f"{value:.4f}", "support": test["support_size"], "density": test["density"],
        }
        for record in records
        if stage_of(RunConfig.from_dict(record["config"])) in ("main", "long")
        for test in record["evaluations"]
        for first, last, value in test["loss_by_position"]
    ]  # fmt: skip
    names = ("name", "split", "length", "first", "last", "loss", "support", "density")
    made.append(_write(results / "positions.csv", names, positions))
    if positions:
        made.append(_draw(records, results / "positions.png"))
    return made


def _write(path: Path, names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return path


def _draw(records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Loss by position on the test text (or validation) in windows of eight contexts, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from epan.report.draw import RC
    from tabulating import LOOKS

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axis, model in zip(figure.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
            axis.set_title(SHORT[model], fontsize=9)
            for (colour, marker, dash), method in zip(LOOKS, METHODS, strict=False):
                label = f"{method.kernel}-{method.normalization}"
                curves = [
                    test["loss_by_position"]
                    for record in records
                    if (record["model"], record["method"]) == (model, label)
                    and stage_of(RunConfig.from_dict(record["config"])) == "main"
                    for test in record["evaluations"]
                    if test["split"] == "validation" and test["length"] == FACTORS[-1] * CONTEXT
                ]
                if curves:
                    places = [(first + last) / 2 + 1 for first, last, _ in curves[0]]
                    means = [
                        statistics.fmean(values) for values in zip(*([v for _, _, v in c] for c in curves), strict=True)
                    ]
                    axis.plot(
                        places,
                        means,
                        color=colour,
                        marker=marker,
                        linestyle=dash,
                        linewidth=1.2,
                        markersize=3,
                        label=label,
                    )
            axis.axvline(CONTEXT, color="#98a3b0", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("position in the window (dotted: context in training)")
            if axis.lines[:-1]:
                axis.legend(fontsize=7)
        figure.axes[0].set_ylabel("nats a token, validation")
        figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": "epan"})
    return path


def command(arguments: Sequence[str] | None = None) -> int:
    """``python experiments/language_modeling.py WHAT …``; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("stages", help="list the stages with their runs and tokens")
    tests = what.add_parser("test", help="test the trained runs below the folders, as far as it has not been done")
    tests.add_argument("folders", nargs="+", type=Path)
    tests.add_argument("--ood", type=Path, required=True, help="the text out of domain")
    tests.add_argument("--seconds", type=float, help="start no test after so many seconds")
    tests.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    for name, text in (
        ("collect", "add the runs below the folders to the records"),
        ("choose", "apply the rules for rates and speeds"),
        ("tables", "make tables and the figure"),
    ):
        part = what.add_parser(name, help=text)
        part.add_argument("folders", nargs="+" if name == "collect" else "*", type=Path)
        part.add_argument("--results", type=Path, default=RESULTS, help="folder of records, tables and figures")
    options = parser.parse_args(arguments)
    try:
        return _do(options)
    except EpanError as error:
        print(f"language_modeling.py: {error}", file=sys.stderr)
        return 2


def _do(options: argparse.Namespace) -> int:
    if options.what == "stages":
        for name, stage in STAGES.items():
            listed = stage()
            total = sum(run.steps * TOKENS_A_STEP for run in listed)
            print(f"{name:<8}{len(listed):>4} runs{total / 1e6:>10,.0f} million tokens")
        return 0
    if options.what == "test":
        return test(options.folders, options.ood, options.seconds, options.device)
    # Beside this file; a sweep of its runs needs none of them.
    import collecting

    path = options.results / "records.jsonl"
    known = {collecting.identity(run) for run in runs()}
    if options.what == "collect":
        repeat = "epan sweep experiments/language_modeling.py --only"
        print(collecting.collect(options.folders, path, method_of, known, repeat))
        return 0
    records, told = collecting.gather(path, options.folders, method_of, known)
    print(told)
    for line in choose(records) if options.what == "choose" else tabulate(records, options.results):
        print(line)
    return 0


if __name__ == "__main__":
    # The folder of this file is on the path of what Python runs as a script.
    raise SystemExit(command())
