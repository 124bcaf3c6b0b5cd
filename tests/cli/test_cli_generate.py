"""``epan generate``: answers of tasks, text as it grows, pipes, Ctrl-C, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import epan
from epan.cli import main
from epan.training import RunConfig, TaskConfig
from epan.training.loading import LoadedRun


@pytest.fixture(scope="module")
def sparse(epan: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained with the loss of a compact kernel."""
    folder = tmp_path_factory.mktemp("runs") / "sparse"
    result = epan("train", *tiny, "--loss", "biweight", "--steps", "6", "--out", str(folder))
    assert result.returncode == 0, result.stderr
    assert "targets with p=0" in result.stdout
    return folder


def test_a_run_keeps_its_loss(sparse: Path) -> None:
    lines = [json.loads(line) for line in (sparse / "record.jsonl").read_text().splitlines()]
    assert lines[0]["training"]["loss"] == "biweight"
    tests = [line for line in lines if line["kind"] == "eval"]
    assert tests
    assert all({"zero_probability", "cross_entropy", "cross_entropy_positive"} <= line.keys() for line in tests)
    assert epan.load(sparse).output_kernel == epan.Biweight()


def test_a_question_of_the_task_is_answered_and_judged(trained: Any, epan: Any) -> None:
    folder, _ = trained
    result = epan("generate", str(folder), "--samples", "2", "--length", "3", "--seed", "5")
    assert result.returncode == 0, result.stderr
    for number, text in enumerate(result.stdout.split("---")[1:]):
        title, shown, verdict = text.strip().splitlines()
        assert title == f"{number + 1} of 2"
        prompt, _, answer = shown.partition(" <sep>")
        expected = " ".join([*prompt.split()[1:], "<eos>"])
        assert len(expected.split()) == 4
        assert verdict == ("right" if answer.strip() == expected else f"wrong: the answer is {expected}")
    assert "tokens/s, step 10 of" in result.stderr
    assert epan("generate", str(folder), "--samples", "2", "--length", "3", "--seed", "5").stdout == result.stdout


