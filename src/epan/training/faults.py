"""Who made a number that is not finite: names the module or the parameters, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

from epan.nn.heads import PerHead
from epan.training.sharding import whole

__all__ = ["blame_forward", "blame_gradient"]


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _finite(value: object) -> bool:
    return all(bool(t.isfinite().all()) for t in _tensors(value) if t.is_floating_point() or t.is_complex())


def _count_bad(tensor: torch.Tensor) -> str:
    return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values"


def _count_heads(tensor: torch.Tensor, dim: int) -> str:
    """In which heads, ``dim`` of the tensor, there are such values."""
    bad = (~tensor.isfinite()).movedim(dim, 0).flatten(1).any(dim=1) if tensor.dim() > 1 else ~tensor.isfinite()
    heads = bad.nonzero().flatten().tolist()
    shown = ", ".join(map(str, heads[:8])) + (", …" if len(heads) > 8 else "")
    return f"head{'s' * (len(heads) > 1)} {shown} of {len(bad)}"


def _heads_of(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> str:
    """The heads of a parameter of that name, or of its gradient, in brackets; nothing if it belongs to none."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    return f" ({_count_heads(tensor, 0)})" if isinstance(module, PerHead) and own in module.per_head else ""


def blame_forward(model: torch.nn.Module, forward: Callable[[], object]) -> str | None:
    """Which parameter, or else which module's output, is the first that is not finite in ``forward()``; None if none.

    Processes that share the weights must ask together. ``forward`` runs the model once more without gradient; a module is
    judged when it returns, inner ones before outer ones.
    """
    for name, parameter in model.named_parameters():
        full = whole(parameter)
        if not _finite(full):
            return f"parameter {name!r} itself is not finite ({_count_bad(full)}){_heads_of(model, name, full)}"
    guilty: list[str] = []

    def watch(name: str, kind: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            # Thresholds of -inf are no fault, so only what flows on (the first tensor of a tuple) is judged.
            first = output[0] if isinstance(output, tuple) and output else output
            if not guilty and not _finite(first):
                told = f"the output of module {name!r} ({kind}) is the first that is not finite"
                if isinstance(module, PerHead) and module.per_head_output and isinstance(first, torch.Tensor):
                    told += f", in {_count_heads(first, 1)}"
                guilty.append(told)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            handle = module.register_forward_hook(watch(name or "model", type(module).__name__))
            hooks.callback(handle.remove)
        forward()
    return guilty[0] if guilty else None


def blame_gradient(model: torch.nn.Module) -> str:
    """Which parameters have a gradient that is not finite, the one closest to the loss first."""
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    bad = {name: grad for name, grad in grads.items() if not _finite(grad)}
    if not bad:
        return "every gradient is finite; only their norm overflowed"
    # A bad value spreads from the loss towards the input, so the last parameter met is where it appeared first.
    shown = ", ".join(f"{name!r}{_heads_of(model, name, bad[name])}" for name in list(bad)[::-1][:3])
    return f"the gradient of {shown}{' and others' if len(bad) > 3 else ''} is not finite ({len(bad)} parameters)"
