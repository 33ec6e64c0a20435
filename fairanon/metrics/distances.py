"""Fréchet and kernel distances between sets of features that an injected network computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fairanon.metrics.functional.intervals import interval


class _Precomputed(nn.Module):
    """Hands features through: torchmetrics then only does the statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between two sets of features.

    Args:
        features: float (N, D).
        reference: float (M, D).

    Returns:
        The distance; biased upwards when N or M is not far above D.
    """
    metric = FrechetInceptionDistance(feature=_Precomputed(features.shape[1])).set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def frechet_interval(features: Tensor, reference: Tensor, repeats: int = 100, seed: int = 0) -> dict[str, float]:
    """`frechet_distance` with a bootstrap interval over ``features``: value, low, high, n, missing."""
    generator = torch.Generator().manual_seed(seed)
    n = len(features)
    value = frechet_distance(features, reference)
    draws = torch.tensor(
        [frechet_distance(features[torch.randint(0, n, (n,), generator=generator)], reference) for _ in range(repeats)]
    )
    estimate = interval(value, draws)
    return {**estimate._asdict(), "n": float(n), "missing": 0.0}


def kernel_distance(features: Tensor, reference: Tensor, subsets: int = 50, seed: int = 0) -> dict[str, float]:
    """Kernel distance (unbiased, cubic kernel) with the spread over subsets: value, low, high, n, missing."""
    size = min(100, len(features), len(reference))
    metric = KernelInceptionDistance(feature=_Precomputed(features.shape[1]), subsets=subsets, subset_size=size)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = (float(value) for value in metric.compute())
    half = 1.96 * deviation / subsets**0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "n": float(len(features)), "missing": 0.0}
