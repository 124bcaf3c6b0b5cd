"""In which mode torch runs: plain execution may take short cuts that recording and tracing may not."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

__all__ = ["is_exported", "is_plain", "is_traced", "is_transformed"]

# Modes in which tensors hold no numbers or every step is recorded; others, such as counters of operations, only watch.
_INFRA_MODES = ("FAKE", "PROXY", "FUNCTIONAL")


def is_transformed() -> bool:
    """True under a functorch transform (vmap, jvp, grad, …) and under forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_exported() -> bool:
    """True while torch.export traces. (torch.compiler.is_exporting() says so of torch.compile, too, in torch 2.11.)"""
    return torch.compiler._is_exporting_flag


def is_traced() -> bool:
    """True under torch.compile, torch.export, fake tensors, functorch transforms and forward-mode differentiation."""
    if torch.compiler.is_compiling() or is_transformed():
        return True
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(getattr(keys, name)) is not None for name in _INFRA_MODES)


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """True if nothing is traced and no gradient is recorded for any of ``tensors``."""
    if is_traced():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
