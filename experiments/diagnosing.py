"""What the heads of trained runs look at: entropy, support, bandwidth, and how much weight lies on the right key.

A line of kind ``attention`` in the record of a run describes the queries that predict scored target tokens, at most ``QUERIES``
evenly spaced ones a sequence, at one test length. Each value is a list over the heads: ``entropy`` of the weights in nats,
``support_size`` (keys with weight), ``empty_rows`` (share of queries without a key in reach), ``bandwidth`` (h_i, of memories
on unit keys; 1/√β for the Gaussian), and ``recall``: the mass of weight on the right key, by offset.

**The right key** of a query is the source position that holds the token to be predicted: of ``copy`` and ``reverse`` the place
that is next, of ``sort`` any place with that symbol, of ``mqmtar`` the letter of the value behind the key that is asked for.
The offset says at which distance from it the weight lies: a memory stores at j a value that looks ahead to j + 1, so the
answer is in the pairs at offset −1 and 0; attention may read it there, or further on if an earlier layer has carried it.

Fused kernels keep no weights, so they are computed again from the inputs of the layers, by the formulas of the eager backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epan._lines import Entry
from epan.errors import EpanError
from epan.metrics import empty_rows
from epan.models import LanguageModel
from epan.nn import ContextualMemory, ReadsSequence
from epan.tasks import Batch, Task
from epan.tasks.base import EOS
from epan.training import RunConfig, records
from epan.training.environment import device_name
from epan.training.loading import autocast, build_task, find_device, load
from epan.training.stream import trim
from testing import Clock, Selection, finished

__all__ = ["OFFSETS", "diagnose", "look", "right_keys"]

OFFSETS = (-2, -1, 0, 1, 2, 3, 4)
QUERIES = 64
# Weights that are held at once: of a pass over some sequences, in one layer.
WEIGHTS = 1 << 23


def _copied(task: Task, tokens: Tensor, targets: Tensor, end: int) -> Tensor:
    return (torch.arange(tokens.shape[1], device=tokens.device) == targets[:, None] - end + 1).expand(
        len(tokens), -1, -1
    )


def _reversed(task: Task, tokens: Tensor, targets: Tensor, end: int) -> Tensor:
    return (torch.arange(tokens.shape[1], device=tokens.device) == 2 * end - 2 - targets[:, None]).expand(
        len(tokens), -1, -1
    )


def _equal(task: Task, tokens: Tensor, targets: Tensor, end: int) -> Tensor:
    right = tokens[:, None] == tokens[:, targets, None]
    right[:, :, end - 1 :] = False
    return right


def _asked(task: Task, tokens: Tensor, targets: Tensor, end: int) -> Tensor:
    # Of each query the source has three tokens before <sep>, [q] k1 k2, and the target [q] v1 v2; a pair is k1 k2 [kv] v1 v2.
    query, letter = (targets - end) // 3, (targets - end) % 3 - 1
    first = end - 1 - 3 * (int(query.max()) + 1)
    key = [tokens[:, first + 3 * query + place, None] for place in (1, 2)]
    body = tokens[:, :first]
    found = (
        (body[:, None, :-4] == key[0]) & (body[:, None, 1:-3] == key[1]) & (body[:, None, 2:-2] == task.vocab_size - 2)
    )
    right = tokens.new_zeros(len(tokens), len(targets), tokens.shape[1], dtype=torch.bool)
    for place in (0, 1):
        chosen = letter == place
        right[:, chosen, 3 + place : 3 + place + found.shape[2]] = found[:, chosen]
    return right


_RIGHT: dict[str, Callable[[Task, Tensor, Tensor, int], Tensor]] = {
    "copy": _copied,
    "reverse": _reversed,
    "sort": _equal,
    "mqmtar": _asked,
}


def right_keys(task: Task, batch: Batch, most: int = QUERIES) -> tuple[Tensor, Tensor]:
    """Which source position holds the token that a query is to predict.

    Parameters
    ----------
    batch: B sequences of one nominal length, T tokens. most: so many queries, evenly spaced, at most.

    Returns
    -------
    places: (Q,) int64, the queries that predict scored target tokens but <eos>, the same in every sequence.
    right: (B, Q, T) bool, the positions that hold the token.

    Raises
    ------
    EpanError: a task without such positions, or sequences that are not laid out alike.
    """
    if task.name not in _RIGHT:
        raise EpanError("No right key is known for this task", found=task.name, allowed=sorted(_RIGHT))
    scored = batch.score_mask & (batch.tokens != EOS)
    end = int(batch.prompt_length[0])
    if bool((batch.prompt_length != end).any()) or bool((scored != scored[:1]).any()):
        raise EpanError("The sequences are not laid out alike", fix="take sequences of one nominal length")
    targets = scored[0].nonzero().squeeze(1)
    if len(targets) > most:
        targets = targets[torch.linspace(0, len(targets) - 1, most, device=targets.device).round().long()]
    return targets - 1, _RIGHT[task.name](task, batch.tokens, targets, end)


@contextmanager
def _inputs(model: LanguageModel) -> Iterator[dict[str, tuple[ReadsSequence, Tensor]]]:
    """The layers that read the sequence, by the name of their statistics, with the input of the latest pass."""
    seen: dict[str, tuple[ReadsSequence, Tensor]] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, ReadsSequence)
        seen[name] = layer, inputs[0]

    hooks = []
    for path, layer in model.named_modules():
        if isinstance(layer, ReadsSequence):
            parts = path.split(".")
            name = ".".join([*parts[:2], parts[-1]])
            hooks.append(layer.register_forward_pre_hook(partial(keep, name)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def look(model: LanguageModel, task: Task, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Sums over sequences and queries of what a record of kind ``attention`` has, (H,) or, ``recall``, (offsets, H), by layer.

    ``rows`` is what they are to be divided by.
    """
    places, right = right_keys(task, batch)
    found: dict[str, dict[str, Tensor]] = {}
    with _inputs(model) as seen:
        model(batch.tokens[:, :-1])
    for name, (layer, x) in seen.items():
        weights, stats = layer.weights(x, places)
        weights = weights.double()
        sums = {
            "entropy": -torch.xlogy(weights, weights).sum(dim=(0, 2, 3)),
            "support_size": stats.support_size.double().sum(dim=(0, 2)),
            # Queries of the target have the whole source before them.
            "empty_rows": empty_rows(stats, torch.ones_like(stats.support_size)).double().sum(dim=(0, 2)),
            "recall": torch.stack([_mass(weights, right, offset) for offset in OFFSETS]),
            "rows": weights.new_tensor(len(weights) * len(places)),
        }
        if isinstance(layer, ContextualMemory):
            sums["bandwidth"] = layer.radius(stats, places).double().sum(dim=(0, 2))
        found[name] = sums
    return found


