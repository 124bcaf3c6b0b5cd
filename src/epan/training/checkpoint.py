"""Checkpoints: ``RUN/checkpoints/step-00000100/`` with tensors (safetensors), state and a manifest of hashes.

Processes that share the model (FSDP) write ``model-00001-of-00002.safetensors`` and so on; see ``saving`` and ``shards``.

A checkpoint is written to a temporary folder beside its place, flushed to the disk, and published by one rename: what
carries the name ``step-…`` is whole. Reading checks every byte against the manifest before it is used; nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from epan.errors import EpanError, lab_imports
from epan.training import shards
from epan.training.sharding import piece
from epan.training.untrusted import (
    UntrustedError,
    check_manifest,
    check_size,
    check_state,
    check_tensors,
    read_json,
    shown,
)

__all__ = [
    "SHARDED",
    "VERSION",
    "Checkpoint",
    "clean",
    "contiguous",
    "drop_old",
    "fingerprint",
    "finish",
    "flush",
    "latest",
    "list_checkpoints",
    "litter",
    "load",
    "load_into",
    "save",
    "set_aside_newer",
    "step_of",
    "verify",
]

FOLDER = "checkpoints"
MANIFEST, STATE, MODEL, OPTIMIZER = "manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"
NAME = re.compile(r"step-[0-9]{8,18}")
FORMAT, VERSION = "epan-checkpoint", 1
# The version of a checkpoint that several processes wrote, each its parts.
SHARDED = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, verified.

    Attributes
    ----------
    path: its folder.
    manifest: format, version, step, config (of the run), model (resolved config of the model), config_hash, files.
    state: small values such as elapsed seconds.
    model, optimizer: tensors by name, on the CPU.
    """

    path: Path
    manifest: dict[str, Any]
    state: dict[str, Any]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def flush(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        # Windows opens no folders; files there are flushed by the call below on their own.
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump({key: value for key, value in manifest.items() if key != "sha256"})).hexdigest()


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each with memory of its own and no gaps, as safetensors wants them."""
    # safetensors refuses two names for one memory (tied weights) and views with gaps.
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        shared = place in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        own[name] = tensor.clone() if shared and tensor.numel() else tensor
        seen.add(place)
    return own


def save(
    run: Path,
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    keep: int,
    spare: Collection[int] = (),
) -> Path:
    """Write the checkpoint of ``step`` into the run folder; drop all but the ``keep`` newest ones and the spared steps.

    Parameters
    ----------
    run: the run folder.
    step: optimizer steps done.
    model, optimizer: tensors by name.
    state: JSON values that training needs to go on.
    facts: JSON values of the manifest: ``config``, ``model``, ``config_hash``.
    keep: how many checkpoints stay, this one included.
    spare: steps whose checkpoints stay beside them.

    Raises
    ------
    EpanError: the disk is full or the folder cannot be written; earlier checkpoints are untouched and no litter stays.
    """
    with lab_imports("Saving a checkpoint"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

    final = place_of(run, step)
    temporary = temporary_of(final)
    try:
        temporary.mkdir(parents=True)
        save_file(contiguous(model), temporary / MODEL)
        save_file(contiguous(optimizer), temporary / OPTIMIZER)
        for name in (MODEL, OPTIMIZER):
            flush(temporary / name)
        files = {name: fingerprint(temporary / name) for name in (MODEL, OPTIMIZER)}
        finish(temporary, final, step, files=files, state=state, facts=facts, version=VERSION)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(t.nbytes for t in (*model.values(), *optimizer.values()))
        raise unwritable(final, getattr(error, "strerror", None) or str(error), size) from error
    drop_old(run, keep, spare)
    return final


def place_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step``."""
    return run / FOLDER / f"step-{step:08d}"


def temporary_of(final: Path) -> Path:
    """Where this process writes what becomes ``final``; nothing is there."""
    temporary = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def unwritable(final: Path, reason: str, size: int | None, rank: int | None = None) -> EpanError:
    """What is told of a checkpoint of ``size`` bytes, if that is known, that could not be written (by process ``rank``)."""
    who = "" if rank is None else f" by process {rank}"
    room = "make room" if size is None else f"make room for {size / 2**20:.1f} MiB"
    return EpanError(
        f"The checkpoint of step {step_of(final)} cannot be written{who}: {reason}",
        found=str(final),
        fix=f"{room} there, or give a folder that you may write to, then resume",
    )


