"""Synthetic run records: invented numbers in the shape of real ones, to try the report on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]
MakeSweep = Callable[..., Path]

METHODS: tuple[tuple[Any, Any], ...] = (
    ("gaussian", "adaptive"),
    ("epanechnikov", "adaptive"),
    ("biweight", "adaptive"),
    ("triweight", "adaptive"),
    ("epanechnikov", "anchored"),
)
LENGTHS = (16, 32, 64, 128)


def write_run(
    folder: Path,
    *,
    kernel: Any = "biweight",
    normalization: Any = "adaptive",
    seed: int = 0,
    task: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    accuracies: dict[int, float] | None = None,
    steps: int = 400,
    until: int | None = None,
    status: str | None = "finished",
    sequences: int = 500,
    empty_rows: float = 0.0,
    evaluation: dict[str, Any] | None = None,
    overlap: dict[int, float | None] | None = None,
    log_every: int = 10,
    model: dict[str, Any] | None = None,
    extra: str = "",
) -> Path:
    """A run folder with an invented record; ``until`` cuts training short, ``status`` None leaves out the end."""
    chance = random.Random(f"{kernel}{normalization}{seed}")
    name = f"{kernel if isinstance(kernel, str) else kernel['name']}-{normalization}-seed{seed}"
    lines: list[dict[str, Any]] = [
        {
            "kind": "run",
            "name": name,
            "task": task or {"name": "synthetic", "options": {"pairs": 8}, "train_lengths": [8, 16]},
            "model": {
                "name": "memory-mosaic",
                "width": 64,
                "layers": 2,
                "heads": 4,
                "kernel": kernel,
                "normalization": normalization,
                **(model or {}),
            },
            "training": {"steps": steps, "batch": 64, "optimizer": {"learning_rate": 3e-3}, **(training or {})},
            "seed": seed,
            "method": f"{kernel}-{normalization}",
            "environment": {
                "python": "3.11",
                "torch": "2.13",
                "epan": "0.1.0",
                "cpu": "Invented CPU",
                "threads": 1,
                "device": "cpu",
            },
            "commit": "0123abc",
            "data_hash": "feedbeef",
            "command": f"epan train --kernel {kernel} --seed {seed}",
            "parameters": 123_456,
            "started": "2000-01-01T00:00:00+00:00",
        }
    ]
    drop, rate = chance.uniform(150, 250), chance.uniform(2, 8)
    for step in range(0, (until or steps) + 1, log_every):
        value = 6.0 / (1 + math.exp((step - drop) / 30)) + 0.02 + 0.05 * chance.random()
        support = 40.0 if kernel == "gaussian" else rate + 30 * math.exp(-step / 100)
        lines.append(
            {"kind": "step", "step": step, "loss": value, "learning_rate": 1e-3, "gradient_norm": 1.0,
             "tokens_per_second": 9e3, "elapsed": 0.05 * step, "support": support}
        )  # fmt: skip
        if step % 50 == 0:
            heads = {
                f"layers.{layer}.{part}": [
                    math.exp(2 + 0.2 * head + step / 2000 * rate * (1 + 0.3 * layer)) for head in range(4)
                ]
                for layer in range(2)
                for part in ("contextual", "persistent")
            }
            lines.append({"kind": "bandwidth", "step": step, "values": heads})
    if accuracies is None:
        fall = {"gaussian": 1.0, "epanechnikov": 0.8, "biweight": 0.55, "triweight": 0.7}.get(str(kernel), 0.9)
        accuracies = {
            length: max(0.0, 1 - fall * 0.3 * (math.log2(length / 16)) ** 1.3 * (0.9 + 0.2 * chance.random()))
            for length in LENGTHS
        }
    for length, accuracy in accuracies.items():
        keys = length * 1.5 if kernel == "gaussian" else rate * length**0.4
        lines.append(
            {"kind": "eval", "step": until or steps, "length": length,
             "exact_match": round(accuracy * sequences) / sequences, "token_accuracy": 0.9, "loss": 0.1,
             "sequences": sequences, "decoding": "greedy", "support_size": keys,
             "density": keys / (length * 1.5), "empty_rows": empty_rows, "per_layer": {},
             **({"overlap": overlap[length]} if overlap and length in overlap else {}), **(evaluation or {})}
        )  # fmt: skip
    if status is not None:
        lines.append({"kind": "end", "status": status, "elapsed": 0.05 * (until or steps), "step": until or steps})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + extra, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    return write_run


@pytest.fixture(scope="session")
def make_sweep() -> MakeSweep:
    """A folder with five methods and ``seeds`` seeds each."""

    def make(folder: Path, seeds: int = 2, **options: Any) -> Path:
        for kernel, normalization in METHODS:
            for seed in range(seeds):
                write_run(
                    folder / f"{kernel}-{normalization}-{seed}",
                    kernel=kernel,
                    normalization=normalization,
                    seed=seed,
                    **options,
                )
        return folder

    return make
