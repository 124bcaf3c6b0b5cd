"""Text for tests: words, lines and blanks of several kinds."""

from __future__ import annotations

import random

WORDS = [
    "sea",
    "ship",
    "whale",
    "captain",
    "night",
    "storm",
    "–",
    "café",
    "海",
    "naïve",
    "Ωmega",
    "the",
    "a",
    "of",
    "and",
]


def prose(seed: int, words: int) -> str:
    """So many words, the same for the same seed."""
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice([" ", " ", " ", "\n", "\n\n", ", ", "  "]) for _ in range(words))