def fingerprint(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def finish(
    temporary: Path,
    final: Path,
    step: int,
    *,
    files: Mapping[str, Any],
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    version: int,
) -> None:
    """Add state and manifest to the tensor ``files`` in ``temporary``, which are on the disk, and publish it as ``final``.

    Raises
    ------
    OSError: something cannot be written.
    """
    (temporary / STATE).write_bytes(_dump({**state, "step": step}))
    files = {**files, STATE: fingerprint(temporary / STATE)}
    manifest = {"format": FORMAT, "version": version, "step": step, "files": files, **facts}
    (temporary / MANIFEST).write_bytes(_dump({**manifest, "sha256": _seal(manifest)}))
    for name in (STATE, MANIFEST):
        flush(temporary / name)
    flush(temporary)
    _publish(temporary, final)
    flush(final.parent)


def drop_old(run: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Remove all but the ``keep`` newest checkpoints and those of the steps in ``spare``."""
    for old in list_checkpoints(run)[:-keep]:
        if step_of(old) not in spare:
            _drop(old)


def _publish(temporary: Path, final: Path) -> None:
    """One rename. A checkpoint of the same step, left by the session that was resumed, makes way first."""
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def _drop(path: Path) -> None:
    """Remove a checkpoint: by one rename first, so that what carries the name ``step-…`` is whole to the last."""
    gone = path.with_name(f".gone-{path.name}")
    with suppress(OSError):
        os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def clean(run: Path) -> None:
    """Remove what a killed session left half written; call it only while no other process writes there.

    One that was killed between the two renames of a checkpoint that replaces another gets its old one back.
    """
    for old in (run / FOLDER).glob(".old-step-*"):
        final = old.with_name(old.name.removeprefix(".old-"))
        if not final.exists():
            os.rename(old, final)
    for path in litter(run):
        shutil.rmtree(path, ignore_errors=True)


def litter(run: Path) -> list[Path]:
    """What a killed session left half written or half removed."""
    return sorted(
        path for pattern in (".tmp-step-*", ".old-step-*", ".gone-step-*") for path in (run / FOLDER).glob(pattern)
    )


def set_aside_newer(run: Path, good: Path) -> None:
    """Rename the checkpoints after ``good`` to ``damaged-step-…``: retention must not take them for the newest ones."""
    for path in list_checkpoints(run):
        if step_of(path) > step_of(good):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; they are whole, but not verified."""
    found = [path for path in (Path(run) / FOLDER).glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint folder tells."""
    return int(path.name.rpartition("-")[2])


def _damaged(what: str, path: Path) -> EpanError:
    return EpanError(f"The checkpoint is damaged: {what}", found=str(path), fix="use another checkpoint of the run")


@contextmanager
def _explained(path: Path, name: str) -> Iterator[None]:
    """What is wrong with the file ``name`` of the checkpoint ``path`` becomes an EpanError."""
    try:
        yield
    except UntrustedError as error:
        raise _damaged(str(error), path) from None
    except FileNotFoundError:
        raise _damaged(f"{name} is missing", path) from None
    except OSError as error:
        raise EpanError(f"The checkpoint cannot be read: {error.strerror}", found=str(path / name)) from error


def verify(path: str | Path) -> dict[str, Any]:
    """Check every byte of a checkpoint folder against its manifest; returns the manifest.

    Raises
    ------
    EpanError: no checkpoint there, a file missing, of another size or with another hash, an unknown format, values
        that no checkpoint has, whatever the hashes; says which file.
    """
    path = Path(path)
    if not path.is_dir():
        raise EpanError(
            "No checkpoint there", found=str(path), fix="give a folder such as RUN/checkpoints/step-00001000"
        )
    with lab_imports("Reading a checkpoint"):
        import safetensors.torch  # noqa: F401

    with _explained(path, MANIFEST):
        raw, manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise _damaged(f"{MANIFEST} is not that of an epan checkpoint", path)
    # The text itself must be what was written: a changed blank is a changed byte.
    if raw != _dump(manifest) or manifest.get("sha256") != _seal(manifest):
        raise _damaged(f"{MANIFEST} was changed after it was written", path)
    if manifest.get("version") not in (VERSION, SHARDED):
        found, allowed = f"version {shown(manifest.get('version'))} in {path}", [VERSION, SHARDED]
        raise EpanError("Unknown version of the checkpoint format", found=found, allowed=allowed, fix="update epan")
    with _explained(path, MANIFEST):
        check_manifest(MANIFEST, manifest, frozenset(_expected_files(manifest)))
    if NAME.fullmatch(path.name) and step_of(path) != manifest["step"]:
        raise _damaged(f"{MANIFEST} is that of step {manifest['step']}", path)
    for name, expected in manifest["files"].items():
        with _explained(path, name):
            size = check_size(path / name)
            if size != expected["bytes"]:
                raise _damaged(f"{name} has {size} bytes, {expected['bytes']} were written", path)
            if _hash(path / name) != expected["sha256"]:
                raise _damaged(f"{name} has other content than was written (SHA-256 differs)", path)
            if name == STATE:
                check_state(name, read_json(path / name)[1], manifest["step"])
            else:
                check_tensors(path / name)
    return manifest


def _expected_files(manifest: Mapping[str, Any]) -> set[str]:
    if manifest["version"] == VERSION:
        return {MODEL, OPTIMIZER, STATE}
    split = manifest.get("shards")
    count: Any = split.get("count") if isinstance(split, dict) else None
    # However many it claims, there are no more than it lists.
    files = manifest.get("files")
    known = isinstance(count, int) and isinstance(files, dict) and 0 < count <= len(files)
    return {STATE, *shards.file_names(count)} if known else set()


def load(path: str | Path) -> Checkpoint:
    """Verify a checkpoint folder and read it; tensors that several processes wrote in parts are put together.

    Raises
    ------
    EpanError: as ``verify``.
    """
    with lab_imports("Reading a checkpoint"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    path = Path(path)
    manifest = verify(path)
    try:
        state = json.loads((path / STATE).read_bytes())
        if manifest["version"] == VERSION:
            model, optimizer = load_file(path / MODEL), load_file(path / OPTIMIZER)
        else:
            model, optimizer = (shards.assemble(path, kind, manifest["shards"], load_file) for kind in shards.KINDS)
        return Checkpoint(path, manifest, state, model, optimizer)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise _damaged(shown(str(error)), path) from error


def latest(run: str | Path, warn: Callable[[str], None] | None = None) -> Path:
    """The newest checkpoint of a run that is good; ``warn`` is told of every newer one that is not.

    Raises
    ------
    EpanError: the run has no checkpoint, or no good one (the damage of each is told); a package is missing.
    """
    # A package that is not there is no damage of a checkpoint.
    with lab_imports("Reading a checkpoint"):
        import safetensors.torch  # noqa: F401

    found = list_checkpoints(run)
    problems = []
    for path in reversed(found):
        try:
            verify(path)
        except EpanError as error:
            problems.append(f"{path.name}: {error.what}")
            if warn:
                warn(f"{path.name} is passed over. {error}")
        else:
            return path
    if not found:
        raise EpanError(
            "The run has no checkpoint",
            found=str(Path(run)),
            fix="give the folder of a run that saved one (checkpoint_every, or the end of training)",
        )
    raise EpanError(
        "The run has no good checkpoint", found="; ".join(problems), fix="train the run again in another folder"
    )


def load_into(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Copy ``tensors`` into the parameters and buffers of ``model``.

    Raises
    ------
    EpanError: a name is missing or unknown, or a shape differs; the first of them is named with both shapes.
    """
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        sides = [
            f"{len(names)} {kind} (first: {names[0] if names[0].isprintable() else shown(names[0])})"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise EpanError(
            "The checkpoint belongs to another model",
            found=f"tensors {' and '.join(sides)} in {where}",
            fix="load it with the config that it was trained with",
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise EpanError(
                f"The checkpoint belongs to another model: tensor {name!r} has the wrong shape",
                found=f"{tuple(tensors[name].shape)} in {where}",
                allowed=str(tuple(tensor.shape)),
                fix="load it with the config that it was trained with",
            )
    model.load_state_dict({name: piece(tensor, own[name]) for name, tensor in tensors.items()})
