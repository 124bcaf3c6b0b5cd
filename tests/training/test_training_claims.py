"""Claims on run folders: one owner at a time, whoever dies, whatever the clocks say."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epan.errors import EpanError
from epan.training import Progress, RunConfig, StepInfo, claims, records, train
from epan.training.checkpoint import list_checkpoints

posix = pytest.mark.skipif(os.name == "nt", reason="processes are asked for by POSIX signals")


def foreign(token: str = "0") -> claims.Holder:
    """A process of another machine."""
    return claims.Holder("elsewhere", 42, "7", "another", token)


def forge(run: Path, holder: claims.Holder) -> Path:
    """The claim of a holder as it would lie there."""
    (run / claims.NAME).mkdir(parents=True)
    (run / claims.NAME / holder.name).touch()
    return run / claims.NAME / holder.name


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a claim on ``tmp_path / "run"`` until it is killed."""
    (tmp_path / "run").mkdir()
    code = "import sys, time, pathlib; from epan.training import claims; c = claims.take(pathlib.Path(sys.argv[1])); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "print(c is not None, flush=True); time.sleep(600)", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(claims.time, "monotonic", made.monotonic)
    return made


def test_one_owner_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    first = claims.take(tmp_path)
    assert first is not None
    assert claims.take(tmp_path) is None
    seen = claims.Watch(tmp_path).look()
    assert (seen.state, seen.holder) == ("held", first.holder)
    assert (first.holder.pid, first.holder.gone) == (os.getpid(), False)
    first.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert claims.Watch(tmp_path).look().state == "free"


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_want_it_one_gets_it(tmp_path: Path, stale: bool) -> None:
    many, rounds = 12, 25
    gate = threading.Barrier(many)
    won: list[list[claims.Claim]] = [[] for _ in range(rounds)]

    def want() -> None:
        for number in range(rounds):
            run = tmp_path / str(number)
            gate.wait()
            claim = claims.take(run, foreign() if stale else None)
            if claim is not None:
                won[number].append(claim)

    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        if stale:
            forge(tmp_path / str(number), foreign())
    threads = [threading.Thread(target=want) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(claims_won) for claims_won in won] == [1] * rounds
    for number, (claim,) in enumerate(won):
        assert os.listdir(tmp_path / str(number) / claims.NAME) == [claim.holder.name]
        claim.release()
        assert list((tmp_path / str(number)).iterdir()) == []


@posix
def test_two_are_never_inside_at_once(tmp_path: Path) -> None:
    """Processes that claim, work and die or let go, over and over: whoever works finds nobody else at work."""
    code = """
import os, pathlib, random, sys
from epan.training import claims
run, chance = pathlib.Path(sys.argv[1]), random.Random(int(sys.argv[2]))
done = 0
while done < 60:
    watch = claims.Watch(run)
    seen = watch.look()
    claim = claims.take(run, seen.holder) if seen.state in ("free", "stale") else None
    if claim is None:
        continue
    done += 1
    inside = os.open(run.parent / "inside", os.O_CREAT | os.O_EXCL)
    os.close(inside)
    os.unlink(run.parent / "inside")
    if chance.random() < 0.3:
        # One that dies with its claim; a child, for the next round.
        claim._over.set()
        child = os.fork()
        if child == 0:
            passed = claims.hand_over(run, claim.holder.name)
            os._exit(0 if passed else 1)
        assert os.waitpid(child, 0)[1] == 0
    else:
        claim.release()
print(done)
"""
    (tmp_path / "run").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "run"), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for process in processes:
        said, complaint = process.communicate(timeout=120)
        assert (process.returncode, said.strip()) == (0, "60"), complaint
    claims.discard(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_killed_claimant_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / claims.NAME).mkdir()
    dead = dataclasses.replace(claims.Holder.here(), started="1")
    (tmp_path / f"{claims.NAME}-{dead.name}").mkdir()
    claim = claims.take(tmp_path)
    assert claim is not None
    assert [item.name for item in tmp_path.iterdir()] == [claims.NAME]
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_beat_is_a_change_and_not_a_time(tmp_path: Path, clock: Clock) -> None:
    file = forge(tmp_path, foreign())
    watch = claims.Watch(tmp_path, patience=12.0)
    assert watch.look() == claims.Sighting("unknown", foreign())
    # The clock of the other machine is a year behind, then one ahead.
    for beat in (-3e7, 3e7):
        clock.now += 3
        os.utime(file, (time.time() + beat,) * 2)
        assert watch.look().state == "held"
    found = []
    for _ in range(5):
        clock.now += 3
        found.append(watch.look().state)
    assert found == ["held", "held", "held", "stale", "stale"]


