"""Trains runs on a disk that fills up, and on one that nobody may write to, and looks at what they leave.

python tests/training/full_disk.py limit FOLDER     a limit on the size of files (RLIMIT_FSIZE)
python tests/training/full_disk.py mount FOLDER     a small tmpfs, which it mounts: in a mount namespace of its own

Limits and mounts are those of a process, so this is a script of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import fingerprint, tiny

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, records, train
from epan.training import checkpoint as checkpoints


class After(Progress):
    """Does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.step:
            self.act()


def config() -> RunConfig:
    # The weights are larger than the record will be, so that a limit on files meets them first.
    return tiny({"width": 64, "persistent_size": 64}, checkpoint_every=2, keep=9, threads=1, log_every=4)


def published(run: Path) -> Callable[[], object]:
    """Waits until the checkpoint of step 2 is on the disk, which is being written beside training."""

    def wait() -> None:
        while not checkpoints.list_checkpoints(run):
            pass

    return wait


def fails_and_goes_on(
    run: Path, whole: Path, fill: Callable[[], object], free: Callable[[], object], words: str
) -> None:
    """A run whose disk is full after step 3 says so, loses one interval, leaves no litter, and can be resumed."""

    def act() -> None:
        published(run)()
        fill()

    with pytest.raises(EpanError, match=words) as caught:
        train(config(), run, progress=After(3, act))
    free()
    assert str(run) in str(caught.value)
    assert "Fix:" in str(caught.value)
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["step-00000002"]
    assert checkpoints.litter(run) == []
    checkpoints.load(checkpoints.latest(run))
    records.read(run)
    assert train(config(), run, resume="require").status == "finished"
    assert fingerprint(checkpoints.latest(run)) == fingerprint(checkpoints.latest(whole))


def sizes(whole: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in checkpoints.latest(whole).iterdir()}


def limit(place: Path, whole: Path) -> None:
    """Files may not grow beyond a limit that the record, the weights or the moments reach first."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    model, optimizer = (sizes(whole)[f"{name}.safetensors"] for name in ("model", "optimizer"))
    cases = {
        "model": (model // 2, "step 4 cannot be written: .*File too large"),
        "optimizer": ((model + optimizer) // 2, "step 4 cannot be written: .*File too large"),
    }
    for name, (size, words) in cases.items():
        fails_and_goes_on(
            place / name, whole,
            lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, most)),  # type: ignore[misc]
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)), words,
        )  # fmt: skip
        print(f"passed limit on {name}", flush=True)


def mount(place: Path, whole: Path) -> None:
    """A small disk of its own, on which there is room for a part of the checkpoint; then one that is read-only."""
    model, optimizer = (sizes(whole)[f"{name}.safetensors"] for name in ("model", "optimizer"))
    cases = {"no byte": 0, "a part of the weights": model // 2, "a part of the moments": model + optimizer // 2}
    cases["all but state and manifest"] = model + optimizer + 8192
    for number, (name, room) in enumerate(cases.items()):
        disk = place / f"disk-{number}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "epan", disk], check=True)
        filler = disk / "filler"

        def fill(disk: Path = disk, filler: Path = filler, room: int = room) -> None:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    # Some of it is given back, a page at a time.
                    file.truncate(file.tell() - room // 4096 * 4096)

        fails_and_goes_on(disk / "run", whole, fill, filler.unlink, "cannot be written: .*No space left")
        print(f"passed disk with room for {name}", flush=True)

    locked = place / "locked"
    locked.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "epan", locked], check=True)
    # The record is open and the kernel keeps such a disk writable, so the checkpoints alone are locked.
    run = locked / "run"

    def lock_checkpoints() -> None:
        folder = run / checkpoints.FOLDER
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    fails_and_goes_on(
        run, whole, lock_checkpoints, lambda: subprocess.run(["umount", run / checkpoints.FOLDER], check=True),
        "step 4 cannot be written: Read-only file system",
    )  # fmt: skip
    print("passed read-only folder", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    train(config(), folder / "whole")
    {"limit": limit, "mount": mount}[kind](folder, folder / "whole")