def test_json_has_all_of_it_and_a_seed_repeats_it(sparse: Path, capsys: Any) -> None:
    arguments = ("generate", str(sparse), "--prompt", "3 1 2", "--temperature", "1.5", "--top-p", "0.9", "--json")

    def said(*more: str) -> list[dict[str, Any]]:
        assert main.run([*arguments, *more]) == 0
        found = capsys.readouterr()
        assert found.err == ""
        return [json.loads(line) for line in found.out.splitlines()]

    lines = said("--samples", "3", "--seed", "4")
    assert [line["seed"] for line in lines] == [4, 5, 6]
    for line in lines:
        assert (line["prompt"], line["answer"]) == ("<bos> 3 1 2 <sep>", "3 1 2 <eos>")
        assert (line["kernel"], line["temperature"], line["top_p"], line["step"]) == ("biweight", 1.5, 0.9, 6)
        assert line["right"] == (line["text"] == line["answer"])
        assert line["ended"] == (line["tokens"][-1] == 3)
    assert said("--seed", "5") == lines[1:2]
    assert said("--kernel", "gaussian")[0]["kernel"] == "gaussian"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "3 x"], "No word of the task 'copy'. Found: 'x'"),
        (["--prompt", ""], "Fix: e.g. --prompt '"),
        (["--prompt", "1", "--prompt-file", "a"], "There are two prompts"),
        (["--prompt", "1", "--length", "3"], "--length is that of a test sequence"),
        (["--prompt-file", "nothing-there"], "The prompt cannot be read: No such file"),
        (["--top-p", "2"], "top_p is out of range"),
        (["--temperature", "-1"], "temperature is out of range"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--kernel", "bweight"], "Unknown output distribution 'bweight'"),
        (["--kernel", "polynomial"], "polynomial:order=5"),
        (["--length", "0"], "--length must be at least 1"),
        (["--step", "77"], "no checkpoint of that step"),
    ],
)
def test_mistakes_get_one_line(trained: Any, capsys: Any, arguments: list[str], said: str) -> None:
    assert main.run(["generate", str(trained[0]), *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err
    assert len(found.err.splitlines()) == 1


# ---------------------------------------------------------------------- text


class Bytes:
    """What a task of text offers: its bytes, and a token 256 between documents."""

    ends = (256,)

    def encode(self, text: str) -> list[int]:
        return [256, *text.encode()]

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


class Says(epan.models.LanguageModel):
    """Goes on with the bytes of one text, whatever the prompt; ``interrupts`` at one of them."""

    def __init__(self, text: str, interrupts: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.content, self.interrupts = [*text.encode(), 256], interrupts

    def forward(self, tokens: torch.Tensor, return_stats: bool = False) -> Any:
        raise NotImplementedError

    def init_cache(self, batch_size: int, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
        return (0,)

    def step(self, tokens: torch.Tensor, cache: tuple[Any, ...]) -> tuple[torch.Tensor, tuple[Any, ...]]:
        if cache[0] == self.interrupts:
            raise KeyboardInterrupt
        logits = torch.zeros(1, tokens.shape[1], 257)
        logits[..., self.content[cache[0] % len(self.content)]] = 100.0
        return logits, (cache[0] + 1,)

    def bandwidths(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``says(text)``: the run in the folder given out says this text."""

    def says(text: str, interrupts: int | None = None) -> str:
        loaded = LoadedRun(RunConfig(task=TaskConfig("text")), Bytes(), Says(text, interrupts), 9)  # type: ignore[arg-type]
        monkeypatch.setattr("epan.training.load_run", lambda *_, **__: loaded, raising=False)
        return str(tmp_path)

    return says


def test_text_follows_the_prompt_until_the_document_ends(says: Any, capsys: Any, tmp_path: Path) -> None:
    folder = says("naïve 😀")
    assert main.run(["generate", folder, "--prompt", "So "]) == 0
    found = capsys.readouterr()
    assert found.out == "So naïve 😀\n"
    assert found.err.startswith("12 tokens, ")
    assert main.run(["generate", folder, "--tokens", "3"]) == 0
    # The third one is the first half of a letter.
    assert capsys.readouterr().out == "na\N{REPLACEMENT CHARACTER}\n"
    (tmp_path / "prompt.txt").write_text("ß: ", encoding="utf-8")
    assert main.run(["generate", folder, "--prompt-file", str(tmp_path / "prompt.txt"), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["prompt"], line["text"], line["ended"]) == ("ß: ", "naïve 😀", True)
    assert "right" not in line
    (tmp_path / "prompt.txt").write_bytes(b"ab\xff")
    assert main.run(["generate", folder, "--prompt-file", str(tmp_path / "prompt.txt")]) == 2
    assert "no UTF-8 text (byte 2)" in capsys.readouterr().err


def test_text_appears_token_by_token(says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    folder = says("aé!")
    monkeypatch.setattr("epan.cli.generate._show", lambda text, _: shown.append(text))
    assert main.run(["generate", folder, "--prompt", "x"]) == 0
    assert shown == ["x", "a", "", "é", "!", "", "\n"]


def test_no_terminal_takes_text_for_a_command(says: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = says("a\x1b[2Jb\tc\r\n")
    assert main.run(["generate", folder]) == 0
    assert capsys.readouterr().out == "a\x1b[2Jb\tc\r\n\n"
    monkeypatch.setattr("epan.cli.generate.is_terminal", lambda: True)
    assert main.run(["generate", folder]) == 0
    assert capsys.readouterr().out == "a\\x1b[2Jb\tc\\r\n\n"


def test_ctrl_c_ends_the_line_and_the_command(says: Any, capsys: Any) -> None:
    assert main.run(["generate", says("word by word", interrupts=6), "--prompt", ">"]) == 130
    found = capsys.readouterr()
    assert (found.out, found.err) == (">word b\n", "epan: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="closes a pipe as POSIX does")
def test_a_reader_that_goes_ends_it_quietly(says: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main.run(["generate", says("endless"), "--samples", "1000"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="closes a pipe as POSIX does")
def test_a_process_whose_reader_goes_and_a_signal_end_it_quietly(trained: Any, surroundings: Any) -> None:
    command = [sys.executable, "-m", "epan", "generate", str(trained[0]), "--samples", "100000"]
    for stop, expected, said in (("pipe", 0, ""), ("signal", 130, "epan: interrupted\n")):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"--- 1 of")
            if stop == "pipe":
                process.stdout.close()
            else:
                process.send_signal(signal.SIGINT)
                process.stdout.read()
            assert process.stderr.read().decode() == said
        assert process.returncode == expected
