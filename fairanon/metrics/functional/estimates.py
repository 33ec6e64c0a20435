"""Numbers with their 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass  # not frozen: torchmetrics walks through what metrics return
class Estimate:
    """A number, its 95 % interval and what it was measured on.

    Attributes:
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end.
        n: How many images, pairs or prompts it was measured on.
        missing: How many could not be judged.
    """

    value: float
    low: float
    high: float
    n: int
    missing: int = 0

    @classmethod
    def exact(cls, value: float, n: int, missing: int = 0) -> Estimate:
        """A number without an interval, such as the size of a gallery."""
        return cls(value, value, value, n, missing)

    @classmethod
    def share(cls, hits: int, n: int, missing: int = 0) -> Estimate:
        """A share with Wilson's interval (1927).

        >>> found = Estimate.share(8, 10)
        >>> f"{found.value} [{found.low:.3f}, {found.high:.3f}]"
        '0.8 [0.490, 0.943]'
        """
        low, high = wilson(hits, n)
        return cls(hits / n, low, high, n, missing)

    @classmethod
    def mean(cls, values: Tensor) -> Estimate:
        """The mean of values (N,) with its normal interval; those that are NaN are missing.

        >>> found = Estimate.mean(torch.tensor([1.0, 2.0, 3.0, torch.nan]))
        >>> f"{found.value} [{found.low:.3f}, {found.high:.3f}] of {found.n}, {found.missing} missing"
        '2.0 [0.868, 3.132] of 3, 1 missing'
        """
        seen = values[~values.isnan()].double()
        count = len(seen)
        mean = float(seen.mean())
        half = 1.96 * float(seen.std()) / count**0.5 if count > 1 else 0.0
        return cls(mean, mean - half, mean + half, count, len(values) - count)

    @classmethod
    def bootstrap(cls, value: float, draws: Tensor, n: int, missing: int = 0) -> Estimate:
        """A non-negative number with its interval from bootstrap draws (R,), recentred on it.

        A resample adds the noise of finite samples a second time, so that the draws of a discrepancy lie too high by
        about as much as the estimate itself does; recentring removes that shift.
        """
        centred = (draws.double() - draws.double().mean() + value).clamp_min(0)
        low, high = torch.quantile(centred, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(value, min(low, value), max(high, value), n, missing)


Estimates = dict[str, Estimate | None]
"""By the key in metrics.json; None where the judge is absent."""


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
