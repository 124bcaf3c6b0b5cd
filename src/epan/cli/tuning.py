"""The search for launch parameters of the fused kernels that are fastest on the GPU of this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from epan.cli.output import lengths, print_table
from epan.errors import EpanError, unknown_name

__all__ = ["tune"]

LARGEST_SIZE = 256
#: Share of the time that has to be gained before launch parameters are changed.
NOISE = 0.02
#: What Triton raises for launch parameters that a GPU cannot take.
UNFIT = ("OutOfResources", "CompilationError", "PTXASError")

Config = dict[str, int]


def tune(
    schedules: Sequence[str],
    sizes: Sequence[str],
    dtypes: Sequence[str],
    seconds: float,
    out: Path | None,
    dry: bool,
) -> int:
    """Times every candidate of every schedule, head size and dtype, and saves the fastest.

    Parameters
    ----------
    schedules: names; none for all. sizes: head sizes as text; none for 64 and 128. dtypes: none for both of 16 bits.
    seconds: of timing per candidate.
    out: the file; None for the one that epan reads on this kind of GPU, where it stands above what is shipped.
    dry: nothing is written.

    Raises
    ------
    EpanError: there is no GPU or no Triton; an unknown schedule; a head size out of range; no candidate ran.
    """
    import torch

    chosen_sizes = lengths(sizes, "--sizes", "64,128") or (64, 128)
    if max(chosen_sizes) > LARGEST_SIZE:
        raise EpanError("--sizes goes too far", found=max(chosen_sizes), allowed=f"head sizes up to {LARGEST_SIZE}")
    if not torch.cuda.is_available():
        raise EpanError(
            "epan bench tune times the fused kernels, and torch finds no NVIDIA GPU",
            found=f"torch {torch.__version__}",
            fix="run it on a machine with one; epan bench quick works here",
        )
    if importlib.util.find_spec("triton") is None:
        raise EpanError("epan bench tune needs Triton, which is not installed", fix="pip install triton")
    from epan._cache import tuned_file
    from epan.ops.triton import tuning

    for schedule in schedules:
        if schedule not in tuning.SCHEDULES:
            raise unknown_name("schedule", schedule, tuning.SCHEDULES)
    device = torch.cuda.get_device_name()
    path = out or tuned_file(device)
    current = tuning.load()
    found: dict[str, Config] = {}
    rows = []
    print(f"Tuning on {device}", flush=True)
    for schedule in schedules or tuning.SCHEDULES:
        for size in chosen_sizes:
            for dtype in dtypes or ("bfloat16", "float16"):
                key = f"{schedule}/{size}/{dtype}"
                times = _times(schedule, size, dtype, current.get(key), seconds)
                if not times:
                    rows.append([key, "-", "-", "-", "no candidate runs here"])
                    continue
                before = next((ms for ms, config in times if config == current.get(key)), None)
                best, config = min(times, key=lambda pair: pair[0])
                # A difference within the noise is no reason to leave what is used now.
                if before is not None and best > before * (1 - NOISE):
                    best, config = before, current[key]
                found[key] = config
                shown = " ".join(f"{name}={value}" for name, value in config.items())
                was, gain = ("-", "-") if before is None else (f"{before:.3f}", f"{before / best:.2f}")
                rows.append([key, was, f"{best:.3f}", gain, shown])
                print(f"{key}: {shown}", flush=True)
    print_table(("kernel/size/dtype", "ms before", "ms now", "gain", "launch parameters"), rows)
    if not found:
        raise EpanError("No candidate ran, so nothing was saved", fix="epan doctor says what is installed")
    if not dry:
        tuning.save(path, found)
        print(f"Saved to {path}" + ("" if out is None else f"; epan reads {tuned_file(device)}"))
    return 0


def _times(schedule: str, size: int, dtype: str, current: Config | None, seconds: float) -> list[tuple[float, Config]]:
    """(ms, launch parameters) of every candidate that runs, and of what is used now."""
    import torch

    from epan.ops.triton import tuning

    configs: list[Config] = list(tuning.candidates(schedule))
    if current is not None and current not in configs:
        configs.append(current)
    times = []
    for config in configs:
        try:
            ms = float(tuning.measure(schedule, size, getattr(torch, dtype), config, seconds=seconds))
            times.append((ms, config))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        except Exception as error:
            # A candidate may ask for more shared memory or registers than this GPU has; anything else is a fault.
            if type(error).__name__ not in UNFIT:
                raise
    return times
