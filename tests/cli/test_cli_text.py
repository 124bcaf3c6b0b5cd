"""Text through the real command: tokens, training, tests on other text, the demo, and one line for a mistake."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "--lengths", "16", "--batch", "4", "--test-lengths", "16,32", "--test-sequences", "8", "--steps", "4", "--threads", "1",
    "--device", "cpu", "--set", "model.options.width=16", "--set", "model.options.heads=2",
    "--set", "model.options.layers=1", "--set", "model.options.persistent_size=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(" ".join(draw.choice(["sea", "ship", "whale"]) for _ in range(1500)))
    return path


@pytest.fixture(scope="module")
def run(epan: Any, novel: Path) -> tuple[Path, Any]:
    folder = novel.parent / "run"
    return folder, epan("train", "--text", str(novel), *SMALL, "--out", str(folder))


def test_what_was_built_is_shown(epan: Any, novel: Path, tmp_path: Path) -> None:
    shown = epan("data", str(novel), "--out", str(tmp_path / "tokens"))
    assert shown.returncode == 0, shown.stderr
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    for part in ("bytes, 257 tokens", "held out    by tail", manifest["hash"], "documents", "bytes/token", "1.000"):
        assert part in shown.stdout
    again = epan("data", str(tmp_path / "tokens"))
    assert again.returncode == 0, again.stderr
    assert manifest["hash"] in again.stdout


def test_training_on_text(run: tuple[Path, Any]) -> None:
    folder, result = run
    assert result.returncode == 0, result.stderr
    header = (folder / "record.jsonl").read_text().splitlines()[0]
    assert f"hash {json.loads(header)['data_hash'][:12]}, context 16," in result.stdout
    for word in ("nats/byte", "bits/byte", "perplexity", "validation", "bits a byte"):
        assert word in result.stdout
    assert "exact match" not in result.stdout
    assert (folder / "tokenizer.json").exists()


def test_a_test_on_another_text(run: tuple[Path, Any], epan: Any, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("another text " * 60)
    found = epan("eval", str(run[0]), "--text", str(tmp_path / "other.txt"), "--lengths", "16")
    assert found.returncode == 0, found.stderr
    assert "other.txt" in found.stdout
    assert "nats/byte" in found.stdout
    held_out = epan("eval", str(run[0]), "--no-record")
    assert held_out.returncode == 0, held_out.stderr
    assert " test" in held_out.stdout


def test_a_report_of_text(run: tuple[Path, Any], epan: Any, tmp_path: Path) -> None:
    made = epan("report", str(run[0]), "--out", str(tmp_path / "report"))
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "Loss at the training length (16), in nats a token" in page
    assert "xact match" not in page.replace("exact_match", "")
    assert (tmp_path / "report" / "figures" / "test-loss.png").exists()


def test_keys_of_text(epan: Any) -> None:
    shown = epan("train", "--text", "nowhere", "--keys")
    assert shown.returncode == 0, shown.stderr
    for key in ("task.options.path", "task.options.documents", "task.options.validation"):
        assert key in shown.stdout


def test_the_demo_on_text(epan: Any, novel: Path, tmp_path: Path) -> None:
    command = ("demo", "--text", str(novel), "--quick", "--out", str(tmp_path / "demo"))
    first = epan(*command)
    assert first.returncode == 0, first.stderr
    assert "Finished 8 steps" in first.stdout
    entries = [json.loads(line) for line in (tmp_path / "demo" / "record.jsonl").read_text().splitlines()]
    loss = next(entry for entry in entries if entry["kind"] == "eval")["loss_per_byte"]
    after = first.stdout[first.stdout.index("Validation loss") :]
    assert after.startswith(f"Validation loss: {loss:.3f} nats a byte in windows of 64 bytes\n")
    shown, _, command_line = after.partition("\nLet it write more")
    again = command_line.strip().splitlines()[-1].split()
    assert again[:3] == ["epan", "generate", str(tmp_path / "demo")]
    # What it writes is what the command for it writes.
    written = epan("generate", str(tmp_path / "demo"), "--tokens", "300", "--device", "cpu")
    assert written.stdout
    assert written.stdout in shown
    second = epan(*command)
    assert second.returncode == 0, second.stderr
    assert second.stdout[second.stdout.index("Validation loss") :] == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--text", "nowhere.txt"), "There is no such text"),
        (("train", "--text", "x", "--task", "copy"), "A run learns a task or text"),
        (("train", "--text", "DAMAGED"), "byte 0xff at offset 3"),
        (("data", "EMPTY"), "A file of the text is empty"),
        (("data", "DAMAGED", "--tokenizer", "gpt2"), "use 'hf:gpt2'"),
        (("data", "DAMAGED", "--split", "often"), "Unknown way to split"),
    ],
)
def test_a_mistake_is_one_line(epan: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "damaged.txt").write_bytes(b"abc\xff")
    (tmp_path / "empty.txt").write_bytes(b"")
    places = {"DAMAGED": str(tmp_path / "damaged.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    result = epan(*(places.get(argument, argument) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.building"))
