"""What every model offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .._modes import is_traced
from ..errors import EpanError
from ..kernels import Gaussian, Kernel
from ..ops import Stats

__all__ = ["LanguageModel", "make_embedding"]

# Tokens of a vocabulary whose one-hot matrix is small beside the activations.
_FEW_TOKENS = 512


class LanguageModel(nn.Module, ABC):
    """A causal model of token sequences.

    ``model(tokens)`` gives logits for the next token at every position; :meth:`init_cache` and :meth:`step` give the
    same logits piece by piece. No parameter or buffer depends on the length, and no call changes the state.

    Attributes
    ----------
    layers: the blocks, one after the other.
    gradient_checkpointing: whether a forward pass with gradient keeps the inputs of each block alone, so that the backward
        pass computes the block again: the same loss and gradient, dropout included, in less memory and more time.
    output_kernel: whose adaptive weights of the logits are the probabilities of the next token: those of the loss that the
        model is trained with. The Gaussian, that is softmax and cross-entropy, unless set otherwise.
    """

    config: Any
    layers: nn.ModuleList
    gradient_checkpointing: bool = False
    output_kernel: Kernel = Gaussian()

    @abstractmethod
    def forward(self, tokens: Tensor, return_stats: bool = False) -> Tensor | tuple[Tensor, dict[str, Stats]]:
        """Logits (B, T, V) of tokens (B, T); with ``return_stats`` also ``Stats`` (B, H, T) by layer name."""

    @abstractmethod
    def init_cache(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, ...]:
        """The cache before the first token, one entry per layer; device and dtype are the model's unless given."""

    @abstractmethod
    def step(self, tokens: Tensor, cache: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Logits (B, t, V) of the next tokens (B, t), and the cache after them; the cache passed in stays valid."""

    @abstractmethod
    def bandwidths(self) -> dict[str, Tensor]:
        """The current inverse temperature β of each head, (H,), by layer name; detached."""

    def begins(self, tokens: Tensor) -> Tensor | None:
        """Which of the next tokens (B, t) begin a document; None for a model that knows no documents."""
        token = self.config.document_token
        return None if token is None else tokens == token

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """``block(*inputs)``, as ``gradient_checkpointing`` says."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: parameters of fewer than two dimensions get no weight decay."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]


class Embedding(nn.Embedding):
    """The embedding of tokens; with deterministic algorithms on a GPU, few tokens have their gradient by a matrix product.

    Torch adds up the rows of a token one after the other then, which for some dozens of tokens takes longer than all else.
    """

    def forward(self, input: Tensor) -> Tensor:
        few = self.num_embeddings <= _FEW_TOKENS and self.weight.is_cuda
        if few and torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
            return _Rows.apply(self.weight, input)
        return super().forward(input)


class _Rows(torch.autograd.Function):
    """Rows of a matrix; the gradient is that of a product with the matrix of zeros and ones that picks them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = weight.shape[0]
        return F.embedding(index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        picks = index.reshape(-1, 1) == torch.arange(ctx.count, device=index.device)
        # A compiled backward pass is under the autocast of the forward pass, which would round the sums.
        with torch.autocast(grad.device.type, enabled=False):
            return picks.to(grad.dtype).T @ grad.reshape(-1, grad.shape[-1]), None


def make_embedding(vocab_size: int, width: int) -> nn.Embedding:
    """A token embedding of standard deviation 1/√width."""
    embedding = Embedding(vocab_size, width)
    nn.init.normal_(embedding.weight, std=1 / math.sqrt(width))
    return embedding


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Raise EpanError unless tokens are int64 or int32, of shape (B, T), and from 0 to ``vocab_size`` − 1.

    The range is checked on the CPU, in plain execution: a look at values would break tracing and make a GPU wait.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
        found = (
            f"{tokens.dtype} of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        )
        raise EpanError("Tokens must be an int64 or int32 tensor of shape (batch, length)", found=found)
    if tokens.device.type != "cpu" or tokens.numel() == 0 or is_traced():
        return
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise EpanError(
            "A token is outside the vocabulary",
            found=low if low < 0 else high,
            allowed=f"0 to {vocab_size - 1}",
            fix="use the tokens of the task that the model was made for, or build it with a larger vocab_size",
        )
