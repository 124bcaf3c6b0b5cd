"""Pictures of one test sequence of RegBench: its automaton, and what a trained model predicts along it."""

from __future__ import annotations

from pathlib import Path

import torch

from epan.errors import EpanError
from epan.metrics import DivergenceMeter
from epan.report.figures_automata import automaton, prediction
from epan.tasks.regbench import FIRST, RegBench
from epan.training import RunConfig, records
from epan.training.loading import autocast, build_task, find_device, load

__all__ = ["show"]

LETTERS = "abcdefghijklmnopqr"


def show(run: Path, out: Path, sequence: int, part: slice, length: int, device: str = "auto") -> list[str]:
    """Draw into the folder ``out``; returns what was drawn, and how good the model is on the whole sequence.

    Parameters
    ----------
    run: the run folder; its newest checkpoint is taken.
    sequence: number of the test sequence, of the seed of the run's own tests.
    part: tokens of the sequence to show. length: most words of a sequence.

    Raises
    ------
    EpanError: no such run, a run of another task, no such sequence or no such tokens.
    """
    config = RunConfig.from_dict(records.header(records.read(run), run)["config"])
    task = build_task(config)
    if not isinstance(task, RegBench):
        raise EpanError("The run has not learnt automata", found=f"task {task.name!r}", allowed=RegBench.name)
    if sequence < 0:
        raise EpanError("There is no such sequence", found=sequence, allowed="0 or more")
    drawn, place = (config.evaluation.seed, 0, 1, length), find_device(device)
    batch = task.sample(*drawn, split="test", first=sequence)
    truth = task.truth(*drawn, split="test", first=sequence)
    automata, states = task.states(*drawn, "test", first=sequence)
    end = int(batch.loss_mask[0].nonzero()[-1]) + 1
    shown = range(end)[part]
    if not shown:
        raise EpanError("The sequence has no such tokens", found=f"{part.start} to {part.stop}", allowed=f"0 to {end}")
    model = load(run, device=place)
    with torch.no_grad(), autocast(config.precision, place):
        logits = model(batch.tokens[:, : end - 1].to(place)).float().cpu()
    # The first token has no prediction.
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
    meter = DivergenceMeter()
    meter.add(logits, truth.probabilities[:, :end], truth.scored[:, :end], truth.among)
    machine = automata.edges(0)
    alphabet = sorted({letter for edges in machine for letter in edges})
    predicted = logits[0].masked_fill(~truth.among, -torch.inf).softmax(-1)[:, FIRST:][:, alphabet]
    letters = [token - FIRST for token in batch.tokens[0, :end].tolist()]
    may_come = [
        [alphabet.index(letter) for letter in machine[state]] if scored else []
        for state, scored in zip(states[0, :end].tolist(), truth.scored[0, :end].tolist(), strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    named = [{LETTERS[letter]: target for letter, target in edges.items()} for edges in machine]
    pictures = [
        automaton(named, out, name=f"automaton-{sequence}", title=f"Automaton of test sequence {sequence}"),
        prediction(
            [LETTERS[letters[t]] if letters[t] >= 0 else None for t in shown],
            predicted[shown.start : shown.stop].tolist(),
            [may_come[t] for t in shown],
            [LETTERS[letter] for letter in alphabet],
            out,
            first=shown.start,
            name=f"prediction-{sequence}",
            title=f"{config.label}: test sequence {sequence}",
        ),
    ]
    found = meter.result()
    said = f"accuracy {found['accuracy']:.1%}, TVD {found['tvd']:.3f} on the {int(truth.scored.sum())} letters"
    return [*(str(out / f"{picture.name}.png") for picture in pictures), f"test sequence {sequence}: {said}"]
