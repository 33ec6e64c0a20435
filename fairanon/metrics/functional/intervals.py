"""95 % intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Estimate = dict[str, float]
"""value, low, high, n (what it was measured on) and missing (what could not be judged)."""


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def interval(value: float, draws: Tensor) -> Interval:
    """95 % interval of a non-negative number from bootstrap draws (R,), recentred on the estimate.

    A resample adds the noise of finite samples a second time, so that the draws of a discrepancy lie too high by
    about as much as the estimate itself does; recentring removes that shift.
    """
    centred = (draws.double() - draws.double().mean() + value).clamp_min(0)
    low, high = torch.quantile(centred, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(value), min(low, float(value)), max(high, float(value)))


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Tensor, missing: int = 0) -> Estimate:
    """Mean of values (N,) with its normal 95 % interval; NaN without values."""
    count = len(values)
    mean = float(values.double().mean())
    half = 1.96 * float(values.double().std()) / count**0.5 if count > 1 else 0.0
    return {"value": mean, "low": mean - half, "high": mean + half, "n": float(count), "missing": float(missing)}
