"""``epan doctor``: what is installed, what it can do, and whether everything comes out right here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json as formats
import platform
import shutil
import subprocess
import sys
from typing import Any

from epan._version import __version__
from epan.cli.output import cores
from epan.cli.selftests import CHECKS, Check
from epan.errors import LAB

__all__ = ["CHECKS", "Check", "choices", "doctor"]

EXTRAS = {
    "lab": LAB,
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "dev": ("entmax", "hypothesis", "mypy", "pytest", "ruff"),
}
OLDEST, NEWEST = (3, 11), (3, 14)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment() -> tuple[dict[str, str], bool]:
    """Versions and extras; whether Python fits."""
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    facts = {
        "epan": __version__,
        "python": platform.python_version() + ("" if fits else f"  (supported: {span})"),
        "platform": f"{platform.platform()}, {cores()} CPU cores",
    }
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        fix = f'pip install ".[{extra}]" in a checkout of epan'
        lacks = f"incomplete, no {', '.join(missing)}" if len(missing) < len(packages) else "not installed"
        facts[f"[{extra}]"] = f"{lacks}: {fix}" if missing else "installed"
    triton = _version("triton")
    facts["triton"] = triton or "not installed (only needed on an NVIDIA GPU, with CUDA builds of torch)"
    return facts, fits


def _devices() -> dict[str, str]:
    """What torch finds: its version, the device that is taken, every GPU, driver and assembler."""
    import torch

    facts = {"torch": str(torch.__version__)}
    if not torch.cuda.is_available():
        on_mps = torch.backends.mps.is_available()
        facts["device"] = "mps" if on_mps else f"cpu, {torch.get_num_threads()} threads"
        return facts
    facts["device"] = f"cuda, {torch.cuda.device_count()} GPU(s)"
    for place in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(place)
        size = f"{found.total_memory / 2**30:.0f} GiB"
        facts[f"gpu {place}"] = f"{found.name}, compute capability {found.major}.{found.minor}, {size}"
    facts["driver"] = f"{_driver() or 'unknown'}; torch is built for CUDA {torch.version.cuda}"
    facts["assembler"] = _assembler()
    return facts


def _driver() -> str | None:
    """The version of NVIDIA's driver, None where it cannot be told."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()
        return said[0] if said else None
    return None


def _assembler() -> str:
    """The assembler of the fused kernels, and whether it is recent enough."""
    try:
        from epan.ops.triton.assembler import LEAST, chosen

        path, version = chosen()
    except Exception as error:
        return f"cannot be told ({type(error).__name__}: {error})"
    found, least = (".".join(map(str, pair)) for pair in (version, LEAST))
    return f"ptxas {found}, {path}" + ("" if version >= LEAST else f" (on Hopper the fused kernels need {least})")


def choices() -> list[dict[str, str]]:
    """What ``backend="auto"`` takes for typical calls here, and why: device, call, backend, reason."""
    import torch

    from epan.kernels import Polynomial
    from epan.kernels import get as get_kernel
    from epan.normalizations import Nearest, names
    from epan.normalizations import get as get_normalization
    from epan.ops.attention import choose_backend

    biweight = get_kernel("biweight")
    rules = [*map(get_normalization, names()), Nearest(16)]
    found = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):

        def ask(call: str, size: int, dtype: torch.dtype, kernel: Any, rule: Any, device: str = device) -> None:
            query = torch.empty((1, 1, 1, size), device=device, dtype=dtype)
            backend, reason = choose_backend(query, query, kernel, rule)
            found.append({"device": device, "call": call, "backend": backend, "reason": reason})

        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for rule in rules:
                ask(f"{str(dtype).removeprefix('torch.')}, {rule.name}", 64, dtype, biweight, rule)
        adaptive = get_normalization("adaptive")
        ask("bfloat16, head size 512", 512, torch.bfloat16, biweight, adaptive)
        learnt = Polynomial(order=torch.tensor(2.0))
        ask("bfloat16, learnt order", 64, torch.bfloat16, learnt, adaptive)
        ask("float64", 64, torch.float64, biweight, adaptive)
    return found


def _choice_lines(found: list[dict[str, str]]) -> list[str]:
    """Calls with the same answer on one line."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for choice in found:
        groups.setdefault((choice["device"], choice["backend"], choice["reason"]), []).append(choice["call"])
    lines = []
    for (device, backend, reason), calls in groups.items():
        everything = sum(choice["device"] == device for choice in found) == len(calls)
        what = "every call" if everything else "; ".join(_joined(calls))
        lines += [f"  {device:<5} {backend:<7} {what}", f"                {reason}"]
    return lines


def _joined(calls: list[str]) -> list[str]:
    """``["bfloat16, adaptive", "bfloat16, fixed"]`` → ``["bfloat16 (adaptive, fixed)"]``."""
    parts: dict[str, list[str]] = {}
    for call in calls:
        dtype, _, rest = call.partition(", ")
        parts.setdefault(dtype, []).append(rest)
    return [f"{dtype} ({', '.join(rest)})" if rest != [""] else dtype for dtype, rest in parts.items()]


def _fact(name: str, value: str) -> str:
    return f"  {name:<13} {value}"


def doctor(*, json: bool = False) -> int:
    """Check this installation: versions, devices, which backend is taken and why, and self-tests.

    The exit code is 0 if everything passes and 1 if something fails.

    Parameters
    ----------
    json: print one JSON object instead.
    """
    facts, good = _environment()

    def tell(*lines: str) -> None:
        if not json:
            print("\n".join(lines), flush=True)

    tell("Environment", *(_fact(*item) for item in facts.items()))
    try:
        import torch  # noqa: F401
    except Exception as error:
        problem = f"cannot be imported ({type(error).__name__}: {error}): pip install torch"
        tell(_fact("torch", problem))
        if json:
            print(formats.dumps({"ok": False, "environment": {**facts, "torch": problem}}, indent=1))
        return 1
    devices = _devices()
    chosen = choices()
    tell(*(_fact(*item) for item in devices.items()))
    tell('Backends: "auto" takes, whatever the mask and the dropout', *_choice_lines(chosen), "Self-tests")
    outcomes = []
    for check in CHECKS:
        outcomes.append(check.run())
        tell(f"  {outcomes[-1].status}  {check.name} ({outcomes[-1].detail})")
    good = good and all(outcome.status != "FAIL" for outcome in outcomes)
    tell("Everything is in order." if good else "Something is wrong; see above.")
    if json:
        report = {
            "ok": good,
            "environment": {**facts, **devices},
            "backends": chosen,
            "checks": [dataclasses.asdict(outcome) for outcome in outcomes],
        }
        print(formats.dumps(report, indent=1))
    return 0 if good else 1
