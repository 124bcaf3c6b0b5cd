"""Who trains in a run folder: ``RUN/.claim/NAME``, a file whose name says whose it is, and whose time that it lives.

The folder comes into its place by one rename, which fails where another claim lies; the claim of an owner that is gone is
taken over by one rename of that very file, so that of several observers one succeeds. There are no locks, so that it
holds on file systems that machines share.

The owner touches its file every few seconds. An observer compares the time of the file with what it was before, never
with a clock of its own, and a host's name is only shown. A process of this machine is not waited for: it is there or not.
Needs no torch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from epan.errors import EpanError
from epan.training.errors import TrainingError, unusable_folder

__all__ = [
    "BEAT",
    "NAME",
    "PATIENCE",
    "Claim",
    "ClaimLost",
    "Holder",
    "Sighting",
    "Watch",
    "acquire",
    "discard",
    "hand_over",
    "take",
]

NAME = ".claim"
#: Seconds between two signs of life, and for how many without one the owner of a claim is taken for gone. File systems
#: that machines share may show a change a minute late.
BEAT, PATIENCE = 5.0, 90.0


class ClaimLost(TrainingError):
    """Another process has taken the run over, so that this one may not write there any more."""


@functools.cache
def _machine() -> str:
    """The same for processes that can ask for one another: those of one boot of one machine, in one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        content = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        content = f"{platform.node()} {uuid.getnode()}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot, "" where that is not told or it is a dead one's remains."""
    try:
        # The name in brackets may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class Holder:
    """Who holds a claim; ``name`` is that of its file and tells all of it."""

    host: str
    pid: int
    started: str
    machine: str
    token: str

    @property
    def name(self) -> str:
        return "~".join((self.host, str(self.pid), self.started, self.machine, self.token))

    @classmethod
    def here(cls) -> Holder:
        """A new one for this process."""
        host, pid = re.sub(r"[^\w.-]", "", platform.node())[:64] or "unknown", os.getpid()
        return cls(host, pid, _started(pid), _machine(), secrets.token_hex(8))

    @classmethod
    def parse(cls, name: str) -> Holder | None:
        """The holder of that name; None for what names none."""
        parts = name.split("~")
        return cls(parts[0], int(parts[1]), *parts[2:]) if len(parts) == 5 and parts[1].isdecimal() else None

    @property
    def local(self) -> bool:
        """Whether this process can see if that one exists."""
        # On Windows, asking for a process by signal 0 would end it.
        return self.machine == _machine() and os.name != "nt"

    @property
    def gone(self) -> bool:
        """Whether it is certain that the process exists no more; never told of another machine's."""
        if not self.local:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        # Another process may have got the number since.
        return bool(self.started) and self.started != _started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _read(run: Path) -> Holder | None:
    try:
        names = os.listdir(run / NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Anything else in there was left by the file system itself.
    return next((found for name in sorted(names) if (found := Holder.parse(name)) is not None), None)


@dataclass(frozen=True)
class Sighting:
    """What a look at a claim found.

    Attributes
    ----------
    state: ``free`` (nobody holds it), ``held`` (the owner lives), ``stale`` (it does not: it may be taken over), or
        ``unknown`` (not known yet: look again).
    holder: who holds it; None if free.
    """

    state: Literal["free", "held", "stale", "unknown"]
    holder: Holder | None


class Watch:
    """Finds out by repeated looks whether the owner of a run's claim lives.

    Parameters
    ----------
    run: the run folder.
    patience: seconds without a sign of life after which the owner is taken for gone.
    """

    def __init__(self, run: Path, patience: float | None = None) -> None:
        self.run, self.patience = run, PATIENCE if patience is None else patience
        self._seen: tuple[str, int] | None = None
        self._lives, self._waited, self._last = False, 0.0, time.monotonic()

    def look(self) -> Sighting:
        """What there is now."""
        holder = _read(self.run)
        now = time.monotonic()
        # A stretch in which nobody looked, or the file system was away, says nothing about the owner.
        passed, self._last = min(now - self._last, BEAT), now
        if holder is None:
            self._seen = None
            return Sighting("free", None)
        if holder.local:
            return Sighting("stale" if holder.gone else "held", holder)
        try:
            # Opening a file asks the server of a shared file system for its time.
            with (self.run / NAME / holder.name).open("rb") as file:
                seen = (holder.name, os.fstat(file.fileno()).st_mtime_ns)
        except OSError:
            return Sighting("unknown", holder)
        if seen != self._seen:
            self._lives, self._waited = self._seen is not None, 0.0
            self._seen = seen
        else:
            self._waited += passed
        if self._waited >= self.patience:
            return Sighting("stale", holder)
        return Sighting("held" if self._lives else "unknown", holder)


class Claim:
    """A claim that this process holds on a run; given up by ``release`` or at the end of a ``with`` block.

    A thread gives a sign of life every :data:`BEAT` seconds.

    Attributes
    ----------
    lost: whether another process has taken it over, or the folder is no longer there.
    """

    def __init__(self, run: Path, holder: Holder) -> None:
        self.run, self.holder, self.lost = run, holder, False
        self._file = run / NAME / holder.name
        self._over = threading.Event()
        self.beat()
        self._thread = threading.Thread(target=self._live, name="epan-claim", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while not self.lost and not self._over.wait(BEAT):
            self.beat()

    def beat(self) -> None:
        """Give a sign of life."""
        try:
            os.utime(self._file)
        except FileNotFoundError:
            self.lost = not self._over.is_set()
        except OSError:
            # A file system that is away for a moment: others see no sign, and the next one is tried again.
            pass

    def check(self) -> None:
        """Raise if the run is no longer this process's own.

        Raises
        ------
        ClaimLost: another process has taken it over, or the folder is no longer there.
        """
        if self.lost:
            other = _read(self.run)
            found = f"{other} in {self.run}" if other else f"no claim of this process in {self.run}"
            raise ClaimLost(
                "The run was taken over by another process, or its folder was moved",
                found=found,
                fix="let one process at a time train it; this one has stopped and written nothing more",
            )

    def release(self) -> None:
        """Give it up; may be called again."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._file.unlink()
        # Not empty where another has come already.
        with contextlib.suppress(OSError):
            self._file.parent.rmdir()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take(run: Path, stale: Holder | None = None) -> Claim | None:
    """One attempt to claim the run; None if another process was faster.

    Parameters
    ----------
    run: the run folder, which exists.
    stale: the holder whose claim is taken over; None where nobody holds one.

    Raises
    ------
    EpanError: the folder cannot be written.
    """
    me = Holder.here()
    try:
        taken = _pass_on(run, stale, me) if stale is not None else _put(run, me)
    except OSError as error:
        raise unusable_folder(run, error) from error
    if not taken:
        return None
    _clean(run)
    return Claim(run, me)


def _clean(run: Path) -> None:
    """Remove what processes of this machine left that were killed in the middle of a claim."""
    for path in run.glob(f"{NAME}-*"):
        left = Holder.parse(path.name.removeprefix(f"{NAME}-"))
        if left is not None and left.gone:
            shutil.rmtree(path, ignore_errors=True)


def discard(run: Path) -> None:
    """Remove the claim of a process of this machine that is gone, such as one that was killed."""
    left = _read(run)
    if left is not None and left.gone:
        with contextlib.suppress(EpanError):
            claim = take(run, left)
            if claim is not None:
                claim.release()


def hand_over(run: Path, name: str) -> Claim:
    """The claim ``name``, which the process that started this one took for it, as a claim of this process.

    Raises
    ------
    ClaimLost: a third process has it.
    """
    former, me = Holder.parse(name), Holder.here()
    if former is None or not _pass_on(run, former, me):
        raise ClaimLost("Another process trains the run now", found=f"{_read(run) or 'nobody'} in {run}")
    return Claim(run, me)


def _pass_on(run: Path, former: Holder, me: Holder) -> bool:
    own = run / NAME / me.name
    with contextlib.suppress(FileNotFoundError):
        os.rename(run / NAME / former.name, own)
    # A server whose answer got lost is asked twice, and then says that the file is not there.
    return own.exists()


def _put(run: Path, me: Holder) -> bool:
    place, new = run / NAME, run / f"{NAME}-{me.name}"
    new.mkdir()
    try:
        (new / me.name).touch()
        for _ in range(2):
            try:
                os.rename(new, place)
            except OSError as error:
                if (place / me.name).exists():
                    return True
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not place.exists():
                    raise
                # Empty, it was left by a process that died while it gave its claim up.
                with contextlib.suppress(OSError):
                    place.rmdir()
                    continue
                return False
            else:
                return True
        return False
    finally:
        shutil.rmtree(new, ignore_errors=True)


def acquire(
    run: Path, tell: Callable[[str], None], wanted: Callable[[], bool] = lambda: False, patience: float | None = None
) -> Claim:
    """Claim the run, and wait where it is not known yet whether the process lives that holds it.

    Parameters
    ----------
    run: the run folder, which exists.
    tell: is told once why it takes time.
    wanted: whether the user wants an end of it, which raises KeyboardInterrupt.
    patience: as for Watch.

    Raises
    ------
    EpanError: another process trains there; it is named. Or the folder cannot be written.
    """
    watch, told = Watch(run, patience), False
    while True:
        seen = watch.look()
        if seen.state in ("free", "stale"):
            claim = take(run, seen.holder)
            if claim is not None:
                return claim
        elif seen.state == "held":
            raise EpanError(
                "Another process trains the run in the output folder",
                found=f"{seen.holder}, in {run}",
                fix="wait for its end, or stop it first (Ctrl-C there saves), or give another folder",
            )
        elif not told:
            told = True
            tell(f"{seen.holder} has claimed the run; waiting up to {watch.patience:.0f} s to see whether it lives")
        if wanted():
            raise KeyboardInterrupt
        time.sleep(0.1)
