"""The commands: name, where it is found, what it does. Nothing is imported to list them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


class Command(NamedTuple):
    """``module:function`` and one line for the help."""

    target: str
    summary: str


COMMANDS = {
    "demo": Command("epan.cli.demo:demo", "Train five attention methods on a small task and write a comparison."),
    "train": Command("epan.cli.train:train", "Train one model on one task or on text."),
    "data": Command("epan.cli.data:data", "Turn text into tokens, or show those that are there."),
    "eval": Command("epan.cli.eval:evaluate", "Test a trained run, also on lengths it never saw."),
    "generate": Command("epan.cli.generate:generate", "Let a trained model go on from a prompt, token by token."),
    "sweep": Command("epan.cli.sweep:sweep", "Train many runs that a Python file lists, several at a time."),
    "report": Command("epan.cli.report:report", "Make one HTML page with figures and tables from run records."),
    "verify": Command("epan.cli.verify:verify", "Check that checkpoints and records on the disk are whole."),
    "bench": Command("epan.cli.bench:bench", "Time attention on this machine, or tune the fused kernels for its GPU."),
    "doctor": Command("epan.cli.doctor:doctor", "Check this installation: versions, device, backends, self-tests."),
}
