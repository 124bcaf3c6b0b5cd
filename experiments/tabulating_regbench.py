"""Tables and figures of the study of automata, from its records alone, and the ceilings that they are held against."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collecting import identity
from epan._lines import number
from epan.training import RunConfig
from tabulating import LOOKS
from testing import Study
from writing import nothing_to_show, seeds_told, write_table

__all__ = ["ceilings", "measured", "tabulate"]

#: Model, method and training automata of a row.
Key = tuple[str, str, int]

HEADER = (
    "model", "method", "automata", "accuracy", "accuracy_min", "accuracy_max", "tvd", "tvd_min", "tvd_max", "seeds",
)  # fmt: skip
DIAGNOSED = ("accuracy", "tvd", "kl", "token_accuracy", "loss", "support_size", "density", "empty_rows")
ORDERS = (2, 3, 4)
#: Ceilings that figures show: model, method, legend and dash.
SHOWN = (("ngram", "3-gram", "3-gram", (0, (1, 1))), ("bayes", "states-known", "states known", (0, (3, 1))))
LIMIT = "#1b2026"
BESIDE = (*LOOKS, ("#6a4fb3", "X", (0, (4, 1, 1, 1))), ("#b23b3b", ">", "-"))


def measured(record: Mapping[str, Any], split: str, length: int, sequences: int) -> Mapping[str, Any] | None:
    """The test of a finished run at a length of a split, if it is whole."""
    for test in record["evaluations"]:
        if record["status"] == "finished" and (test["split"], test["length"]) == (split, length):
            return test if test["sequences"] >= sequences else None
    return None


def tabulate(
    records: Sequence[Mapping[str, Any]],
    planned: Sequence[tuple[RunConfig, Key]],
    titles: Mapping[tuple[str, str], str],
    published: Mapping[str, Mapping[int, tuple[float, float]]],
    study: Study,
    folder: Path,
) -> list[str]:
    """Write ``table.csv``, ``diagnostics.csv``, ``ceilings.json`` and the figures; returns what is to be said about them.

    table.csv: accuracy and total variation distance at the training length, mean, lowest and highest seed, number of seeds; of
    the ceilings, which learn nothing in training, with 0 automata and 1 seed. diagnostics.csv: means over the seeds at each
    length.

    Parameters
    ----------
    planned: the runs of the table and their rows. titles: legend by model and method, for those that are drawn.
    published: by model and training automata, accuracy and distance.

    Raises
    ------
    EpanError: no record has anything for the table.
    """
    known = {record["identity"]: record for record in records}
    tests: dict[tuple[Key, int], list[Mapping[str, Any]]] = {}
    for run, key in planned:
        for length in study.lengths(run):
            record = known.get(identity(run))
            test = None if record is None else measured(record, "test", length, study.sequences(length))
            if test is not None:
                tests.setdefault((key, length), []).append(test)
    trained = study.lengths(planned[0][0])[0]
    rows = {key: found for (key, length), found in tests.items() if length == trained}
    if not rows:
        raise nothing_to_show(len(records))
    folder.mkdir(parents=True, exist_ok=True)
    limits = _kept_ceilings(folder / "ceilings.json", trained, study.sequences(trained))
    lines = [
        [*key, *_spans(found), len(found)]
        for key, found in [*rows.items(), *(((row["model"], row["method"], 0), [row]) for row in limits)]
    ]
    write_table(folder / "table.csv", HEADER, lines)
    write_table(
        folder / "diagnostics.csv",
        [*HEADER[:3], "length", *DIAGNOSED, "seeds"],
        [[*key, length, *_means(found), len(found)] for (key, length), found in tests.items()],
    )
    made = [folder / name for name in ("table.csv", "diagnostics.csv", "ceilings.json")]
    made += _figures(rows, limits, titles, published, folder)
    return [*map(str, made), seeds_told(map(len, rows.values()))]


def _spans(tests: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean, lowest and highest accuracy, then the same of the distance."""
    found: list[float] = []
    for name in ("accuracy", "tvd"):
        values = [float(test[name]) for test in tests]
        found += [sum(values) / len(values), min(values), max(values)]
    return found


def _means(tests: Sequence[Mapping[str, Any]]) -> list[float | str]:
    found: list[float | str] = []
    for name in DIAGNOSED:
        values = [value for test in tests if (value := number(test.get(name))) is not None]
        found.append(sum(values) / len(values) if values else "")
    return found


# ---------------------------------------------------------------------- ceilings


def ceilings(length: int, sequences: int) -> list[dict[str, Any]]:
    """What n-grams and the Bayesian who is shown the states reach on the test sequences; as evaluations of a run, and named."""
    from torch.nn import functional as F

    from epan import tasks
    from epan.metrics import DivergenceMeter
    from epan.tasks.predictors import ngram, state_bayes
    from epan.tasks.regbench import FIRST, RegBench

    task = tasks.get("regbench")
    assert isinstance(task, RegBench)
    drawn = (0, 0, sequences, length)
    letters = task.sample(*drawn, split="test").tokens - FIRST
    truth, (_, states) = task.truth(*drawn, split="test"), task.states(*drawn, "test")
    predicted = {("ngram", f"{order}-gram"): ngram(letters, order) for order in ORDERS}
    predicted["bayes", "states-known"] = state_bayes(letters, states)
    found = []
    for (model, method), values in predicted.items():
        meter = DivergenceMeter()
        meter.add(F.pad(values, (FIRST, 0)).log(), *truth)
        named = {"model": model, "method": method, "length": length, "sequences": sequences}
        found.append({**named, **meter.result(), "by_position": meter.by_position()})
    return found


