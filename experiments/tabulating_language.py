"""Tables and figures of the study of language models, from its records alone: the same records give the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collecting import identity
from drawing import LOOKS, Board, dotted, legend_above, length_axis, percent_axis
from epan._lines import number
from epan.training import RunConfig
from writing import nothing_to_show, write_table

__all__ = ["Plan", "loss", "tabulate"]

Record = Mapping[str, Any]
#: Stage, model and method.
Key = tuple[str, str, str]

FACTORS = (1, 2, 4, 8)
LOSSES = ("validation", "ood", *(f"loss_{factor}x" for factor in FACTORS))
HEADER = ("model", "method", "parameters", "tokens", *LOSSES, "tokens_per_second", "seeds")
MEASURED = (*LOSSES, "tokens_per_second", "peak_memory")
JUDGED = ("validation", "ood", "loss_8x")
SUPPORT = ("support_size", "density", "tile_density", "empty_rows")
ENDS = ("", "_min", "_max")
# Places of the figures before which a model knows next to nothing.
FIRST = 8


@dataclass(frozen=True)
class Plan:
    """What belongs into the tables.

    Parameters
    ----------
    stages: the runs at equal tokens ("main"), at equal time ("time") and at the longer context ("long").
    models: what the tables call a model, by its name. methods: in their order, the reference first.
    """

    stages: Mapping[str, Sequence[RunConfig]]
    models: Mapping[str, str]
    methods: Sequence[str]

    def groups(self, records: Iterable[Record]) -> dict[Key, list[Record]]:
        """The finished runs of each stage, model and method, by seed."""
        known = {record["identity"]: record for record in records if record["status"] == "finished"}
        found: dict[Key, list[Record]] = {}
        for stage, runs in self.stages.items():
            for run in runs:
                record = known.get(identity(run))
                if record is not None:
                    found.setdefault((stage, record["model"], record["method"]), []).append(record)
        return {key: sorted(found[key], key=lambda record: record["seed"]) for key in sorted(found, key=self._place)}

    def _place(self, key: Key) -> tuple[int, int, int]:
        return [*self.stages].index(key[0]), [*self.models].index(key[1]), self.methods.index(key[2])


def _test(record: Record, split: str, length: int) -> Record | None:
    """The test of a finished run on a split; ``ood`` is whatever other text there is."""
    for test in record["evaluations"]:
        other = test["split"] not in ("train", "validation", "test")
        fits = other if split == "ood" else test["split"] == split
        if record["status"] == "finished" and test["length"] == length and fits:
            return test  # type: ignore[no-any-return]
    return None


def loss(record: Record, split: str, factor: int) -> float | None:
    """Nats per token of a finished run on a split at a multiple of its context; ``ood`` is whatever other text there is."""
    test = _test(record, split, factor * record["config"]["lengths"][1])
    return None if test is None else number(test["loss"])


def measured(record: Record, name: str) -> float | None:
    """A number of one run: one of ``MEASURED``."""
    if name in ("validation", "ood"):
        return loss(record, name, 1)
    if name.startswith("loss_"):
        return loss(record, "test", int(name[5:-1]))
    return number(record.get(name))


def _spread(values: Sequence[float | None], digits: int = 4) -> list[str]:
    """Mean, lowest and highest; nothing where one is missing, since a mean over the rest would be one of another choice."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ["", "", ""]
    return [f"{of(known):.{digits}f}" for of in (statistics.fmean, min, max)]


def _named(name: str, spread: Sequence[str]) -> dict[str, str]:
    return dict(zip((name + end for end in ENDS), spread, strict=True))


# ---------------------------------------------------------------------- rows