def _mass(weights: Tensor, right: Tensor, offset: int) -> Tensor:
    """Weight (H,) on the keys ``offset`` steps after a right one."""
    length = weights.shape[-1]
    moved = right.roll(offset, dims=2)[:, None, :, :length]
    return (weights * moved).sum(dim=(0, 2, 3))


def _measured(model: LanguageModel, run: RunConfig, length: int, sequences: int, device: torch.device) -> Entry:
    """One record of kind ``attention`` without its kind."""
    task = build_task(run)
    total: dict[str, dict[str, Tensor]] = {}
    heads, width, rows = model.config.heads, 0, sequences
    done = 0
    while done < sequences:
        count = min(rows, sequences - done) if width else 1
        batch = trim(task.sample(run.evaluation.seed, 0, count, length, device=device, split="test", first=done))
        if not width:
            # Of the first sequence alone it is known how long they are.
            width = batch.tokens.shape[1]
            rows = max(1, WEIGHTS // (heads * min(QUERIES, width) * width))
        for name, sums in look(model, task, batch).items():
            known = total.setdefault(name, {})
            for key, value in sums.items():
                known[key] = known[key] + value if key in known else value
        done += count
    layers = {}
    for name, sums in total.items():
        means = {key: (value / sums["rows"]).tolist() for key, value in sums.items() if key != "rows"}
        means["recall"] = {str(offset): means["recall"][place] for place, offset in enumerate(OFFSETS)}
        layers[name] = means
    return {"split": "test", "length": length, "sequences": sequences, "step": run.steps, "layers": layers}


def is_there(entries: Iterable[Mapping[str, Any]], run: RunConfig, length: int, sequences: int) -> bool:
    """Whether a record has the line of kind ``attention`` of a length."""
    return any(
        entry["kind"] == "attention"
        and (entry["step"], entry["length"], entry["seed"]) == (run.steps, length, run.evaluation.seed)
        and entry["sequences"] >= sequences
        for entry in entries
    )


def diagnose(
    folders: Iterable[Path],
    lengths: Callable[[RunConfig], Sequence[int]],
    sequences: int,
    chosen: Selection,
) -> int:
    """Write what is missing of kind ``attention`` into the records. Returns 0, or 75 if time ran out.

    Parameters
    ----------
    lengths: of a run. sequences: the first so many test sequences of each length.

    Raises
    ------
    EpanError: a folder or checkpoint that cannot be read, or no run fits.
    """
    clock = Clock(chosen)
    for folder, run, entries in finished(folders, chosen.only):
        model, device = None, find_device(chosen.device)
        for length in lengths(run):
            if is_there(entries, run, length, sequences) or not (clock.fits(length) and clock.begins()):
                continue
            start = time.monotonic()
            model = load(folder, device=device) if model is None else model
            with autocast(run.precision, device):
                measured = _measured(model, run, length, sequences, device)
            facts = {"seed": run.evaluation.seed, "precision": run.precision, "device": device_name(device)}
            with records.RecordWriter(folder) as writer:
                writer.write("attention", **measured, **facts)
            best = max(
                (mass, name, offset, head)
                for name, means in measured["layers"].items()
                for offset, row in means["recall"].items()
                for head, mass in enumerate(row, start=1)
            )
            said = f"{best[0]:.0%} of the weight at offset {best[2]} in {best[1]}, head {best[3]}"
            print(f"{run.label}  test {length}: {said}  ({time.monotonic() - start:.1f} s)", flush=True)
    return clock.end()
