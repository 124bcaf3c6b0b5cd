"""One run in several processes: the numbers of one process, one record, and an end that all agree on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "several.py"
SCENARIOS = (
    "two_processes_give_the_numbers_of_one",
    "two_processes_with_accumulation",
    "a_process_has_dropout_of_its_own",
    "one_process_keeps_the_record_and_tests",
    "a_signal_to_any_process_stops_all_and_the_run_goes_on_with_the_same_bits",
    "a_mistake_is_one_for_all",
    "a_number_that_is_not_finite_names_the_process",
)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def test_runs_in_several_processes() -> None:
    """Every scenario of the script, in one process that has done nothing else."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split("passed ")[1:] == [f"{name}\n" for name in SCENARIOS]


COMMAND = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
OPTIONS = [
    "--task", "copy", "--lengths", "2,4", "--test-lengths", "4", "--test-sequences", "2", "--device", "cpu", "--set", "model.options.layers=1",
    "--set", "model.options.width=8", "--set", "model.options.heads=2", "--set", "model.options.persistent_size=4",
]  # fmt: skip


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    port = str(20000 + os.getpid() % 20000)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--master-port", port, "-m", "epan", "train", *OPTIONS, *arguments], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_command_runs_under_torchrun_and_one_process_speaks(tmp_path: Path) -> None:
    done = torchrun("--steps", "4", "--batch", "4", "--out", str(tmp_path / "run"))
    out, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    assert out.count("saved in") == 1
    assert "Finished 4 steps" in out


@pytest.mark.slow
def test_a_mistake_in_the_command_is_told_once(tmp_path: Path) -> None:
    wrong = torchrun("--steps", "4", "--batch", "3", "--out", str(tmp_path / "other"))
    _, errors = wrong.communicate(timeout=200)
    assert wrong.returncode != 0
    assert len(re.findall(r"^epan: The batch cannot be split", errors, re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_death_of_a_process_ends_the_run_and_is_named(tmp_path: Path, parallel: str) -> None:
    run = tmp_path / "run"
    process = torchrun(
        "--steps", "100000", "--batch", "4", "--out", str(run), "--set", "log_every=1", "--set", f"parallel={parallel}"
    )
    try:
        end = time.monotonic() + 120
        while not (run / "record.jsonl").exists() or '"kind": "step"' not in (run / "record.jsonl").read_text():
            assert time.monotonic() < end, "no step"
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("children of processes are not told here")
        victim = next(
            int(child) for child in children.read_text().split()
            if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_RANK=", b"")
        )  # fmt: skip
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        _, errors = process.communicate(timeout=100)
        assert time.monotonic() - started < 60
        assert process.returncode != 0
        assert re.search(r"local_rank: 1|rank *: 1", errors), errors[-2000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert json.loads((run / "record.jsonl").read_text().splitlines()[0])["kind"] == "run"
