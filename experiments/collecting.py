"""Run folders as compact lines of one file, so that the results of many short sessions add up.

A line of ``records.jsonl`` is one run: what it was (``config``, ``seed``, ``method``), where it ran (``hardware``,
``environment``, ``commit``, ``command``), how far it came (``status``, ``step``, ``seconds``), and what came out: ``loss``, the
mean of the last ten logged losses in nats; ``tokens_per_second``, median of the later half; ``peak_memory``, bytes on a GPU in
the steps of the last session; ``losses``, at most 100 pairs of step and loss; ``support``, mean keys per query in training;
``bandwidth``, β of each head at the end; ``evaluations``, at the last step, one for each split and length; ``temperatures``,
tests with β multiplied, as rows of ``TEMPERED``; ``attention``, what the heads look at (``diagnosing``), one for each length.
Records from before there were such have none of the last two.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from epan._lines import FILE_NAME, Entry, number, parse, without_overtaken
from epan.errors import EpanError
from epan.training import RunConfig
from writing import replace_text

__all__ = ["TEMPERED", "collect", "compact", "folders_below", "gather", "identity", "load", "pack", "score"]

SCHEMA = 1
# What makes two runs the same experiment; how they were tested, compiled or kept is none of it.
SAME = ("seed", "steps", "batch", "lengths", "task", "model", "optimizer", "precision")
MEASURED = (
    "split", "length", "sequences", "exact_match", "exact_match_low", "exact_match_high", "accuracy", "tvd", "kl",
    "token_accuracy", "loss", "by_position", "support_size", "density", "empty_rows", "decoding", "overlap", "seed", "precision", "device",
)  # fmt: skip
# Of text in place of exact match.
OF_TEXT = ("loss_per_byte", "bits_per_byte", "perplexity", "tokens", "bytes", "asked", "loss_by_position", "per_layer")
#: What is kept of a test with β multiplied; the first three tell tests of a run apart.
TEMPERED = ("split", "length", "factor", "sequences", "exact_match", "token_accuracy", "loss")
POINTS, LAST = 100, 10
# Bytes of one archive at most; gzip may add a little to what cannot be made smaller.
PIECE = 15 * 2**20


def identity(run: RunConfig) -> str:
    """What two runs share that are the same experiment: a hash of everything that decides what is learnt."""
    plain = run.to_dict()
    content = json.dumps({key: plain[key] for key in SAME}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def folders_below(paths: Iterable[Path]) -> list[Path]:
    """The run folders at or below ``paths``, sorted, each once.

    Raises
    ------
    EpanError: a path does not exist.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise EpanError("No such folder", found=str(path), fix="give a run folder or a folder of run folders")
        found |= {record.parent for record in path.rglob(FILE_NAME)}
    return sorted(found)


def compact(
    folder: Path, method_of: Callable[[RunConfig], str], repeat: str = "", commit: str | None = None
) -> Entry | None:
    """The line of one run folder; None if no run has started in it. ``damaged`` counts lines that cannot be read.

    Parameters
    ----------
    method_of: how the run is called in the table. repeat: the command that repeats a run, without its label.
    commit: of the code, where the record has none.
    """
    lines = [line for line in (folder / FILE_NAME).read_bytes().split(b"\n") if line.strip()]
    whole = [entry for line in lines if (entry := parse(line)) is not None]
    kinds: dict[str, list[Entry]] = {}
    for entry in without_overtaken(whole):
        kinds.setdefault(entry["kind"], []).append(entry)
    try:
        head = kinds["run"][0]
        config = RunConfig.from_dict(head["config"])
    except (KeyError, EpanError):
        return None
    ends = kinds.get("end", [])
    logged = [(step, line) for line in kinds.get("step", []) if (step := number(line.get("step"))) is not None]
    last = int(max((step for step, _ in logged), default=0))
    sessions = [head, *(entry for entry in kinds.get("event", []) if entry.get("event") == "resumed")]
    places = [entry.get("environment") or {} for entry in sessions]
    losses = [(int(step), value) for step, line in logged if (value := number(line.get("loss"))) is not None]
    betas, supports = kinds.get("bandwidth", []), [number(line.get("support")) for _, line in logged]
    return {
        "schema": SCHEMA,
        "name": config.label,
        "identity": identity(config),
        "task": config.task.name,
        "model": config.model.name,
        "method": method_of(config),
        "seed": config.seed,
        "config": config.to_dict(),
        "hardware": _distinct(place.get("device") for place in places),
        "environment": places[0],
        "commit": _distinct(entry.get("commit") or commit for entry in sessions),
        "command": f"{repeat} {config.label}".strip(),
        "parameters": head.get("parameters"),
        "peak_memory": number(ends[-1].get("peak_memory")) if ends else None,
        "started": head.get("started"),
        "status": str(ends[-1].get("status")) if ends else "unfinished",
        "step": last,
        "seconds": number((ends[-1] if ends else logged[-1][1] if logged else {}).get("elapsed")),
        "loss": _rounded(math.fsum(v for _, v in losses[-LAST:]) / len(losses[-LAST:])) if losses else None,
        "losses": [[step, _rounded(value)] for step, value in _thinned(losses)],
        "tokens_per_second": _rounded(_speed(line for _, line in logged)),
        "support": _rounded(next((value for value in reversed(supports) if value is not None), None)),
        "bandwidth": {name: [_rounded(b) for b in row] for name, row in betas[-1]["values"].items()} if betas else {},
        "evaluations": _evaluations(kinds.get("eval", []), last),
        "temperatures": _temperatures(kinds.get("temperature", []), last),
        "attention": _attention(kinds.get("attention", []), last),
        "damaged": len(lines) - len(whole),
    }


