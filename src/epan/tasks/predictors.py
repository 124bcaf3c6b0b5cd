"""What can be known of an automaton from its words alone: n-grams with back-off, and a Bayesian who is shown the states.

Letters are (B, T) int64: 0 to 17, −1 between words and −2 behind the last one, which is ``tokens − 2`` of RegBench. A
prediction of the letter at t is made from the letters before t.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

from ..errors import EpanError
from .automata import EDGES, LEAST_LETTERS, LETTERS

__all__ = ["ngram", "state_bayes"]

_SYMBOLS = LETTERS + 1  # the letters, and the start of a word


def ngram(letters: Tensor, order: int, *, even: bool = False) -> Tensor:
    r"""An n-gram model of the words so far, with back-off.

    With :math:`N(ca)` the times that letter a has followed context c, the n − 1 letters before it (marks before the start of
    a word), :math:`N(c) = \sum_a N(ca)`, and :math:`c'` the context without its first letter,

    .. math:: P_n(a \mid c) = \frac{N(ca)}{N(c) + 1} \text{ if } N(ca) > 0, \text{ else }
              \frac{1}{N(c) + 1} \frac{P_{n-1}(a \mid c')}{\sum_{b: N(cb) = 0} P_{n-1}(b \mid c')},

    and :math:`P_0` uniform over the 18 letters. Where each letter has followed c, the 1 in the denominator is left out.

    Parameters
    ----------
    letters: (B, T). order: n, from 1 to 12.
    even: what has followed c is taken to be equally likely, as it is in the automata, and the counts matter no more.

    Returns
    -------
    (B, T, 18) float64; of places without a letter uniform.

    Source: the baseline of Akyürek et al. 2401.12973, which backs off to the letters seen so far.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 12:
        raise EpanError("The order of an n-gram model is out of range", found=order, allowed="1 to 12")
    rows, width = letters.shape
    contexts = [_numbered(_contexts(letters, size)) for size in range(order)]
    counts = [torch.zeros(int(numbers.max()) + 1, LETTERS, dtype=torch.float64) for numbers in contexts]
    found = torch.full((rows, width, LETTERS), 1 / LETTERS, dtype=torch.float64)
    for place in range(width):
        there = (letters[:, place] >= 0).nonzero().squeeze(1)
        if not len(there):
            continue
        letter, below = letters[there, place], found[there, place]
        for numbers, table in zip(contexts, counts, strict=True):
            at = numbers[there, place]
            seen = table[at]
            total = seen.sum(1, keepdim=True)
            unseen = torch.where(seen > 0, 0, below)
            rest = unseen.sum(1, keepdim=True)
            full = total + (rest > 0)
            known = torch.where(seen > 0, total / (seen > 0).sum(1, keepdim=True).clamp(min=1), 0) if even else seen
            below = known / full.clamp(min=1) + torch.where(rest > 0, unseen / rest.clamp(min=1e-300), 0) / full
            table[at, letter] += 1
        found[there, place] = below
    return found