def _rows(groups: Mapping[Key, Sequence[Record]], plan: Plan) -> list[dict[str, Any]]:
    found = []
    for (stage, model, method), group in groups.items():
        config = group[0]["config"]
        row: dict[str, Any] = {
            "stage": stage,
            "model": plan.models[model],
            "method": method,
            "context": config["lengths"][1],
            "parameters": group[0]["parameters"],
            "tokens": config["steps"] * config["batch"] * config["lengths"][1],
            "seeds": len(group),
        }
        for name in MEASURED:
            digits = 4 if name in LOSSES else 0
            row |= _named(name, _spread([measured(record, name) for record in group], digits))
        found.append(row)
    return found


def _judged(groups: Mapping[Key, Sequence[Record]], plan: Plan) -> list[dict[str, Any]]:
    """Each method less the reference of its model with the same seed; at equal time the reference is that at equal tokens."""
    found = []
    for (stage, model, method), group in groups.items():
        base = {record["seed"]: record for record in groups.get((_base(stage), model, plan.methods[0]), ())}
        pairs = [(record, base[record["seed"]]) for record in group if record["seed"] in base]
        if method == plan.methods[0] or not pairs:
            continue
        config = group[0]["config"]
        row: dict[str, Any] = {
            "equal": "time" if stage == "time" else "tokens",
            "context": config["lengths"][1],
            "model": plan.models[model],
            "method": method,
            "steps": config["steps"],
            "seeds": len(pairs),
        }
        for name in JUDGED:
            values = [(measured(own, name), measured(other, name)) for own, other in pairs]
            less = [None if a is None or b is None else a - b for a, b in values]
            row |= _named(name, _spread(less))
        found.append(row)
    return found


def _base(stage: str) -> str:
    return "main" if stage == "time" else stage


def _over_tests(
    groups: Mapping[Key, Sequence[Record]],
    plan: Plan,
    parts: Callable[[Record], Iterable[tuple[tuple[Any, ...], Record]]],
) -> Iterable[tuple[dict[str, Any], tuple[Any, ...], list[Record]]]:
    """Stage, model, method, split and length of a row, a part of the test, and that part of each seed."""
    for (stage, model, method), group in groups.items():
        if stage == "time":
            continue
        found: dict[tuple[Any, ...], list[Record]] = {}
        for record in group:
            for test in record["evaluations"]:
                for part, values in parts(test):
                    found.setdefault((test["split"], test["length"], *part), []).append(values)
        for (split, length, *part), values in found.items():
            named = {"stage": stage, "model": plan.models[model], "method": method, "split": split, "length": length}
            yield {**named, "seeds": len(values)}, tuple(part), values


def _positions(groups: Mapping[Key, Sequence[Record]], plan: Plan) -> list[dict[str, Any]]:
    def parts(test: Record) -> Iterable[tuple[tuple[Any, ...], Record]]:
        return [((first, last), {"loss": value}) for first, last, value in test.get("loss_by_position") or ()]

    return [
        {**row, "first": part[0], "last": part[1], **_named("loss", _spread([value["loss"] for value in values]))}
        for row, part, values in _over_tests(groups, plan, parts)
    ]


def _layers(groups: Mapping[Key, Sequence[Record]], plan: Plan) -> list[dict[str, Any]]:
    """Keys with weight, their share and that of tiles, of every memory; means over the seeds."""

    def parts(test: Record) -> Iterable[tuple[tuple[Any, ...], Record]]:
        for name, values in (test.get("per_layer") or {}).items():
            # Such as layers.3.contextual.
            _, layer, memory = name.split(".")
            yield (int(layer), memory), values

    found = []
    for row, (layer, memory), values in _over_tests(groups, plan, parts):
        of = {}
        for name in SUPPORT:
            known = [value for part in values if (value := number(part.get(name))) is not None]
            of[name] = f"{statistics.fmean(known):.6g}" if known and len(known) == len(values) else ""
        found.append({**row, "layer": layer, "memory": memory, **of})
    return found


# ---------------------------------------------------------------------- files


