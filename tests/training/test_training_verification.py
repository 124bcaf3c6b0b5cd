"""What ``verify`` says of folders that are whole, damaged, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from epan.errors import EpanError
from epan.training import RunConfig, checkpoint, train, verify

Tiny = Callable[..., RunConfig]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    train(tiny(checkpoint_every=4), tmp_path / "run")
    return tmp_path / "run"


def statuses(path: Path) -> list[str]:
    return [finding.status for finding in verify(path)]


def test_a_whole_run_is_whole(run: Path) -> None:
    findings = list(verify(run))
    assert [finding.status for finding in findings] == ["good"] * 3
    assert findings[0].path == run / "record.jsonl"
    assert "finished at step 8 of 8" in findings[0].text
    assert [finding.path.name for finding in findings[1:]] == ["step-00000004", "step-00000008"]
    assert "step 8, 3 files" in findings[2].text


def test_a_checkpoint_folder_alone(run: Path) -> None:
    (found,) = verify(run / "checkpoints" / "step-00000004")
    assert (found.status, found.path.name) == ("good", "step-00000004")


def test_all_runs_of_a_folder(run: Path, tiny: Tiny) -> None:
    train(tiny(steps=1, seed=1), run.parent / "deeper" / "second")
    assert statuses(run.parent) == ["good"] * 5


def test_a_flipped_byte_is_named(run: Path) -> None:
    file = run / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    record, bad, good = verify(run)
    assert (record.status, bad.status, good.status) == ("good", "damaged", "good")
    assert "optimizer.safetensors has other content than was written" in bad.text


def test_a_config_that_is_not_the_hashed_one_is_damage(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000004"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["config"]["seed"] = 77
    (folder / "manifest.json").write_bytes(checkpoint._dump({**manifest, "sha256": checkpoint._seal(manifest)}))
    assert [found.text for found in verify(folder)] == ["the hash of the config is not that of the config"]
    del manifest["config"]["seed"]
    manifest["config"]["sead"] = 0
    (folder / "manifest.json").write_bytes(checkpoint._dump({**manifest, "sha256": checkpoint._seal(manifest)}))
    (found,) = verify(folder)
    assert found.status == "good"
    assert "another version of epan" in found.text


def test_a_config_that_knew_fewer_keys_is_no_damage(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000004"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"], manifest["config"]["compile"]
    (folder / "manifest.json").write_bytes(checkpoint._dump({**manifest, "sha256": checkpoint._seal(manifest)}))
    (found,) = verify(folder)
    assert found.status == "good"
    assert "another version of epan" in found.text


def test_a_damaged_record_names_the_line(run: Path) -> None:
    record = run / "record.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join([*lines[:2], b"no json\n", *lines[2:]]))
    first = next(iter(verify(run)))
    assert first.status == "damaged"
    assert "line 3 of" in first.text
    record.unlink()
    first = next(iter(verify(run)))
    assert (first.status, first.path.name) == ("damaged", "record.jsonl")


def test_what_is_neither_is_noted(run: Path) -> None:
    root = run / "checkpoints"
    (root / ".tmp-step-00000009-1").mkdir()
    (root / "step-00000004").rename(root / "damaged-step-00000004")
    assert statuses(run) == ["good", "good", "note", "note"]


def test_a_run_without_checkpoints(run: Path) -> None:
    for folder in checkpoint.list_checkpoints(run):
        folder.rename(run.parent / folder.name)
    assert statuses(run) == ["good", "note"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_verify_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpanError, match=r"Nothing there|No run and no checkpoint"):
        list(verify(tmp_path / name))
