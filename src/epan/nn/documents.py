"""Documents that follow one another in the rows of a batch, and what keeps a layer from reading across them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._modes import is_traced
from ..normalizations.base import map_stats
from ..ops import Stats

__all__ = ["FORGET", "Documents", "begin_anew", "pack", "starts_after", "unpack", "unpack_stats"]

# A rate of a leaky average at which nothing is left of what was before: e^−λ is zero in every dtype, and sums stay finite.
FORGET = 1e4


class Documents(NamedTuple):
    """Where the documents of a batch of tokens begin.

    Attributes
    ----------
    begins: (B, T) bool; the first token of each row begins one, too.
    position: (B, T) int64, place of each token in its document, from 0.
    offsets: ends of all documents, row after row, int32, as :func:`epan.attention_varlen` takes them; on a GPU, whose number
        of documents is not waited for, padded with empty ones.
    """

    begins: Tensor
    position: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, tokens: Tensor, token: int | None) -> Documents | None:
        """The documents of tokens (B, T), each begun by ``token``; None without such a token, or without tokens."""
        if token is None or tokens.numel() == 0:
            return None
        length, total = tokens.shape[1], tokens.numel()
        place = torch.arange(length, device=tokens.device)
        begins = (tokens == token) | (place == 0)
        position = place - torch.where(begins, place, 0).cummax(dim=1).values
        if tokens.is_cuda or is_traced():
            index = torch.arange(total, device=tokens.device)
            starts = torch.where(begins.flatten(), index, total).sort().values
        else:
            starts = begins.flatten().nonzero().squeeze(1)
        end = starts.new_full((1,), total)
        return cls(begins, position, torch.cat([starts, end]).to(torch.int32))


def pack(x_BHTD: Tensor) -> Tensor:
    """(B, H, T, D) as (B·T, H, D), row after row."""
    return x_BHTD.transpose(0, 1).flatten(1, 2).transpose(0, 1)


def unpack(x: Tensor, batch: int) -> Tensor:
    """(B·T, H, …) as (B, H, T, …): the inverse of :func:`pack`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def unpack_stats(stats: Stats, batch: int) -> Stats:
    """Fields of shape (B·T, H) as (B, H, T)."""
    return map_stats(lambda field: unpack(field, batch), stats)


def begin_anew(rate: Tensor, begins: Tensor) -> Tensor:
    """A rate of a leaky average, (H,) or (B, H, T), as one of each step, (B, H, T), that forgets where a document begins."""
    each = rate[None, :, None] if rate.dim() == 1 else rate
    return torch.where(begins[:, None], FORGET, each)


def starts_after(begins: Tensor, before: Tensor, first: int) -> Tensor:
    """Where the document of each new token began, (B, t), in a sequence whose new tokens come after ``first`` others.

    Parameters
    ----------
    begins: (B, t) bool, whether a new token begins a document. before: (B,), where the document began before them.
    """
    place = torch.arange(first, first + begins.shape[1], device=begins.device)
    return torch.maximum(before[:, None], torch.where(begins, place, 0)).cummax(dim=1).values
