"""Checkpoints that somebody else made: refused with a reason, nothing executed, nothing written, no memory taken.

Whoever forges a checkpoint can compute its hashes too, so all of these carry a seal that fits.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import tiny

import epan
from epan.cli.main import run as command
from epan.errors import EpanError
from epan.training import checkpoint, evaluate_run, train, verify
from epan.training.untrusted import LARGEST_HEADER, LARGEST_JSON

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny(steps=2, log_every=1), tmp_path_factory.mktemp("untrusted") / "run").out


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of a good run, with nothing else in its folder."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def forge(run: Path, change: Change = lambda manifest: None) -> Path:
    """Seal what lies in the checkpoint of a run, with a changed manifest."""
    (folder,) = checkpoint.list_checkpoints(run)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    for name in manifest["files"]:
        file = folder / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": checkpoint._hash(file)}
    change(manifest)
    (folder / "manifest.json").write_bytes(checkpoint._dump({**manifest, "sha256": checkpoint._seal(manifest)}))
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(run: Path, words: str, capsys: pytest.CaptureFixture[str], *, damaged: bool = True) -> None:
    """Reading, testing and resuming all say ``words``, and verifying too where the checkpoint itself is ``damaged``."""
    before = everything(run.parent)
    (folder,) = checkpoint.list_checkpoints(run)
    reads: list[Callable[[], object]] = [lambda: epan.load(folder), lambda: evaluate_run(folder, device="cpu")]
    for read in reads:
        with pytest.raises(EpanError, match=words):
            read()
    assert command(["eval", str(folder), "--device", "cpu", "--no-record"]) == 2
    told = capsys.readouterr()
    assert words.replace("\\", "") in told.err
    assert "Traceback" not in told.err
    assert "unexpectedly" not in told.err
    found = [finding for finding in verify(run) if finding.path == folder]
    assert [finding.status for finding in found] == ["damaged" if damaged else "good"]
    assert command(["verify", str(run)]) == (1 if damaged else 0)
    told = capsys.readouterr()
    assert told.out.isprintable() or set(told.out) - {"\n"} <= {mark for mark in told.out if mark.isprintable()}
    if damaged:
        assert words.replace("\\", "") in told.out
    assert everything(run.parent) == before


def replace_file(name: str, value: object) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["state.json"][name] = value

    return change


def set_key(key: str, value: object) -> Change:
    return lambda manifest: manifest.__setitem__(key, value)


MANIFESTS: dict[str, tuple[Change, str]] = {
    "a path out of the folder": (lambda m: m["files"].__setitem__("../../x", m["files"]["state.json"]), "../../x"),
    "an absolute path": (lambda m: m["files"].__setitem__("/etc/passwd", m["files"].pop("state.json")), "/etc/passwd"),
    "a command for terminals": (lambda m: m["files"].__setitem__("\x1b[2J", {}), "x1b[2J"),
    "files that are a list": (set_key("files", ["state.json"]), "no 'files' that is an object"),
    "no files": (lambda m: m.pop("files"), "no 'files' that is an object"),
    "negative bytes": (replace_file("bytes", -1), "manifest.json says of state.json"),
    "bytes that are text": (replace_file("bytes", "12"), "manifest.json says of state.json"),
    "bytes without end": (replace_file("bytes", 10**300), "manifest.json says of state.json"),
    "bytes that are true": (replace_file("bytes", True), "manifest.json says of state.json"),
    "a hash that is a number": (replace_file("sha256", 5), "manifest.json says of state.json"),
    "a file that is text": (lambda m: m["files"].__setitem__("state.json", "x"), "manifest.json says of state.json"),
    "no step": (lambda m: m.pop("step"), "manifest.json has the step None"),
    "a negative step": (set_key("step", -3), "manifest.json has the step -3"),
    "a broken step": (set_key("step", 2.5), "manifest.json has the step 2.5"),
    "another step": (set_key("step", 3), "manifest.json is that of step 3"),
    "a config that is a list": (set_key("config", []), "no 'config' that is an object"),
    "a model that is text": (set_key("model", "x"), "no 'model' that is an object"),
    "a hash that is none": (set_key("config_hash", None), "no 'config_hash' that is text"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_sealed_manifest_with_senseless_values_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = MANIFESTS[name]
    forge(run, change)
    refused(run, words.replace("[", r"\["), capsys)


@pytest.mark.parametrize("text", ['{"a":' * 200_000 + "0" + "}" * 200_000, "[" * 100_000, "NaN", "{}", '"x"', "[1]"])
def test_a_manifest_that_is_no_object_of_plain_values_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    (folder / "manifest.json").write_text(text)
    refused(run, "manifest.json is ", capsys)


def test_a_manifest_of_gigabytes_is_not_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    os.truncate(folder / "manifest.json", 8 << 30)
    tracemalloc.start()
    try:
        refused(run, rf"manifest.json has {8 << 30} bytes; no such file has more than {LARGEST_JSON}", capsys)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"elapsed": 1.5, "step": 3}', "state.json is that of step 3"),
        ('{"elapsed": 1.5, "step": true}', "state.json is that of step True"),
        ('{"step": 2}', "state.json has the elapsed time None"),
        ('{"elapsed": "long", "step": 2}', "state.json has the elapsed time 'long'"),
        ('{"elapsed": -1, "step": 2}', "state.json has the elapsed time -1"),
        ('{"elapsed": 1e999, "step": 2}', "state.json has the elapsed time inf"),
        ('{"elapsed": NaN, "step": 2}', "state.json is no JSON"),
        ("[]", "state.json is no JSON object"),
        ("[" * 100_000, "state.json is no JSON"),
        (" " * (LARGEST_JSON + 1), "no such file has more than"),
    ],
)
def test_a_sealed_state_without_sense_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    (folder / "state.json").write_text(text)
    forge(run)
    refused(run, words, capsys)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch exploded",)


def make_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(32 << 20))


def make_npz(file: Path) -> None:
    with file.open("wb") as out:
        numpy.savez_compressed(out, weight=numpy.zeros(1 << 22))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda file: file.write_bytes(pickle.dumps(Bomb())), "is a pickle, no safetensors"),
    "pickle of the first kind": (lambda file: file.write_bytes(pickle.dumps(Bomb(), 0)), "is no safetensors file"),
    "torch.save": (lambda file: torch.save({"weight": Bomb()}, file), "is a zip archive, no safetensors"),
    "zip bomb": (make_zip, "is a zip archive, no safetensors"),
    "npz": (make_npz, "is a zip archive, no safetensors"),
    "nothing": (lambda file: file.write_bytes(b""), "is no safetensors file"),
    "a header beyond the end": (
        lambda file: file.write_bytes(struct.pack("<Q", 1 << 50) + b"{}" + bytes(90)),
        "is no safetensors file",
    ),
    "a header without end": (
        lambda file: file.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + b"{" + b" " * LARGEST_HEADER),
        "has a list of tensors of",
    ),
    "deep nesting": (
        lambda file: file.write_bytes(struct.pack("<Q", 2000 * 6) + b'{"a": ' * 2000),
        "is no safetensors file",
    ),
    "a tensor beyond the end": (
        lambda file: file.write_bytes(
            struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[99999],"data_offsets":[0,399996]}}'[:62]
        ),
        "is no safetensors file",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["model.safetensors", "optimizer.safetensors"])
def test_what_is_no_file_of_tensors_is_refused_unread(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, which: str
) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    monkeypatch.chdir(run.parent)
    make, words = FILES[name]
    make(folder / which)
    forge(run)
    tracemalloc.start()
    try:
        refused(run, f"{which} {words}", capsys)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert not (run.parent / "exploded").exists()


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(run, f"{name} is no plain file", capsys)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "\x1b[2J", "a" * 5000])
def test_tensors_of_strange_names_go_nowhere(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    own = load_file(folder / "model.safetensors")
    save_file({**own, name: torch.ones(2)}, folder / "model.safetensors")
    forge(run)
    refused(run, "belongs to another model", capsys, damaged=False)


@pytest.mark.parametrize(
    "name", ["../../x/exp_avg", "embedding.weight/../../x", "x", "norm.weight/step", "norm.weight/more", "missing"]
)
def test_an_optimizer_of_strange_names_is_refused(run: Path, name: str) -> None:
    (folder,) = checkpoint.list_checkpoints(run)
    own = load_file(folder / "optimizer.safetensors")
    if name == "missing":
        del own["norm.weight/exp_avg"]
    else:
        own[name] = torch.ones(8)
    save_file(own, folder / "optimizer.safetensors")
    forge(run)
    (run / "record.jsonl").write_text("".join((run / "record.jsonl").read_text().splitlines(keepends=True)[:3]))
    before = everything(run.parent)
    with pytest.raises(EpanError, match="optimizer state"):
        train(tiny(steps=2, log_every=1), run, resume="require")
    assert everything(run.parent) == before


MODELS: dict[str, tuple[Change, str]] = {
    "a million layers": (lambda m: m["model"].__setitem__("layers", 10**9), "more parameters than it holds"),
    "a width without end": (lambda m: m["model"].__setitem__("width", 10**6), "more parameters than it holds"),
    "a vocabulary without end": (lambda m: m["model"].__setitem__("vocab_size", 10**12), "more parameters than"),
    "no name": (lambda m: m["model"].pop("name"), "Unknown model None"),
    "a name that is a list": (lambda m: m["model"].__setitem__("name", [1]), "The model of the checkpoint cannot be"),
    "a kernel that is a number": (lambda m: m["model"].__setitem__("kernel", 5), "A kernel is a name"),
    "an unknown key": (lambda m: m["model"].__setitem__("\x1b[2J", 5), "Unknown key"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_not_trained_is_not_built(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, words = MODELS[name]
    forge(run, change)
    refused(run, words, capsys, damaged=False)


@pytest.mark.parametrize("task", [5, {"name": 5}, {"name": "copy", "options": {"symbols": "x"}}, {"name": "copie"}])
def test_a_task_that_is_none_is_refused(run: Path, capsys: pytest.CaptureFixture[str], task: object) -> None:
    folder = forge(run, lambda manifest: manifest["config"].__setitem__("task", task))
    with pytest.raises(EpanError):
        evaluate_run(folder, device="cpu")
    assert command(["eval", str(folder), "--no-record"]) == 2
    assert "unexpectedly" not in capsys.readouterr().err


def test_changed_lists_of_tensors_give_tensors_or_an_error(run: Path) -> None:
    """Whatever the seal vouches for is read whole, or refused by an EpanError; nothing else comes out."""
    (folder,) = checkpoint.list_checkpoints(run)
    good, chance = (folder / "model.safetensors").read_bytes(), random.Random(0)
    size, outcomes = struct.unpack("<Q", good[:8])[0], set()
    for _ in range(300):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(8 + size)] = chance.choice(b'0123456789{}[]",:\x00\xff-')
        (folder / "model.safetensors").write_bytes(content)
        forge(run)
        try:
            epan.load(folder)
            outcomes.add("loaded")
        except EpanError:
            outcomes.add("refused")
    assert "refused" in outcomes