def _kept_ceilings(path: Path, length: int, sequences: int) -> list[dict[str, Any]]:
    """Those of the file, if it has them for this test; else they are found and written there."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if all(row["length"] == length and row["sequences"] == sequences for row in found) and found:
            return list(found)
    except (OSError, ValueError, TypeError, KeyError):
        # Not there, or not what was written: it is made anew.
        pass
    found = ceilings(length, sequences)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


# ---------------------------------------------------------------------- figures


def _figures(
    rows: Mapping[Key, Sequence[Mapping[str, Any]]],
    limits: Sequence[Mapping[str, Any]],
    titles: Mapping[tuple[str, str], str],
    published: Mapping[str, Mapping[int, tuple[float, float]]],
    folder: Path,
) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from epan.report.draw import RC

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        for place, (name, title) in enumerate((("accuracy", "accuracy"), ("tvd", "total variation distance"))):
            axes = figure.add_subplot(1, 2, place + 1)
            _by_automata(axes, name, title, rows, limits, titles, published)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7.5)
        _finish(figure, "Automata in context: mean and range of the seeds; stars: published", folder / "automata.png")
        counts = Counter(automata for model, method, automata in rows if (model, method) in titles)
        size = max(counts, key=lambda automata: (counts[automata], automata)) if counts else 0
        lines = {
            titles[model, method]: tests
            for (model, method, count), tests in rows.items()
            if count == size and (model, method) in titles
        }
        if not any(test.get("by_position") for tests in lines.values() for test in tests):
            return [folder / "automata.png"]
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for (title, tests), look in zip(lines.items(), BESIDE, strict=False):
            _positions(axes, title, tests, look)
        for model, method, title, dash in SHOWN:
            tests = [row for row in limits if (row["model"], row["method"]) == (model, method)]
            _positions(axes, title, tests, (LIMIT, "", dash))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value)}"))
        axes.set_xlabel("position of the token")
        axes.set_ylabel("total variation distance")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7.5)
        _finish(figure, f"Distance by position, {size:,} training automata", folder / "positions.png")
    return [folder / "automata.png", folder / "positions.png"]


def _finish(figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": "epan"})


def _by_automata(
    axes: Any,
    name: str,
    title: str,
    rows: Mapping[Key, Sequence[Mapping[str, Any]]],
    limits: Sequence[Mapping[str, Any]],
    titles: Mapping[tuple[str, str], str],
    published: Mapping[str, Mapping[int, tuple[float, float]]],
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = sorted({automata for _, _, automata in rows})
    for place, (named, label) in enumerate(titles.items()):
        points = sorted(
            (key[2], [float(test[name]) for test in tests]) for key, tests in rows.items() if key[:2] == named
        )
        if not points:
            continue
        colour, marker, dash = BESIDE[place % len(BESIDE)]
        # Side by side, so that equal ones stay visible.
        places = [automata * 2 ** (0.06 * (place - (len(titles) - 1) / 2)) for automata, _ in points]
        means = [sum(values) / len(values) for _, values in points]
        axes.vlines(places, [min(v) for _, v in points], [max(v) for _, v in points], color=colour, linewidth=1.1)
        axes.plot(places, means, color=colour, marker=marker, linestyle=dash, linewidth=1.3, label=label)
    first = {model: place for place, (model, _) in reversed(list(enumerate(titles)))}
    for model in published.keys() & first.keys():
        for automata, pair in published[model].items():
            if automata in sizes:
                colour = BESIDE[first[model] % len(BESIDE)][0]
                axes.plot(automata, pair[name == "tvd"], marker="*", markersize=8, color=colour, alpha=0.6)
    for model, method, label, dash in SHOWN:
        for row in limits:
            if (row["model"], row["method"]) == (model, method):
                axes.axhline(row[name], color=LIMIT, linewidth=1, linestyle=dash, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value):,}"))
    axes.set_xlabel("training automata")
    axes.set_ylabel(title)


def _positions(axes: Any, title: str, tests: Sequence[Mapping[str, Any]], look: tuple[str, str, Any]) -> None:
    colour, marker, dash = look
    means: dict[float, list[float]] = {}
    for test in tests:
        for row in test.get("by_position") or ():
            # A range of positions stands at its middle on the logarithmic axis.
            means.setdefault(math.sqrt(row["first"] * (row["last"] + 1)), []).append(row["tvd"])
    points = sorted((place, sum(values) / len(values)) for place, values in means.items())
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=dash, linewidth=1.3, label=title)