def tabulate(records: Sequence[Record], plan: Plan, folder: Path) -> list[str]:
    """Write tables and figures into ``folder``; returns what is to be said about them.

    table.csv: means over the seeds at equal tokens. ranges.csv: also lowest and highest, equal time, the longer context, and the
    peak memory in bytes. against_gaussian.csv: differences to the reference of the same seed in nats a token, more than 0 where
    the method is worse. support.csv: of every layer at every length keys with weight, their share of the allowed ones, share of
    tiles worked on (where the backend tells), share of empty rows. positions.csv: loss by position. Figures: lengths.png,
    positions.png, support.png.

    Raises
    ------
    EpanError: no record has anything for the tables.
    """
    groups = plan.groups(records)
    if not groups:
        raise nothing_to_show(len(records))
    folder.mkdir(parents=True, exist_ok=True)
    rows, judged = _rows(groups, plan), _judged(groups, plan)
    layers, positions = _layers(groups, plan), _positions(groups, plan)
    named = ("stage", "model", "method", "context", "parameters", "tokens")
    spread = [name + end for name in MEASURED for end in ENDS]
    part = ("stage", "model", "method", "split", "length")
    made = [
        _write(folder / "table.csv", HEADER, [row for row in rows if row["stage"] == "main"]),
        _write(folder / "ranges.csv", (*named, *spread, "seeds"), rows),
        _write(
            folder / "against_gaussian.csv",
            ("equal", "context", "model", "method", "steps", *(name + end for name in JUDGED for end in ENDS), "seeds"),
            judged,
        ),
        _write(folder / "support.csv", (*part, "layer", "memory", *SUPPORT, "seeds"), layers),
        _write(folder / "positions.csv", (*part, "first", "last", *(f"loss{end}" for end in ENDS), "seeds"), positions),
    ]
    drawn = {key[1:]: group for key, group in groups.items() if key[0] == "main"}
    if drawn:
        context = next(iter(drawn.values()))[0]["config"]["lengths"][1]
        made += _draw_lengths(drawn, plan, context, folder / "lengths.png")
        made += _draw_positions([row for row in positions if row["stage"] == "main"], plan, context, folder)
        made += _draw_support([row for row in layers if row["stage"] == "main"], plan, context, folder)
    return [*map(str, made), f"{len(rows)} rows, {sum(row['seeds'] for row in rows)} runs"]


def _write(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    return write_table(path, names, [[row[name] for name in names] for row in rows])


def _look(plan: Plan, method: str) -> dict[str, Any]:
    colour, marker, dash = LOOKS[plan.methods.index(method) % len(LOOKS)]
    return {"color": colour, "marker": marker, "linestyle": dash, "linewidth": 1.3, "markersize": 3.5, "label": method}


def _models(names: Iterable[str], plan: Plan) -> list[str]:
    """What the tables call the models that have something, in their order."""
    there = set(names)
    return [name for name in plan.models.values() if name in there]


def _draw_lengths(
    drawn: Mapping[tuple[str, str], Sequence[Record]], plan: Plan, context: int, path: Path
) -> list[Path]:
    """Loss on the test text against the length of its windows, mean and range of the seeds."""
    models = [model for model in plan.models if any(key[0] == model for key in drawn)]
    lengths = [context * factor for factor in FACTORS]
    with Board(len(models), len(models), (4.4, 3.2)) as board:
        for place, (axis, model) in enumerate(zip(board.axes, models, strict=True)):
            axis.set_title(plan.models[model], fontsize=9, pad=38)
            for method in plan.methods:
                group = drawn.get((model, method), ())
                points = []
                for factor in FACTORS:
                    values = [value for record in group if (value := loss(record, "test", factor)) is not None]
                    points += [(context * factor, values)] if values else []
                # Side by side, so that equal ones stay visible.
                shift = 2 ** (0.06 * (plan.methods.index(method) - (len(plan.methods) - 1) / 2))
                if points:
                    places = [length * shift for length, _ in points]
                    look = _look(plan, method)
                    axis.vlines(places, [min(v) for _, v in points], [max(v) for _, v in points], color=look["color"])
                    axis.plot(places, [statistics.fmean(v) for _, v in points], **look)
            length_axis(axis, lengths, context, "tokens of a window (dotted: in training)")
            if board.is_first(place):
                axis.set_ylabel("nats a token, test text")
            if axis.lines[:-1]:
                legend_above(axis)
        return [board.save("Loss on longer windows of the same text: mean and range of the seeds", path)]


def _draw_positions(rows: Sequence[Mapping[str, Any]], plan: Plan, context: int, folder: Path) -> list[Path]:
    """Loss by position in the longest windows of the test text, and below what each method has more than the reference."""
    longest = context * FACTORS[-1]
    rows = [row for row in rows if (row["split"], row["length"]) == ("test", longest) and row["first"] >= FIRST]
    models = _models((row["model"] for row in rows), plan)
    if not models:
        return []
    with Board(2 * len(models), len(models), (4.4, 2.9)) as board:
        for place, (axis, model) in enumerate(zip(board.axes, [*models, *models], strict=True)):
            is_difference = place >= len(models)
            curves = {method: _curve(rows, model, method) for method in plan.methods}
            base = curves[plan.methods[0]]
            for method, curve in curves.items():
                points = [
                    (where, value - base[where] if is_difference else value)
                    for where, value in curve.items()
                    if not is_difference or where in base
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), **_look(plan, method))
            axis.set_xscale("log", base=2)
            dotted(axis, context)
            if is_difference:
                axis.set_xlabel("position in the window (dotted: context in training)")
            else:
                axis.set_title(model, fontsize=9, pad=38)
                legend_above(axis)
            if board.is_first(place):
                axis.set_ylabel("nats more than the Gaussian" if is_difference else "nats a token, test text")
        title = f"Loss by position in windows of {longest:,} tokens, mean of the seeds"
        return [board.save(title, folder / "positions.png")]


