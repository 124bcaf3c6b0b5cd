"""Building: the tokens are those of the text, a killed build goes on, and a failed one leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from prose import prose

from epan.data import building
from epan.data.building import Request, build, is_built, prepare, read_manifest
from epan.errors import EpanError

KILLED = """
import os, signal, sys
from epan.data import building, sources
sources.LEAST_SHARD = 2000
def tell(what, done, total):
    if what == "tokenising" and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
building.build(building.Request(sys.argv[1]), workers=int(sys.argv[2]), tell=tell)
"""


def tokens(folder: Path, split: str) -> list[int]:
    found = array("H")
    found.frombytes((folder / f"{split}.bin").read_bytes())
    return found.tolist()


def expected(books: Path, held_out: dict[str, str]) -> dict[str, list[int]]:
    """The tokens that bytes should give: 256 before each book."""
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for path in sorted(books.iterdir()):
        found[held_out.get(path.name, "train")] += [256, *path.read_bytes()]
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_are_those_of_the_text(books: Callable[..., Path], small_shards: int, workers: int) -> None:
    folder = books(12, 200)
    built = build(Request(str(folder), split="every:6"), workers=workers)
    wanted = expected(folder, {"book05.txt": "validation", "book11.txt": "test"})
    assert {split: tokens(built, split) for split in wanted} == wanted
    manifest = read_manifest(built)
    for split, ids in wanted.items():
        part = manifest["splits"][split]
        assert (part["tokens"], part["documents"]) == (len(ids), ids.count(256))
        assert part["bytes"] == len(ids) - ids.count(256)
        assert part["sha256"] == hashlib.sha256((built / f"{split}.bin").read_bytes()).hexdigest()
    assert [file["name"] for file in manifest["files"] if file["splits"] != ["train"]] == ["book05.txt", "book11.txt"]
    assert sorted(path.name for path in built.iterdir()) == [
        "manifest.json", "test.bin", "tokenizer.json", "train.bin", "validation.bin",
    ]  # fmt: skip


def test_the_hash_is_that_of_the_data_alone(books: Callable[..., Path], tmp_path: Path) -> None:
    """Another path gives the same hash, another text, split or tokenizer another one."""
    one = books(12)
    first = read_manifest(build(Request(str(one))))
    (tmp_path / "moved").mkdir()
    for path in one.iterdir():
        (tmp_path / "moved" / f"x{path.name}").write_bytes(path.read_bytes())
    assert read_manifest(build(Request(str(tmp_path / "moved"))))["hash"] == first["hash"]
    assert read_manifest(build(Request(str(one), split="every:4")))["hash"] != first["hash"]
    (one / "book03.txt").write_text("another book", "utf-8")
    assert read_manifest(build(Request(str(one))))["hash"] != first["hash"]


def test_what_is_built_is_found_again(books: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = books()
    built = build(Request(str(folder)))
    assert built.parent == cache / "text"
    monkeypatch.setattr(building, "write_shard", None)
    assert build(Request(str(folder))) == prepare(Request(str(folder))) == built
    assert prepare(Request(str(built))) == built
    with pytest.raises(EpanError, match="made with another tokenizer"):
        prepare(Request(str(built), tokenizer="bpe"))


def test_a_chosen_folder(books: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = books(), tmp_path / "out"
    out.mkdir()
    assert build(Request(str(folder)), out) == out
    assert is_built(out)
    with pytest.raises(EpanError, match="holds other tokens"):
        build(Request(str(folder), split="every:3"), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(EpanError, match="not empty"):
        build(Request(str(folder)), tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on(
    books: Callable[..., Path], cache: Path, small_shards: int, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    folder = books(12, 300)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(workers)], env=dict(os.environ), check=False
    )
    assert process.returncode == -signal.SIGKILL
    (work,) = (cache / "text").glob("*.building")
    assert not list((cache / "text").glob("*/manifest.json"))
    done = {path.name: path.stat().st_mtime_ns for path in work.glob("shard-*.json")}
    assert len(done) > 5
    # One is damaged, one has only its tokens: they count as little as one that is not there.
    damaged, headless = sorted(done)[:2]
    (work / damaged.replace(".json", ".bin")).write_bytes(b"\0\0")
    (work / headless).unlink()
    written: list[int] = []
    write = building.write_shard

    def counting(folder: Path, plan: object, number: int, *rest: object) -> None:
        written.append(number)
        write(folder, plan, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "write_shard", counting)
    built = build(Request(str(folder)), workers=1)
    kept = {int(name[6:11]) for name in done} - {int(damaged[6:11]), int(headless[6:11])}
    assert not kept & set(written)
    assert {int(damaged[6:11]), int(headless[6:11])} <= set(written)
    monkeypatch.setattr(building, "write_shard", write)
    assert read_manifest(built)["hash"] == read_manifest(build(Request(str(folder)), cache / "anew", workers=1))["hash"]
    assert not list((cache / "text").glob("*.building"))


def test_a_build_killed_before_its_last_step(
    books: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = books()
    whole = read_manifest(build(Request(str(folder)), cache / "whole"))

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(building.os, "replace", lambda a, b: killed() if Path(a).is_dir() else os.rename(a, b))
        with pytest.raises(KeyboardInterrupt):
            build(Request(str(folder)))
    assert read_manifest(build(Request(str(folder))))["hash"] == whole["hash"]


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_is_told_and_nothing_is_left(
    books: Callable[..., Path], cache: Path, small_shards: int, workers: int
) -> None:
    folder = books(12, 300)
    damaged = folder / "book07.txt"
    damaged.write_bytes(damaged.read_bytes() + b" \xc3\x28 end")
    place = damaged.stat().st_size - 6
    with pytest.raises(EpanError, match=rf"no UTF-8.*0xc3 at offset {place:,} of .*book07\.txt.*errors=replace"):
        build(Request(str(folder)), workers=workers)
    assert not list((cache / "text").iterdir())
    assert is_built(build(Request(str(folder), errors="replace"), workers=workers))


def test_a_worker_that_dies(
    books: Callable[..., Path], cache: Path, small_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building.sys, "executable", "false")
    with pytest.raises(EpanError, match="A process that tokenises has ended"):
        build(Request(str(books(12, 300))), workers=2)
    assert not list((cache / "text").iterdir())


def test_damaged_tokens_are_refused(books: Callable[..., Path]) -> None:
    from epan.data.corpus import Corpus

    built = build(Request(str(books())))
    content = (built / "test.bin").read_bytes()
    (built / "test.bin").write_bytes(content[:-2])
    with pytest.raises(EpanError, match=r"damaged.*test\.bin"):
        Corpus(built)
    (built / "test.bin").write_bytes(content)
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["splits"]["test"]["tokens"] += 1
    (built / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EpanError, match="manifest of the tokens is damaged"):
        Corpus(built)


def test_a_bpe_is_trained_on_what_is_not_held_out(books: Callable[..., Path]) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra [text]")
    from epan.data.corpus import Corpus

    folder = books(12, 200)
    request = Request(str(folder), tokenizer="bpe:size=290", split="every:6")
    before = Corpus(build(request))
    assert before.tokenizer.name == "bpe:size=290"
    assert before.tokenizer.decode(before.tokens("test").tolist()) == (folder / "book11.txt").read_text("utf-8")
    (folder / "book11.txt").write_text("zyx " * 500)
    after = Corpus(build(request))
    assert after.tokenizer.hash() == before.tokenizer.hash()
    assert after.hash != before.hash


def test_the_tokens_of_json_lines(tmp_path: Path, small_shards: int) -> None:
    texts = [prose(number, 20) for number in range(40)]
    lines = [json.dumps({"text": text}) for text in [*texts[:5], "", *texts[5:]]]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    built = build(Request(str(tmp_path / "all.jsonl"), split="none"), workers=1)
    assert tokens(built, "train") == [token for text in texts for token in (256, *text.encode())]
    assert read_manifest(built)["splits"]["train"]["documents"] == 40
