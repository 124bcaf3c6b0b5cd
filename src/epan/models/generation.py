"""Tokens from a trained model, one after the other, and their text as it grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import EpanError
from ..kernels import Kernel
from ..losses import output_kernel
from ..ops import attention_weights
from .base import LanguageModel

__all__ = ["TextStream", "generate", "next_distribution"]

# A token may end in the middle of a character, and what follows a token may change how it is written.
_CONTEXT = 8
_PART = "\N{REPLACEMENT CHARACTER}"


def next_distribution(
    logits: Tensor,
    *,
    kernel: str | Mapping[str, object] | Kernel = "gaussian",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The probabilities (V,), float64, that the next token is drawn from.

    They are the adaptive weights of ``kernel`` of logits / temperature: softmax for the Gaussian, entmax for the compact
    kernels, whose probabilities are exactly zero for most tokens. The ``top_k`` most probable tokens are kept and divided by
    their sum, then the fewest most probable ones that make up at least ``top_p``. Of equals, the lower token is kept.

    Parameters
    ----------
    logits: (V,) floating point.
    temperature: at least 0; 0 is the token of the highest logit.
    top_k: at least 1. top_p: above 0, at most 1. None: all tokens.

    Raises
    ------
    EpanError: a value out of range, or logits of which none is a finite number.
    """
    _check(temperature, top_k, top_p)
    z = logits.detach().double()
    if bool(torch.isnan(z).any()) or not math.isfinite(float(z.max())):
        raise EpanError("The model's logits are not finite numbers", fix="use an earlier checkpoint of the run")
    if temperature == 0:
        return torch.zeros_like(z).index_fill_(0, z.argmax(), 1.0)
    # Less their maximum, so that no temperature is too low.
    p = attention_weights((z - z.max()) / temperature, kernel=output_kernel(kernel, "output distribution"))
    if top_k is None and top_p is None:
        return p
    ordered, tokens = p.sort(descending=True, stable=True)
    if top_k is not None:
        ordered = torch.where(torch.arange(len(ordered), device=p.device) < top_k, ordered, 0.0)
        ordered = ordered / ordered.sum()
    if top_p is not None:
        before = ordered.cumsum(0) - ordered
        ordered = torch.where(before < top_p, ordered, 0.0)
        ordered = ordered / ordered.sum()
    return torch.zeros_like(p).scatter_(0, tokens, ordered)


def _check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature >= 0):
        raise EpanError("The temperature is out of range", found=temperature, allowed="a finite number of at least 0")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise EpanError("top_k is out of range", found=top_k, allowed="an integer of at least 1")
    if top_p is not None and not (isinstance(top_p, int | float) and 0 < top_p <= 1):
        raise EpanError("top_p is out of range", found=top_p, allowed="a number above 0, at most 1")


def generate(
    model: LanguageModel,
    prompt: Sequence[int] | Tensor,
    *,
    tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    kernel: str | Mapping[str, object] | Kernel | None = None,
    seed: int = 0,
    stop: Collection[int] = (),
    given: Mapping[int, int] | None = None,
) -> Iterator[int]:
    """The tokens that follow ``prompt``, each as soon as it is drawn.

        for token in epan.generate(model, prompt, tokens=100, temperature=0.8, top_p=0.95):
            print(token)

    Parameters
    ----------
    model: where it is; it runs without dropout, and keeps its mode between two tokens.
    prompt: at least one token.
    tokens: at most so many follow.
    temperature, top_k, top_p: as in :func:`next_distribution`.
    kernel: of the output distribution; None: ``model.output_kernel``, that of the loss it was trained with.
    seed: of the draws; the same seed gives the same tokens on the same machine.
    stop: tokens after which nothing follows; the last one given out may be one of them.
    given: tokens that are not drawn but taken from here, by their place among those that follow, from 0.

    Raises
    ------
    EpanError: a value out of range, told at once; logits that are not finite, when they are met.
    """
    if not isinstance(model, LanguageModel):
        raise EpanError("This is no model", found=type(model).__name__, fix="use epan.load(run)")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise EpanError("tokens is out of range", found=tokens, allowed="an integer of at least 0")
    _check(temperature, top_k, top_p)
    place = next(model.parameters()).device
    start = torch.as_tensor(prompt, device=place)
    if start.dim() != 1 or len(start) == 0 or start.is_floating_point():
        raise EpanError("The prompt must be at least one token, in one row", found=f"shape {tuple(start.shape)}")
    chosen = model.output_kernel if kernel is None else output_kernel(kernel, "output distribution")
    draws = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        # On the CPU in float64, so that a draw depends on the device by its logits alone.
        p = next_distribution(logits.cpu(), kernel=chosen, temperature=temperature, top_k=top_k, top_p=top_p)
        return int(torch.multinomial(p, 1, generator=draws))

    return _follow(model, start.long(), tokens, choose, frozenset(stop), given or {})


def _follow(
    model: LanguageModel,
    start: Tensor,
    count: int,
    choose: Callable[[Tensor], int],
    stop: frozenset[int],
    given: Mapping[int, int],
) -> Iterator[int]:
    piece, cache = start[None], model.init_cache(1)
    for number in range(count):
        training = model.training
        if training:
            model.eval()
        try:
            with torch.no_grad():
                logits, cache = model.step(piece, cache)
        finally:
            if training:
                model.train()
        token = given[number] if number in given else choose(logits[0, -1])
        yield token
        if token in stop:
            return
        piece = piece.new_full((1, 1), token)


class TextStream:
    """The text of a growing sequence of tokens, without characters that are not complete yet.

    A token may be some bytes of a character: they are held back until the character is there. Only the newest tokens are
    decoded again, so a long text costs no more per token than a short one.

    Parameters
    ----------
    decode: the text of a list of tokens, with � at its end for a character that is cut off.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        # Characters of these tokens that were given out already.
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        end = len(text) - text.endswith(_PART)
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        if end == len(text) and len(self._tokens) > 4 * _CONTEXT:
            self._tokens = self._tokens[-_CONTEXT:]
            self._shown = len(self._decode(self._tokens))
        return new

    def end(self) -> str:
        """What was held back and will not be completed any more."""
        text = self._decode(self._tokens)[self._shown :]
        self._shown += len(text)
        return text
