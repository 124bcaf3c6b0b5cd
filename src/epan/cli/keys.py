"""``epan train --keys``: every key of the config that ``--set`` takes, with its value here."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epan.training import RunConfig

__all__ = ["list_keys"]


def list_keys(config: RunConfig) -> list[tuple[str, str, str]]:
    """Key, value and meaning of every setting of ``config``, the options of its task and model included."""
    return [*_settings(config, ""), *_task_options(config), *_model_options(config)]


def _settings(config: Any, path: str) -> list[tuple[str, str, str]]:
    meanings = dict(re.findall(r"^    (\w+)\n        (.+(?:\n        .+)*)", config.__doc__ or "", re.M))
    rows = []
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            rows += _settings(value, f"{key}.")
        elif field.name != "options":
            rows.append((key, _text(value), " ".join(meanings.get(field.name, "").split())))
    return rows


def _task_options(config: RunConfig) -> list[tuple[str, str, str]]:
    from epan.training.loading import find_task

    task = find_task(config.task)
    shown = f"of the task {config.task.name}"
    return [(f"task.options.{key}", _text(value), shown) for key, value in task.config().items() if key != "name"]


def _model_options(config: RunConfig) -> list[tuple[str, str, str]]:
    from epan import models

    # The task gives the vocabulary; kernel and normalization are keys of their own.
    elsewhere = {
        "vocab_size": 1,
        "document_token": None,
        "kernel": config.model.kernel,
        "normalization": config.model.normalization,
    }
    made = models.config_of(config.model.name, {**elsewhere, **config.model.options})
    shown = f"of the model {config.model.name}"
    values = dataclasses.asdict(made).items()
    return [(f"model.options.{key}", _text(value), shown) for key, value in values if key not in elsewhere]


def _text(value: object) -> str:
    """As ``--set`` reads it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
