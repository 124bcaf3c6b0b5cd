"""In which mode torch runs: plain execution may take short cuts that recording and tracing may not."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

__all__ = ["is_plain", "is_traced"]


def is_traced() -> bool:
    """True under torch.compile, torch.export, fake tensors, functorch transforms and forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return forward_ad._current_level >= 0


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """True if nothing is traced and no gradient is recorded for any of ``tensors``."""
    if is_traced():
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
