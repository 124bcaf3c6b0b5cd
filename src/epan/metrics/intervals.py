"""How far a share of right sequences may be from the true one."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from epan.errors import EpanError

__all__ = ["wilson_interval"]


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share.

        (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   p = right/total, n = total, z = Φ⁻¹((1 + confidence)/2)

    It stays inside [0, 1] and has a width even at 0 and n right ones; (0, 1) where nothing was counted.

    Raises
    ------
    EpanError: ``right`` outside 0 … ``total``, or ``confidence`` outside (0, 1).

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= right <= total:
        raise EpanError("The count of right ones is impossible", found=right, allowed=f"0 to {total}")
    if not 0 < confidence < 1:
        raise EpanError("The confidence must be a probability", found=confidence, allowed="between 0 and 1")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    centre = share + z * z / (2 * total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the bound is 0 or 1 exactly; rounding would miss it.
    low = 0.0 if right == 0 else (centre - half) / scale
    high = 1.0 if right == total else (centre + half) / scale
    return low, high