def _curve(rows: Sequence[Mapping[str, Any]], model: str, method: str) -> dict[float, float]:
    """Loss by the middle of each range of positions, counted from 1."""
    own = [row for row in rows if (row["model"], row["method"]) == (model, method) and row["loss"]]
    return {(row["first"] + row["last"]) / 2 + 1: float(row["loss"]) for row in own}


def _draw_support(rows: Sequence[Mapping[str, Any]], plan: Plan, context: int, folder: Path) -> list[Path]:
    """Keys with weight, their share and that of the tiles by layer, at the context and at the longest length."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    titles = {"support_size": "keys with weight", "density": "share of allowed keys", "tile_density": "share of tiles"}
    longest = context * FACTORS[-1]
    rows = [row for row in rows if row["split"] == "test" and row["memory"] != "persistent"]
    shown = [name for name in titles if any(row[name] for row in rows)]
    models = _models((row["model"] for row in rows if any(row[name] for name in shown)), plan)
    if not models:
        return []
    with Board(len(models) * len(shown), len(shown), (3.6, 2.8), head=0.7) as board:
        handles: dict[str, Any] = {}
        for axis, (model, name) in zip(board.axes, [(m, n) for m in models for n in shown], strict=True):
            axis.set_title(f"{model}: {titles[name]}", fontsize=9)
            for method in plan.methods:
                for length in (context, longest):
                    points = [
                        (row["layer"] + 1, float(row[name]))
                        for row in rows
                        if (row["model"], row["method"], row["length"]) == (model, method, length) and row[name]
                    ]
                    if points:
                        look = _look(plan, method) | {"linestyle": "-" if length == context else (0, (2, 1.5))}
                        (line,) = axis.plot(*zip(*points, strict=True), **look)
                        handles.setdefault(method, line)
            if name == "tile_density":
                percent_axis(axis, is_labelled=False)
            else:
                axis.set_yscale("log", base=2 if name == "support_size" else 10)
            if name == "density":
                axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
                axis.yaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlabel("layer")
        board.figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=5, fontsize=7.5)
        title = f"Support by layer in windows of {context:,} (solid) and {longest:,} tokens (dashed)"
        return [board.save(title, folder / "support.png")]
