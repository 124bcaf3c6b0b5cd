"""Measures of predictions and of attention support; one file per measure, torch alone."""

from __future__ import annotations

from epan.metrics.accuracy import count_right, exact_match
from epan.metrics.distributions import Divergence, DivergenceMeter, divergence
from epan.metrics.intervals import wilson_interval
from epan.metrics.likelihood import LikelihoodMeter
from epan.metrics.loss import next_token_loss, target_probabilities
from epan.metrics.support import SupportMeter, allowed_keys, empty_rows

__all__ = [
    "Divergence",
    "DivergenceMeter",
    "LikelihoodMeter",
    "SupportMeter",
    "allowed_keys",
    "count_right",
    "divergence",
    "empty_rows",
    "exact_match",
    "next_token_loss",
    "target_probabilities",
    "wilson_interval",
]
