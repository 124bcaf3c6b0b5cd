"""Full disks, folders that nobody may write to, and damaged bytes: the checkpoint before stays good, and all is told."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import tiny

from epan.errors import EpanError
from epan.training import Progress, StepInfo, checkpoint, records, train

SCRIPT = Path(__file__).parent / "full_disk.py"
FILES = ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors")
FLIPS = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train(tiny(steps=1, log_every=1), tmp_path_factory.mktemp("damage") / "run").out
    return checkpoint.latest(run)


def test_a_thousand_flipped_bytes_are_all_found(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    content = {name: (copy / name).read_bytes() for name in FILES}
    chance = random.Random(4)
    for number in range(FLIPS):
        # As many in small files as in large ones.
        name = FILES[number % len(FILES)]
        good, place = content[name], chance.randrange(len(content[name]))
        (copy / name).write_bytes(good[:place] + bytes([good[place] ^ (1 << chance.randrange(8))]) + good[place + 1 :])
        with pytest.raises(EpanError, match=rf"damaged: {name} ") as caught:
            checkpoint.verify(copy)
        assert str(copy) in str(caught.value)
        (copy / name).write_bytes(good)
    checkpoint.verify(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncation_at_any_of_64_places_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    good = (copy / name).read_bytes()
    for part in range(64):
        (copy / name).write_bytes(good[: len(good) * part // 64])
        for read in (checkpoint.verify, checkpoint.load):
            with pytest.raises(EpanError, match=rf"damaged: {name} "):
                read(copy)


def run_script(kind: str, folder: Path, *before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, str(SCRIPT), kind, str(folder)],
        capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(os.name == "nt", reason="files have no limit here")
def test_a_limit_on_files_ends_the_run_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    assert run_script("limit", tmp_path).splitlines() == ["passed limit on model", "passed limit on optimizer"]


@pytest.mark.slow
def test_a_full_and_a_locked_disk_end_the_run_and_keep_the_checkpoint_before(tmp_path: Path) -> None:
    alone = ["unshare", "--mount", "--map-root-user"]
    probe = [*alone, "mount", "-t", "tmpfs", "-o", "size=64k", "epan", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a small disk, even in a namespace of its own")
    told = run_script("mount", tmp_path, *alone).splitlines()
    assert len(told) == 5
    assert told[-1] == "passed read-only folder"


def test_a_file_where_the_checkpoints_belong_is_told_and_touched_by_nothing(tmp_path: Path) -> None:
    class Block(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 1:
                (tmp_path / "run" / "checkpoints").write_text("mine")

    with pytest.raises(EpanError, match="step 2 cannot be written: Not a directory"):
        train(tiny(checkpoint_every=2), tmp_path / "run", progress=Block())
    assert (tmp_path / "run" / "checkpoints").read_text() == "mine"
    assert records.summary(records.read(tmp_path / "run")).status == "failed"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    class Lock(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 1:
                (tmp_path / "run").chmod(0o500)

    try:
        with pytest.raises(EpanError, match="step 2 cannot be written: Permission denied"):
            train(tiny(checkpoint_every=2), tmp_path / "run", progress=Lock())
    finally:
        (tmp_path / "run").chmod(0o700)