def _distinct(values: Iterable[Any]) -> str | None:
    """The different values in their order: more than one where a run went on elsewhere."""
    return ", then ".join(dict.fromkeys(str(value) for value in values if value)) or None


def _rounded(value: Any) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.6g}")


def _speed(logged: Iterable[Entry]) -> float | None:
    """The median over the later half of the logged steps; the first ones compile."""
    known = [value for line in logged if (value := number(line.get("tokens_per_second"))) is not None]
    return statistics.median(known[len(known) // 2 :]) if known else None


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    if len(points) <= POINTS:
        return points
    return [points[round(place * (len(points) - 1) / (POINTS - 1))] for place in range(POINTS)]


def _evaluations(lines: Iterable[Entry], last: int) -> list[Entry]:
    """Of each split and length the largest test at the last step; among equals the later one."""
    best: dict[tuple[str, int], Entry] = {}
    for line in lines:
        scores = [number(line.get(name)) for name in ("exact_match", "accuracy", "loss_per_byte")]
        if line.get("step") != last or number(line.get("length")) is None or scores == [None] * 3:
            continue
        key = (line.get("split", "test"), line["length"])
        if key not in best or line["sequences"] >= best[key]["sequences"]:
            best[key] = line
    return [_measured(best[key]) for key in sorted(best)]


def _measured(test: Entry) -> Entry:
    if "exact_match" in test:
        # What a task does not measure is left out, not said to be unknown.
        return {name: test[name] for name in MEASURED if name in test}
    skipped = ("overlap", "accuracy", "tvd", "kl", "by_position")
    names = (*(name for name in MEASURED if not name.startswith("exact") and name not in skipped), *OF_TEXT)
    return {name: test.get(name) for name in names}


def _temperatures(lines: Iterable[Entry], last: int) -> list[list[Any]]:
    """Rows of ``TEMPERED`` at the last step; of each test the one of most sequences, among equals the later one."""
    best: dict[tuple[Any, ...], Entry] = {}
    for line in lines:
        if line.get("step") != last or any(name not in line for name in TEMPERED):
            continue
        key = tuple(line[name] for name in TEMPERED[:3])
        if key not in best or line["sequences"] >= best[key]["sequences"]:
            best[key] = line
    return [
        [_rounded(line[name]) if isinstance(line[name], float) else line[name] for name in TEMPERED]
        for _, line in sorted(best.items(), key=lambda item: item[0])
    ]


def _attention(lines: Iterable[Entry], last: int) -> list[Entry]:
    """Of each length the description of the most sequences at the last step; among equals the later one."""
    best: dict[int, Entry] = {}
    for line in lines:
        if line.get("step") != last or not isinstance(line.get("layers"), dict) or number(line.get("length")) is None:
            continue
        if line["length"] not in best or line["sequences"] >= best[line["length"]]["sequences"]:
            best[line["length"]] = line
    names = ("length", "sequences", "layers")
    return [{name: _four_digits(best[length][name]) for name in names} for length in sorted(best)]


def _four_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _four_digits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_four_digits(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def score(record: Mapping[str, Any], split: str, length: int) -> tuple[float, float] | None:
    """Exact match and loss (nats) of a finished run at one length of a split, or None."""
    for test in record["evaluations"]:
        if record["status"] == "finished" and test["split"] == split and test["length"] == length:
            loss = number(test["loss"])
            return test["exact_match"], math.inf if loss is None else loss
    return None


# ---------------------------------------------------------------------- the file of records


def load(path: Path) -> list[Entry]:
    """The records of a file, none if there is no file.

    Raises
    ------
    EpanError: a line that is no record; its number is named.
    """
    if not path.exists():
        return []
    records = []
    for place, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            whole = record["schema"] == SCHEMA and isinstance(record["evaluations"], list) and record["identity"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise EpanError(
                "The file of records is damaged",
                found=f"line {place} of {path}",
                allowed=f"one run a line, of schema {SCHEMA}",
                fix="remove that line and collect its run folder again, or restore the file",
            )
        records.append(record)
    return records


def completeness(record: Mapping[str, Any]) -> tuple[int, bool, int, int, int]:
    """What makes one record of a run better than another: how far it came, whether it ended, how much was tested."""
    tests = record["evaluations"]
    looked = len(record.get("temperatures", ())) + len(record.get("attention", ()))
    return (
        record["step"],
        record["status"] == "finished",
        len(tests),
        sum(test["sequences"] for test in tests),
        looked,
    )


def _best(new: Entry, old: Entry) -> Entry:
    return _joined(new, old) if completeness(new) > completeness(old) else _joined(old, new)


def _joined(better: Entry, other: Entry) -> Entry:
    """``better`` with the temperatures and the attention that ``other``, the same run as far, has and it has not.

    They may have been looked into where the run was not tested.
    """
    if (better["step"], better["status"]) != (other["step"], other["status"]):
        return better
    rows = {tuple(row[:3]): row for record in (other, better) for row in record.get("temperatures", ())}
    lengths = {line["length"]: line for record in (other, better) for line in record.get("attention", ())}
    more = {"temperatures": [rows[key] for key in sorted(rows)], "attention": [lengths[key] for key in sorted(lengths)]}
    return {**better, **{name: values for name, values in more.items() if values or name in better}}


def gather(
    path: Path,
    folders: Iterable[Path],
    method_of: Callable[[RunConfig], str],
    known: Iterable[str],
    repeat: str = "",
    commit: str | None = None,
) -> tuple[list[Entry], str]:
    """The records of the file and of the run folders together, each run once, and a line that says what was found.

    Of a run that is in both, the more complete record counts, and that of the file among equals; what either alone knows of
    temperatures and attention stays.

    Parameters
    ----------
    known: identities of the runs of the study; other runs are left out and counted.
    """
    merged: dict[str, Entry] = {}
    # A file that was put together from two may have a run twice.
    for line in load(path):
        twin = merged.get(line["identity"])
        merged[line["identity"]] = line if twin is None else _best(line, twin)
    counts = dict.fromkeys(("new", "more complete", "already there", "of no run of the study", "not started"), 0)
    damaged, wanted = 0, set(known)
    for folder in folders_below(folders):
        record = compact(folder, method_of, repeat, commit)
        if record is None:
            counts["not started"] += 1
            continue
        damaged += record["damaged"]
        old = merged.get(record["identity"])
        if record["identity"] not in wanted:
            counts["of no run of the study"] += 1
        elif old is None:
            counts["new"] += 1
            merged[record["identity"]] = record
        else:
            merged[record["identity"]] = better = _best(record, old)
            counts["already there" if better == old else "more complete"] += 1
    told = [f"{count} {name}" for name, count in counts.items() if count]
    if damaged:
        told.append(f"{damaged} damaged lines skipped")
    records = sorted(merged.values(), key=lambda record: (record["task"], record["name"], record["identity"]))
    return records, f"{len(records)} records" + (f" (run folders: {', '.join(told)})" if told else "")


def collect(
    folders: Iterable[Path],
    path: Path,
    method_of: Callable[[RunConfig], str],
    known: Iterable[str],
    repeat: str,
    commit: str | None = None,
) -> str:
    """Add the runs of ``folders`` to the file ``path``; doing so again changes nothing. Returns what was found.

    Raises
    ------
    EpanError: a folder does not exist, or the file is damaged; the file is as it was.
    """
    records, told = gather(path, folders, method_of, known, repeat, commit)
    replace_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
    return f"{told} in {path}"


# ---------------------------------------------------------------------- taking run folders elsewhere


def pack(folders: Iterable[Path], out: Path, is_done: Callable[[Path], bool] | None, most: int = PIECE) -> list[Path]:
    """Write archives of run folders, each of whole folders and at most ``most`` bytes, with the paths that were given.

    Parameters
    ----------
    is_done: whether a run needs its checkpoint no more, so that its record alone is packed; None: pack all of each.

    Raises
    ------
    EpanError: one run folder is larger than ``most``, or ``out`` holds archives already.
    """
    if any(out.glob("runs-*.tar")):
        # Left there, an old one would be unpacked over newer runs.
        raise EpanError("The folder holds archives already", found=str(out), fix="give an empty or new folder")
    pieces: list[list[Path]] = []
    room = 0
    for folder in folders_below(folders):
        if is_done is not None and is_done(folder):
            files = [folder / FILE_NAME]
        else:
            # The claim of a process on a run means nothing on another machine.
            inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
            files = [path for path in inside if not path.relative_to(folder).parts[0].startswith(".claim")]
        # A member of an archive has a header, or two for a long path, and is padded to blocks of 512 bytes.
        size = sum(path.stat().st_size + 3 * 512 for path in files)
        if size > most:
            raise EpanError(
                "A run folder is too large for one archive",
                found=f"{size:,} bytes in {folder}",
                allowed=f"at most {most:,} bytes",
                fix="copy that folder as it is",
            )
        if not pieces or size > room:
            pieces.append([])
            room = most - 20 * 512
        room -= size
        pieces[-1] += files
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for place, files in enumerate(pieces):
        path = out / f"runs-{place:02d}.tar"
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, recursive=False)
        written.append(path)
    return written
