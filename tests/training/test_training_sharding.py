"""Processes that share the weights: the numbers of one process, checkpoints in parts, and the same bits after an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from epan.errors import EpanError
from epan.training import RunConfig, check, checkpoint
from epan.training.shards import assemble, describe

SCRIPT = Path(__file__).parent / "sharded.py"
QUICK = (
    "parts_give_the_numbers_of_one_process_and_of_whole_copies",
    "every_process_writes_its_parts_and_they_load_anywhere",
    "a_run_goes_on_with_another_number_of_processes",
    "a_resumed_run_has_the_same_bits",
    "a_process_that_dies_while_writing_leaves_nothing_torn",
)
LONG = (
    "three_processes_share_tensors_of_two_rows",
    "a_transformer_in_bfloat16",
    "weights_and_moments_are_split_anew_without_a_change",
    "a_full_disk_of_one_process_is_told_by_all",
    "a_number_that_is_not_finite_names_the_process",
    "a_number_that_is_not_finite_is_found_in_any_part",
    "a_compiled_run",
    "a_process_that_hangs_ends_the_others_within_the_time_of_a_step",
    "a_test_may_take_longer_than_a_step",
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def run_scenarios(names: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *names], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split("passed ")[1:] == [f"{name}\n" for name in names]


@forks
def test_runs_that_share_the_weights() -> None:
    run_scenarios(QUICK)


@forks
@pytest.mark.slow
def test_more_runs_that_share_the_weights() -> None:
    run_scenarios(LONG)


def test_tensors_are_described_and_put_together(tmp_path: Path) -> None:
    weight, count = torch.arange(15.0).reshape(5, 3), torch.tensor(4.0)
    parts = [{"w": weight[:3], "n": count}, {"w": weight[3:]}, {"w": weight[5:]}]
    shapes = [{"w": ([5, 3], list(part["w"].shape)), "n": ([], [])} for part in parts]
    layout = describe(shapes)
    assert layout == {
        "w": {"shape": [5, 3], "dim": 0, "sizes": [3, 2, 0]},
        "n": {"shape": [], "dim": None, "sizes": None},
    }
    manifest = {"count": 3, "model": layout}

    def read(path: Path) -> dict[str, torch.Tensor]:
        return parts[int(path.name[6:11]) - 1]

    found = assemble(tmp_path, "model", manifest, read)
    assert found.keys() == {"w", "n"}
    assert torch.equal(found["w"], weight)
    assert torch.equal(found["n"], count)
    changes: tuple[tuple[dict[str, torch.Tensor], str], ...] = (
        ({"w": weight[:1]}, r"'w' in model-00002-of-00003.safetensors has shape \[1, 3\], the manifest says \[2, 3\]"),
        (
            {"w": weight[3:], "x": count},
            "model-00002-of-00003.safetensors holds a tensor 'x' that the manifest does not",
        ),
        ({}, "parts of the tensor 'w' are missing"),
    )
    for change, message in changes:
        parts[1] = change
        with pytest.raises(ValueError, match=message):
            assemble(tmp_path, "model", manifest, read)


def test_a_manifest_of_parts_lists_the_files_that_it_says(tmp_path: Path) -> None:
    facts = {"config": {}, "model": {}, "config_hash": ""}
    path = checkpoint.save(tmp_path, 3, model={}, optimizer={}, state={"elapsed": 1.0}, facts=facts, keep=1)
    content = json.loads((path / "manifest.json").read_bytes())
    for shards in ({"count": 10**12}, {"count": -1}, {"count": "../2"}, None):
        content.update(version=checkpoint.SHARDED, shards=shards)
        content["sha256"] = checkpoint._seal(content)
        (path / "manifest.json").write_bytes(checkpoint._dump(content))
        with pytest.raises(EpanError, match=r"damaged.*manifest\.json lists"):
            checkpoint.load(path)


def test_half_precision_is_not_shared() -> None:
    with pytest.raises(EpanError, match="fp16 with parallel=fsdp"):
        check(RunConfig(precision="fp16", parallel="fsdp", device="cpu"))
