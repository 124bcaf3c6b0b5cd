"""Where a run takes place: versions, machine, commit of the code, hash of the data."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import epan
from epan.tasks import Batch
from epan.training.config import TaskConfig

__all__ = ["commit", "data_hash", "device_name", "environment"]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The name of a GPU, the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of Python, torch and epan, platform, CPU model, threads of torch, device. No host or user name."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "epan": epan.__version__,
        "platform": platform.platform(),
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def commit(folder: Path | None = None) -> str | None:
    """The commit of the checkout that epan (or ``folder``) lies in, ``-dirty`` with changes; None without one."""
    folder = folder or Path(epan.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside the checkout of something else, which does not track it.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def data_hash(task: TaskConfig, batch: Batch) -> str:
    """SHA-256 of the task's config and of the first training batch: equal hashes, equal data."""
    content = hashlib.sha256(json.dumps([task.name, task.options], sort_keys=True).encode())
    for tensor in batch:
        content.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
