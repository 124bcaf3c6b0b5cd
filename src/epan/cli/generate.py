"""``epan generate``: what a trained model says next, token by token."""

from __future__ import annotations

import json as formats
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from epan.cli.output import is_terminal
from epan.cli.wording import in_options
from epan.errors import EpanError

if TYPE_CHECKING:
    from epan.training.loading import LoadedRun

__all__ = ["GenerateOptions", "generate"]

# Tokens that follow where nothing tells how many.
TOKENS = 200


@Parameter(name="*")
@dataclass(frozen=True)
class GenerateOptions:
    """Options of ``epan generate``."""

    prompt: Annotated[
        str | None,
        Parameter(
            help="Where to begin: text, or words of the task (default: the start of a document, or a test sequence of the task)."
        ),
    ] = None
    prompt_file: Annotated[Path | None, Parameter(help="The same from a UTF-8 file; - for standard input.")] = None
    tokens: Annotated[
        int | None, Parameter(help=f"At most so many tokens (default {TOKENS}; the answer's where there is one).")
    ] = None
    temperature: Annotated[
        float | None, Parameter(help="0 takes the likeliest token (default 1; 0 where there is an answer).")
    ] = None
    top_p: Annotated[float | None, Parameter(help="Draw from the likeliest tokens that make up this share.")] = None
    top_k: Annotated[int | None, Parameter(help="Draw from so many of the likeliest tokens.")] = None
    kernel: Annotated[
        str | None,
        Parameter(
            help="Output distribution: gaussian is softmax, biweight 1.5-entmax, … (default: that of the run's loss)."
        ),
    ] = None
    seed: Annotated[int, Parameter(help="Seed of the draws, and of the test sequence.")] = 0
    samples: Annotated[int, Parameter(help="How many; the second one is the first one of the next seed.")] = 1
    length: Annotated[
        int | None, Parameter(help="Length of the test sequence (default: the shortest of training).")
    ] = None
    step: Annotated[
        int | Literal["best"] | None,
        Parameter(help="Which checkpoint, as for epan eval (default: the newest good one)."),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto"
    json: Annotated[bool, Parameter(negative="", help="Print one JSON object for each sample instead.")] = False


@dataclass(frozen=True)
class Question:
    """A prompt, what decides how far to go, and the answer where the task knows it."""

    prompt: list[int]
    tokens: int
    given: Mapping[int, int]
    answer: list[int] | None = None


def generate(
    run: Annotated[Path, Parameter(help="The run folder, or one of its checkpoint folders.")],
    /,
    *,
    options: GenerateOptions | None = None,
) -> int:
    """Let a trained model go on from a prompt, and show each token as soon as it is there.

    Only the text goes to standard output. A task with an answer also tells whether the model found it.

    Parameters
    ----------
    run: the run folder, or one of its checkpoint folders.
    """
    options = options or GenerateOptions()
    for name in ("samples", "tokens", "length"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise EpanError(f"--{name} must be at least 1", found=value)
    if options.seed < 0:
        raise EpanError("--seed must be at least 0", found=options.seed)
    text = _prompt(options)
    from epan.training import load_run

    loaded = load_run(run, step=options.step, device=options.device)
    if isinstance(sys.stdout.errors, str) and hasattr(sys.stdout, "reconfigure"):
        # A terminal that lacks a character shows another one, and goes on.
        sys.stdout.reconfigure(errors="replace")
    count, began = 0, time.perf_counter()
    for number in range(options.samples):
        seed = options.seed + number
        question = _question(loaded, text, seed, options)
        if options.samples > 1 and not options.json:
            print(f"{'' if number == 0 else chr(10)}--- {number + 1} of {options.samples}", flush=True)
        count += _answer(loaded, question, seed, options)
    if not options.json:
        seconds = time.perf_counter() - began
        print(f"{count} tokens, {count / seconds:,.0f} tokens/s, step {loaded.step} of {run}", file=sys.stderr)
    return 0


def _prompt(options: GenerateOptions) -> str | None:
    if options.prompt is not None and options.prompt_file is not None:
        raise EpanError("There are two prompts", fix="leave out --prompt or --prompt-file")
    if options.prompt is not None and options.length is not None:
        raise EpanError("--length is that of a test sequence, and a prompt was given", fix="leave out one of them")
    if options.prompt_file is None:
        return options.prompt
    try:
        if str(options.prompt_file) == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return options.prompt_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        reason = f"it is no UTF-8 text (byte {error.start})"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise EpanError(f"The prompt cannot be read: {reason}", found=str(options.prompt_file))


def _question(loaded: LoadedRun, text: str | None, seed: int, options: GenerateOptions) -> Question:
    from epan.tasks import Task

    task = loaded.task
    if not isinstance(task, Task):
        return Question(task.encode(text or ""), options.tokens or TOKENS, {})
    if text is None:
        length = options.length or (loaded.config.lengths or task.train_lengths)[0]
        batch = task.sample(seed, 0, 1, length, split="test")
        prompt = batch.tokens[0, : int(batch.prompt_length)].tolist()
        answer = task.solve(prompt)
    else:
        prompt = task.encode(text)
        try:
            answer = task.solve(prompt)
        except EpanError as error:
            example = task.sample(seed, 0, 1, task.shortest)
            words = task.decode(example.tokens[0, 1 : int(example.prompt_length) - 1])
            fix = f"e.g. --prompt {words!r}"
            raise EpanError(error.what, found=error.found, allowed=error.allowed, fix=fix) from error
    given = {place: answer[place] for place, counts in enumerate(task.scored(answer)) if not counts}
    return Question(prompt, options.tokens or len(answer), given, answer)


def _answer(loaded: LoadedRun, question: Question, seed: int, options: GenerateOptions) -> int:
    """Show one sample; the number of its tokens."""
    from epan.models import TextStream
    from epan.models import generate as follow

    task, found = loaded.task, []
    temperature = options.temperature
    if temperature is None:
        temperature = 1.0 if question.answer is None else 0.0
    with in_options():
        stream = follow(
            loaded.model,
            question.prompt,
            tokens=question.tokens,
            temperature=temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            kernel=_kernel(options.kernel),
            seed=seed,
            stop=task.ends,
            given=question.given,
        )
    written = TextStream(task.decode)
    shown = "" if options.json else "".join([*map(written.add, question.prompt)])
    _show(shown, options)
    try:
        for token in stream:
            found.append(token)
            _show(written.add(token), options)
    except KeyboardInterrupt:
        _show("\n", options)
        raise
    _show(f"{written.end()}\n", options)
    if options.json:
        print(
            formats.dumps(_record(loaded, question, found, seed, temperature, options), ensure_ascii=False), flush=True
        )
    elif question.answer is not None:
        right = _is_right(found, question.answer)
        print("right" if right else f"wrong: the answer is {task.decode(question.answer)}", flush=True)
    return len(found)


def _kernel(text: str | None) -> Any:
    from epan.training.choices import parse_choice

    return None if text is None else parse_choice(text, "--kernel")


def _is_right(found: Sequence[int], answer: Sequence[int]) -> bool:
    return list(found) == list(answer)


def _record(
    loaded: LoadedRun, question: Question, found: list[int], seed: int, temperature: float, options: GenerateOptions
) -> dict[str, Any]:
    from epan.training.choices import choice_text

    task = loaded.task
    record: dict[str, Any] = {
        "prompt": task.decode(question.prompt),
        "text": task.decode(found),
        "tokens": found,
        "ended": bool(found) and found[-1] in task.ends,
        "seed": seed,
        "step": loaded.step,
        "temperature": temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "kernel": options.kernel or choice_text(loaded.config.loss),
    }
    if question.answer is not None:
        record |= {"right": _is_right(found, question.answer), "answer": task.decode(question.answer)}
    return record


def _show(text: str, options: GenerateOptions) -> None:
    if options.json or not text:
        return
    if is_terminal():
        # What a model writes may be anything: no terminal is to take it for a command.
        text = "".join(mark if mark.isprintable() or mark in "\n\t" else ascii(mark)[1:-1] for mark in text)
    print(text, end="", flush=True)
