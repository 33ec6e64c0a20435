"""Welch's test of two means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

from scipy.special import stdtr


def welch(first: Sequence[float], other: Sequence[float]) -> float:
    """The probability that two groups of one mean lie as far apart (Welch 1947); 1 where nothing varies.

    Args:
        first: Two numbers or more.
        other: Likewise; they may vary otherwise.

    Examples:
        >>> round(welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), 3), welch([1.0, 1.0], [2.0, 2.0])
        (0.021, 1.0)
    """
    parts = [variance(values) / len(values) for values in (first, other)]
    if not sum(parts):
        return 1.0
    freedom = sum(parts) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (first, other), strict=True))
    return 2 * float(stdtr(freedom, -abs(fmean(first) - fmean(other)) / math.sqrt(sum(parts))))
