"""From a run folder back to the model, and further tests of a trained run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import epan
from epan.errors import EpanError
from epan.training import RunConfig, RunResult, evaluate_run, load, records, train
from epan.training.checkpoint import load as load_checkpoint


@pytest.fixture
def run(tiny: Callable[..., RunConfig], tmp_path: Path) -> RunResult:
    return train(tiny(checkpoint_every=4), tmp_path / "run")


def test_the_trained_model_comes_back(run: RunResult) -> None:
    model = epan.load(run.out)
    kept = load_checkpoint(run.out / "checkpoints" / "step-00000008").model
    assert not model.training
    assert model.config.width == 8
    assert model.config.kernel == "biweight"
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert model(torch.randint(0, 7, (2, 5))).shape == (2, 5, 7)


def test_an_earlier_checkpoint_loads_by_step_or_by_path(run: RunResult) -> None:
    by_step, by_path, last = load(run.out, step=4), load(run.out / "checkpoints" / "step-00000004"), load(run.out)
    for name, tensor in by_step.state_dict().items():
        assert torch.equal(tensor, by_path.state_dict()[name])
    assert not torch.equal(by_step.state_dict()["embedding.weight"], last.state_dict()["embedding.weight"])


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(run: RunResult) -> None:
    (run.out / "checkpoints" / "step-00000008" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-00000008 is passed over.*model\.safetensors"):
        found = load(run.out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = load(run.out, step=4)
        assert torch.equal(found.state_dict()["embedding.weight"], expected.state_dict()["embedding.weight"])
        # A checkpoint that was asked for is never replaced by another one.
        with pytest.raises(EpanError, match=r"model\.safetensors has 0 bytes"):
            load(run.out, step=8)


def test_what_cannot_be_loaded_says_why(run: RunResult, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "nowhere", "No such run"),
        (tmp_path, "has no checkpoint"),
        (run.out / "checkpoints" / "step-00000005", "No such run"),
    ):
        with pytest.raises(EpanError, match=words) as caught:
            load(path)
        assert str(path) in str(caught.value)
    with pytest.raises(EpanError, match=r"no checkpoint of that step.*5.*4, 8"):
        load(run.out, step=5)
    folder = run.out / "checkpoints" / "step-00000008"
    (folder / "manifest.json").unlink()
    with pytest.raises(EpanError, match=r"manifest\.json is missing"):
        load(folder)


def test_a_trained_run_is_tested_further(run: RunResult) -> None:
    found = evaluate_run(run.out, [3, 7], sequences=5, decoding="teacher-forced", device="cpu")
    assert [(entry["step"], entry["length"], entry["sequences"]) for entry in found] == [(8, 3, 5), (8, 7, 5)]
    assert records.read(run.out)[-2:] == found
    assert records.summary(records.read(run.out)).status == "finished"
    # Without settings it is the test of the run itself.
    before = (run.out / records.FILE_NAME).read_bytes()
    again = evaluate_run(run.out, device="cpu", append=False)
    assert again == run.evaluations
    assert (run.out / records.FILE_NAME).read_bytes() == before
    other = evaluate_run(run.out, [3], seed=7, split="validation", sequences=5, device="cpu", append=False)
    assert (other[0]["seed"], other[0]["split"]) == (7, "validation")
    early = evaluate_run(run.out, [2], step=4, device="cpu", append=False)
    assert early[0]["step"] == 4
    assert early[0]["loss"] != again[0]["loss"]