def state_bayes(letters: Tensor, states: Tensor) -> Tensor:
    r"""The posterior of an observer who knows how automata are drawn, and at each letter which state it is in.

    Of a state with d edges over an alphabet of m letters, c visits that showed k different letters have probability
    :math:`\binom{m-k}{d-k} / \binom{m}{d} \cdot d^{-c}` if :math:`k \le d`; an alphabet that holds the u letters seen in any
    state has the prior :math:`\binom{18-u}{m-u} / \binom{18}{m}`; d is uniform on 1 to 3, m on 4 to 18, and both are summed
    over. A letter seen in the state is next with probability 1/d; the others share 1 − k/d, :math:`1/(m-k)` for each of the
    alphabet.

    What this observer knows includes all that a model sees, and so, up to sampling, no model has a higher accuracy or a lower
    KL divergence. It is exact for automata as they are drawn, before a few of them lose states by minimisation.

    Parameters
    ----------
    letters, states: (B, T) int64; states where there is no letter do not matter.

    Returns
    -------
    (B, T, 18) float64; of places without a letter uniform.

    Raises
    ------
    EpanError: a state shows more letters than it can have edges.
    """
    rows, width = letters.shape
    numbers = _numbered(states)
    shown = torch.stack((numbers[letters >= 0], letters[letters >= 0])).unique(dim=1)[0]
    if len(shown) and int(shown.bincount().max()) > EDGES:
        raise EpanError(
            "A state shows more letters than it can have edges",
            found=int(shown.bincount().max()),
            allowed=f"at most {EDGES}",
        )
    sizes = torch.arange(LEAST_LETTERS, LETTERS + 1)
    degrees = torch.arange(1, EDGES + 1).double()
    chances, priors = _tables()
    seen = torch.zeros(int(numbers.max()) + 1, LETTERS, dtype=torch.bool)
    visits = torch.zeros(len(seen), dtype=torch.float64)
    used = torch.zeros(rows, LETTERS, dtype=torch.bool)
    # log Π of the probabilities of all states, by m.
    evidence = torch.zeros(rows, len(sizes), dtype=torch.float64)

    def of_state(at: Tensor) -> Tensor:
        """log of the probability of what a state has shown, by m and d."""
        return chances[seen[at].sum(1)] - (visits[at, None] * degrees.log())[:, None]

    found = torch.full((rows, width, LETTERS), 1 / LETTERS, dtype=torch.float64)
    for place in range(width):
        there = (letters[:, place] >= 0).nonzero().squeeze(1)
        if not len(there):
            continue
        at, letter = numbers[there, place], letters[there, place]
        here, count = of_state(at), used[there].sum(1)
        total = here.logsumexp(2)
        weight = priors[count] + evidence[there] - total
        weight = (weight[..., None] + here).flatten(1).softmax(1).view_as(here)
        kinds = seen[at].sum(1)[:, None, None]
        known = (weight / degrees).sum((1, 2))
        other = weight * (1 - kinds / degrees).clamp(min=0) / (sizes[:, None] - kinds)
        fresh = other * (sizes[:, None] - count[:, None, None]).clamp(min=0)
        fresh = fresh.sum((1, 2)) / (LETTERS - count).clamp(min=1)
        rest = torch.where(used[there], other.sum((1, 2))[:, None], fresh[:, None])
        found[there, place] = torch.where(seen[at], known[:, None], rest)
        seen[at, letter] = used[there, letter] = True
        visits[at] += 1
        evidence[there] += of_state(at).logsumexp(2) - total
    return found


def _tables() -> tuple[Tensor, Tensor]:
    """log C(m − k, d − k) / C(m, d) by k, m, d, and the logarithm of the prior of an alphabet by u, m."""
    sizes, degrees = range(LEAST_LETTERS, LETTERS + 1), range(1, EDGES + 1)
    chances = [
        [[comb(m - k, d - k) / comb(m, d) if k <= d else 0 for d in degrees] for m in sizes] for k in range(EDGES + 1)
    ]
    priors = [[comb(LETTERS - u, m - u) / comb(LETTERS, m) if u <= m else 0 for m in sizes] for u in range(LETTERS + 1)]
    logs = (torch.tensor(table, dtype=torch.float64).log() for table in (chances, priors))
    return next(logs), next(logs)


def _contexts(letters: Tensor, size: int) -> Tensor:
    """A number for the ``size`` letters before each place, within its word: (B, T)."""
    begins = torch.ones_like(letters[:, :1], dtype=torch.bool)
    begins = torch.cat((begins, letters[:, :-1] < 0), dim=1)
    before = torch.cat((torch.zeros_like(letters[:, :1]), letters[:, :-1].clamp(min=0)), dim=1)
    code = torch.zeros_like(letters)
    for length in range(1, size + 1):
        longer = torch.cat((torch.zeros_like(code[:, :1]), code[:, :-1]), dim=1) * _SYMBOLS + before
        code = torch.where(begins, _SYMBOLS**length - 1, longer)
    return code


def _numbered(kinds: Tensor) -> Tensor:
    """The kinds of each row, (B, T), numbered so that no two rows share one."""
    pairs = torch.stack((torch.arange(len(kinds))[:, None].expand_as(kinds), kinds)).flatten(1)
    return torch.unique(pairs, dim=1, return_inverse=True)[1].view_as(kinds)
