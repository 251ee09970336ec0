"""Means over clips with what is known of them: percentile bootstrap, seeded (Efron & Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]


def interval(values: Values, confidence: float = 0.95, resamples: int = 4000) -> tuple[float, float, float]:
    """(mean, lower, upper) of values (clip,), NaN left out: the interval that the clips drawn anew would give.

    With fewer than three values there is no interval: lower and upper are NaN.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    if len(known) < 3:
        return float(known.mean()), float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(len(known), size=(resamples, len(known)))
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(known[draws].mean(axis=1), [tail, 1 - tail])
    return float(known.mean()), float(lower), float(upper)


def paired_difference(values: Values, reference: Values) -> tuple[float, float, float]:
    """`interval` of values − reference, clip by clip: what clips have in common cancels."""
    return interval(np.asarray(values, float) - np.asarray(reference, float))
