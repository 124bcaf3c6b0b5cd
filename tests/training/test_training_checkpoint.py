"""Checkpoints: published whole, every byte checked, nothing unpickled, the newest good one found."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from epan.errors import EpanError
from epan.training import checkpoint

FILES = ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors")


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    base = torch.randn(4, 6, generator=generator)
    model = {"a.weight": base, "tied": base, "view": base[1:, ::2], "gain": torch.ones(3).bfloat16()}
    moments = {"a.weight/exp_avg": base * 2, "a.weight/step": torch.tensor(float(step)), "empty": torch.zeros(0, 2)}
    return {"model": model, "optimizer": moments}


def save(run: Path, step: int, keep: int = 9) -> Path:
    facts = {"config": {"seed": 1}, "model": {"name": "m"}, "config_hash": "h"}
    return checkpoint.save(run, step, **tensors(step), state={"elapsed": 1.5}, facts=facts, keep=keep)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    assert path == tmp_path / "checkpoints" / "step-00000100"
    assert sorted(item.name for item in path.iterdir()) == sorted(FILES)
    found, expected = checkpoint.load(path), tensors(100)
    assert found.step == 100
    assert found.state == {"elapsed": 1.5, "step": 100}
    assert found.manifest["config"] == {"seed": 1}
    for kept, given in ((found.model, expected["model"]), (found.optimizer, expected["optimizer"])):
        assert kept.keys() == given.keys()
        for name in kept:
            assert kept[name].dtype == given[name].dtype
            assert torch.equal(kept[name], given[name])


def test_only_the_newest_are_kept_and_no_litter(tmp_path: Path) -> None:
    for step in (5, 10, 90, 100):
        save(tmp_path, step, keep=2)
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["step-00000090", "step-00000100"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "state.json").write_text("damage")
    save(tmp_path, 5)
    assert checkpoint.load(path).step == 5
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == [path.name]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_and_every_truncation_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 7)
    file = path / name
    good = file.read_bytes()
    chance = random.Random(name)
    for place in chance.sample(range(len(good)), min(40, len(good))):
        file.write_bytes(good[:place] + bytes([good[place] ^ (1 << chance.randrange(8))]) + good[place + 1 :])
        with pytest.raises(EpanError, match=r"damaged|cannot be read") as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
        assert name in str(caught.value)
    for share in range(32):
        file.write_bytes(good[: len(good) * share // 32])
        with pytest.raises(EpanError, match=name):
            checkpoint.load(path)
    file.write_bytes(good + b"\0")
    with pytest.raises(EpanError, match=name):
        checkpoint.load(path)
    file.unlink()
    with pytest.raises(EpanError, match=f"{name} is missing"):
        checkpoint.load(path)
    file.write_bytes(good)
    checkpoint.load(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_pickle_in_place_of_tensors_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 7)
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(EpanError, match=r"model\.safetensors"):
        checkpoint.load(path)
    # Even a manifest that vouches for it does not get it unpickled.
    manifest = json.loads((path / "manifest.json").read_bytes())
    file = path / "model.safetensors"
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint._hash(file)}
    manifest["sha256"] = checkpoint._seal(manifest)
    (path / "manifest.json").write_bytes(checkpoint._dump(manifest))
    for read in (checkpoint.verify, checkpoint.load):
        with pytest.raises(EpanError, match=r"damaged: model\.safetensors is a pickle"):
            read(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("names", [{"../../outside": {}}, {"model.safetensors": {}}, {}])
def test_a_manifest_lists_the_known_files_and_no_other(tmp_path: Path, names: dict[str, Any]) -> None:
    path = save(tmp_path, 7)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"] = names
    manifest["sha256"] = checkpoint._seal(manifest)
    (path / "manifest.json").write_bytes(checkpoint._dump(manifest))
    with pytest.raises(EpanError, match="lists"):
        checkpoint.load(path)


def test_another_version_of_the_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    path = save(tmp_path, 7)
    monkeypatch.undo()
    with pytest.raises(EpanError, match=r"version 99.*update epan"):
        checkpoint.load(path)


def test_the_newest_good_checkpoint_is_found_with_a_warning(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    root, warned = tmp_path / "checkpoints", []
    assert checkpoint.latest(tmp_path).name == "step-00000030"
    (root / "step-00000030" / "state.json").unlink()
    (root / "step-00000020" / "manifest.json").write_text("{}")
    assert checkpoint.latest(tmp_path, warned.append).name == "step-00000010"
    assert len(warned) == 2
    assert "step-00000030" in warned[0]
    assert "state.json is missing" in warned[0]
    checkpoint.set_aside_newer(tmp_path, root / "step-00000010")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000010"]
    (root / "step-00000010" / "model.safetensors").write_bytes(b"")
    with pytest.raises(EpanError, match=r"no good checkpoint.*model\.safetensors has 0 bytes"):
        checkpoint.latest(tmp_path)


def test_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(EpanError, match="has no checkpoint"):
        checkpoint.latest(tmp_path)
    with pytest.raises(EpanError, match="No checkpoint there"):
        checkpoint.load(tmp_path / "step-1")
    with pytest.raises(EpanError, match=r"manifest\.json is missing"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(tmp_path, 1)

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file" if moment == "save_file" else f"os.{moment}", full)
    with pytest.raises(EpanError, match=r"step 2 cannot be written: No space left.*MiB") as caught:
        save(tmp_path, 2)
    assert "step-00000002" in str(caught.value)
    monkeypatch.undo()
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpoint.load(tmp_path / "checkpoints" / "step-00000001")


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleaned(tmp_path: Path) -> None:
    save(tmp_path, 1)
    litter = tmp_path / "checkpoints" / ".tmp-step-00000002-77"
    litter.mkdir()
    (litter / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).name == "step-00000001"
    checkpoint.clean(tmp_path)
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_killed_while_an_old_checkpoint_is_removed_nothing_half_carries_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def killed(path: Path, **options: Any) -> None:
        for item in path.glob("*.json"):
            item.unlink()
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000002"]
    assert len(checkpoint.litter(tmp_path)) == 1
    checkpoint.clean(tmp_path)
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_killed_between_the_renames_of_a_replacement_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    rename = os.rename

    def killed(source: Any, target: Any) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    monkeypatch.undo()
    assert checkpoint.list_checkpoints(tmp_path) == []
    checkpoint.clean(tmp_path)
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpoint.load(tmp_path / "checkpoints" / "step-00000001")


def test_files_are_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(handle: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def note_rename(*arguments: Any) -> None:
        order.append("rename")
        rename(*arguments)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("open files have no names here")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(tmp_path, 1)
    # safetensors renames its own temporary files in Rust; the only rename seen here publishes the folder.
    assert set(FILES) <= set(order[: order.index("rename")])
    assert order[-1] == "checkpoints"


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    checkpoint.load_into(model, good, tmp_path)
    assert torch.equal(model.weight, good["weight"])
    with pytest.raises(EpanError, match=r"1 missing \(first: bias\) and 1 unknown \(first: biass\)"):
        checkpoint.load_into(model, {"weight": good["weight"], "biass": good["bias"]}, tmp_path)
    with pytest.raises(EpanError, match=r"'weight' has the wrong shape.*\(3, 2\).*\(2, 3\)"):
        checkpoint.load_into(model, {**good, "weight": torch.ones(3, 2)}, tmp_path)
