"""Configs: from dicts, files and settings, with errors that name the place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.training import (
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    load_config,
    override,
)
from epan.training.parsing import differences

RICH = RunConfig(
    name="rich",
    seed=3,
    lengths=(4, 9),
    task=TaskConfig("mqar", {"pairs": 8, "share": 0.5, "flags": [1, 2], "deep": {"a": None, "b": True}}),
    model=ModelConfig("transformer", {"layers": 3}, {"name": "polynomial", "order": 5}, "nearest:k=16"),
    optimizer=OptimizerConfig(clip=None, betas=(0.9, 0.999)),
    evaluation=EvaluationConfig(lengths=(8, 16), every=100, decoding="greedy"),
    precision="bf16",
    threads=2,
)


def test_a_config_survives_its_json_form() -> None:
    text = json.dumps(RICH.to_dict())
    assert RunConfig.from_dict(json.loads(text)) == RICH
    assert RunConfig.from_dict({}) == RunConfig()
    assert RunConfig.from_dict(RunConfig().to_dict()) == RunConfig()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sead": 1}, ["'sead'", "did you mean 'seed'"]),
        ({"optimizer": {"learningrate": 1.0}}, ["'optimizer.learningrate'", "'optimizer.learning_rate'"]),
        ({"learning_rate": 1.0}, ["'learning_rate'", "did you mean 'optimizer.learning_rate'"]),
        ({"evaluation": {"length": [3]}}, ["'evaluation.length'", "'evaluation.lengths'"]),
        ({"model": 3}, ["'model'", "table", "3"]),
        ({"steps": "many"}, ["'steps'", "an integer", "'many'"]),
        ({"steps": True}, ["'steps'", "an integer", "True"]),
        ({"steps": 10.5}, ["'steps'", "an integer"]),
        ({"compile": 1}, ["'compile'", "true or false"]),
        ({"lengths": [1, 2, 3]}, ["'lengths'", "2 values"]),
        ({"lengths": [1, "a"]}, ["'lengths", "an integer"]),
        ({"evaluation": {"lengths": [4, 0.5]}}, ["'evaluation.lengths", "an integer"]),
        ({"optimizer": {"betas": [0.9, None]}}, ["'optimizer.betas[1]'", "a number"]),
        ({"optimizer": {"clip": "no"}}, ["'optimizer.clip'", "a number or none"]),
        ({"precision": "fp23"}, ["'precision'", "fp32, bf16, fp16", "did you mean 'fp32'"]),
        ({"task": {"options": [1]}}, ["'task.options'", "table"]),
        ({"task": {"options": {"a": {"b": {}}}}}, ["'task.options.a"]),
        ({"model": {"options": {"kernel": "biweight"}}}, ["model.kernel"]),
        ({"model": {"kernel": {"order": 5}}}, ["'model.kernel'", "name"]),
        ({"model": {"normalization": "nearest:16"}}, ["'model.normalization'", "nearest:k=16"]),
        ({"steps": 0}, ["'steps'", "at least 1"]),
        ({"lengths": [9, 3]}, ["'lengths'", "low <= high"]),
        ({"lengths": [0, 3]}, ["'lengths'"]),
        ({"evaluation": {"lengths": [0]}}, ["'evaluation.lengths'"]),
        ({"optimizer": {"warmup": 100}}, ["'optimizer.warmup'", "share of the steps"]),
        ({"optimizer": {"learning_rate": float("nan")}}, ["'optimizer.learning_rate'", "finite"]),
        ({"optimizer": {"clip": 0}}, ["'optimizer.clip'"]),
        ({"batch": 10, "accumulation": 4}, ["batch 10", "multiple"]),
        ({"name": "a/b"}, ["'name'", "folder"]),
        ({"name": ".."}, ["'name'", "folder"]),
    ],
)
def test_a_wrong_config_names_its_place(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EpanError) as caught:
        RunConfig.from_dict(values)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_value_in_python_is_told_too() -> None:
    with pytest.raises(EpanError, match="'steps'"):
        RunConfig(steps="many")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kept", "method"),
    [
        ("biweight", "biweight", "biweight-adaptive"),
        ("polynomial:order=5", {"name": "polynomial", "order": 5}, "polynomial(order=5)-adaptive"),
        ("polynomial(order=2.5)", {"name": "polynomial", "order": 2.5}, "polynomial(order=2.5)-adaptive"),
        ('{"name": "polynomial", "order": 5}', {"name": "polynomial", "order": 5}, "polynomial(order=5)-adaptive"),
        ({"name": "gaussian"}, "gaussian", "gaussian-adaptive"),
    ],
)
def test_a_kernel_is_a_name_with_or_without_options(given: Any, kept: Any, method: str) -> None:
    model = ModelConfig(kernel=given)
    assert model.kernel == kept
    assert model.method == RunConfig(model=model).method == method


def test_the_label_can_be_a_folder_name() -> None:
    config = RunConfig(seed=2, model=ModelConfig(normalization="nearest:k=16"))
    assert config.label == "reverse-memory_mosaic-biweight-nearest-k=16-seed2"
    assert RunConfig(name="mine").label == "mine"
    assert (
        RunConfig(loss="polynomial:order=4").label
        == "reverse-memory_mosaic-biweight-adaptive-polynomial-order=4-loss-seed0"
    )


def test_the_hash_follows_what_decides_numbers() -> None:
    assert RunConfig().hash() == RunConfig(name="other", keep=5, checkpoint_every=7, on_nonfinite="skip").hash()
    assert RunConfig().hash() != RunConfig(seed=1).hash()
    assert RunConfig().hash() == RunConfig(loss={"name": "gaussian"}).hash() != RunConfig(loss="biweight").hash()
    assert RunConfig().hash() != RunConfig(task=TaskConfig(options={"symbols": 5})).hash()


def test_settings_override_a_config() -> None:
    changed = override(
        RunConfig(),
        [
            "model.kernel=gaussian",
            "task.options.symbols=8",
            "optimizer.learning_rate=3e-3",
            "lengths=[4, 12]",
            "evaluation.lengths=[4]",
            "optimizer.clip=none",
            "compile=true",
            'model.normalization={"name": "nearest", "k": 4}',
        ],
    )
    assert changed == RunConfig(
        lengths=(4, 12),
        task=TaskConfig(options={"symbols": 8}),
        model=ModelConfig(kernel="gaussian", normalization={"name": "nearest", "k": 4}),
        optimizer=OptimizerConfig(learning_rate=3e-3, clip=None),
        evaluation=EvaluationConfig(lengths=(4,)),
        compile=True,
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps", ["key=value"]),
        ("=3", ["key=value"]),
        ("modle.kernel=gaussian", ["'modle'", "did you mean 'model'"]),
        ("model.kernle=gaussian", ["'model.kernle'", "'model.kernel'"]),
        ("steps.x=3", ["'steps'", "no keys below"]),
        ("steps=many", ["'steps'", "an integer"]),
    ],
)
def test_a_wrong_setting_names_its_place(setting: str, words: list[str]) -> None:
    with pytest.raises(EpanError) as caught:
        override(RunConfig(), [setting])
    for word in words:
        assert word in str(caught.value)


def test_configs_load_from_json_toml_and_records(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RICH.to_dict()))
    assert load_config(tmp_path / "run.json") == RICH
    (tmp_path / "run.toml").write_text('seed = 4\nlengths = [2, 3]\n[model]\nkernel = "gaussian"\n')
    assert load_config(tmp_path / "run.toml") == RunConfig(seed=4, lengths=(2, 3), model=ModelConfig(kernel="gaussian"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "record.jsonl").write_text(json.dumps({"kind": "run", "config": RICH.to_dict()}) + "\n")
    assert load_config(folder) == load_config(folder / "record.jsonl") == RICH


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.json", None, ["cannot be read", "missing.json"]),
        ("bad.json", '{"seed": }', ["syntax error", "line 1", "bad.json"]),
        ("bad.toml", "seed = \n", ["syntax error", "line 1", "bad.toml"]),
        ("run.yaml", "seed: 3", ["Unknown kind", ".toml"]),
        ("list.json", "[1]", ["table"]),
        ("empty", None, ["cannot be read", "record.jsonl"]),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, name: str, content: str | None, words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(EpanError) as caught:
        load_config(tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_differences_are_listed_by_path() -> None:
    before, after = RunConfig().to_dict(), RunConfig(seed=1, optimizer=OptimizerConfig(clip=None)).to_dict()
    assert differences(before, after) == ["optimizer.clip: 1.0 -> null", "seed: 0 -> 1"]


def test_configs_records_and_sweeps_need_no_torch() -> None:
    code = """
import sys
from epan.training import RunConfig, load_config, load_sweep, override, records, run_sweep
override(RunConfig(), ["seed=1"])
heavy = {"torch", "numpy", "accelerate", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