def test_a_time_in_which_nobody_looked_does_not_count(tmp_path: Path, clock: Clock) -> None:
    forge(tmp_path, foreign())
    watch = claims.Watch(tmp_path, patience=12.0)
    watch.look()
    clock.now += 10_000
    assert watch.look().state == "unknown"


def test_another_claim_in_its_place_is_a_sign_of_life(tmp_path: Path) -> None:
    file = forge(tmp_path, foreign())
    watch = claims.Watch(tmp_path)
    watch.look()
    os.rename(file, file.with_name(foreign("1").name))
    assert watch.look() == claims.Sighting("held", foreign("1"))


@posix
def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    seen = claims.Watch(tmp_path / "run").look()
    assert seen.state == "held"
    assert seen.holder is not None
    assert seen.holder.pid == other.pid
    # Not yet waited for by its parent, it is dead all the same.
    other.kill()
    deadline = time.monotonic() + 20
    while claims.Watch(tmp_path / "run").look().state != "stale" and time.monotonic() < deadline:
        time.sleep(0.01)
    claim = claims.acquire(tmp_path / "run", tell=lambda text: pytest.fail(text))
    claim.release()


@posix
def test_a_process_that_got_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    reused = dataclasses.replace(claims.Holder.here(), started="1")
    if not claims.Holder.here().started:
        pytest.skip("this system does not tell when a process started")
    forge(tmp_path, reused)
    assert claims.Watch(tmp_path).look().state == "stale"


def test_the_owner_notices_that_it_lost_the_run(tmp_path: Path) -> None:
    claim = claims.take(tmp_path)
    assert claim is not None
    claim.check()
    later = claims.take(tmp_path, claim.holder)
    assert later is not None
    claim.beat()
    with pytest.raises(claims.ClaimLost, match=rf"taken over.*process {os.getpid()} on "):
        claim.check()
    claim.release()
    later.beat()
    later.check()
    later.release()


def test_a_claim_is_handed_over_once(tmp_path: Path) -> None:
    mine = claims.take(tmp_path)
    assert mine is not None
    yours = claims.hand_over(tmp_path, mine.holder.name)
    for name in (mine.holder.name, "nonsense"):
        with pytest.raises(claims.ClaimLost, match="Another process trains"):
            claims.hand_over(tmp_path, name)
    mine.release()
    assert claims.Watch(tmp_path).look().holder == yours.holder
    yours.release()


@posix
def test_two_processes_do_not_train_in_one_folder(
    tiny: Callable[..., RunConfig], tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    for resume in ("never", "auto"):
        with pytest.raises(EpanError, match=rf"Another process trains.*process {other.pid} on ") as caught:
            train(tiny(), tmp_path / "run", resume=resume)  # type: ignore[arg-type]
        assert not isinstance(caught.value, claims.ClaimLost)
    assert [item.name for item in (tmp_path / "run").iterdir()] == [claims.NAME]
    other.kill()
    other.wait()
    assert train(tiny(), tmp_path / "run").status == "finished"
    assert not (tmp_path / "run" / claims.NAME).exists()


def test_a_silent_owner_elsewhere_is_waited_for_and_then_replaced(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Progress):
        events: list[str] = []  # noqa: RUF012

        def on_event(self, message: str) -> None:
            self.events.append(message)

    forge(tmp_path / "run", foreign())
    monkeypatch.setattr(claims, "PATIENCE", 1.0)
    began = time.monotonic()
    assert train(tiny(), tmp_path / "run", progress=Told()).status == "finished"
    assert time.monotonic() - began >= 1.0
    assert Told.events[0].startswith("process 42 on elsewhere has claimed the run; waiting up to 1 s")


def test_a_run_that_was_taken_over_writes_nothing_more(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    class Stolen(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 3:
                holder = claims.Watch(tmp_path / "run").look().holder
                assert holder is not None
                file = tmp_path / "run" / claims.NAME / holder.name
                os.rename(file, file.with_name(foreign().name))
                # What the next beat will find.
                monkey.beat()

    made: list[claims.Claim] = []
    original = claims.Claim.__init__

    def remember(self: claims.Claim, run: Path, holder: claims.Holder) -> None:
        original(self, run, holder)
        made.append(self)

    class Monkey:
        def beat(self) -> None:
            made[0].beat()

    monkey = Monkey()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.Claim, "__init__", remember)
        with pytest.raises(claims.ClaimLost, match="process 42 on elsewhere"):
            train(tiny(checkpoint_every=2, log_every=1), tmp_path / "run", progress=Stolen())
    entries = records.read(tmp_path / "run")
    assert [entry["step"] for entry in entries if entry["kind"] == "step"] == [1, 2, 3]
    assert not [entry for entry in entries if entry["kind"] in ("end", "event")]
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert os.listdir(tmp_path / "run" / claims.NAME) == [foreign().name]
