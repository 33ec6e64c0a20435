"""Fréchet and kernel distances between sets of features that an injected network computed."""

from __future__ import annotations

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fairanon.metrics.functional.estimates import Estimate


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

    Examples:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_distance(x + 3, x), 6)
        9.0
    """
    metric = FrechetInceptionDistance(feature=_Precomputed(features.shape[1])).set_dtype(torch.float64)
    metric.distributed_available_fn = lambda: False  # every rank holds all rows: they must not be added up
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def frechet_interval(features: Tensor, reference: Tensor, repeats: int = 100, seed: int = 0) -> Estimate:
    """`frechet_distance` with a bootstrap interval over ``features``."""
    generator = torch.Generator().manual_seed(seed)
    n = len(features)
    value = frechet_distance(features, reference)
    draws = torch.tensor(
        [frechet_distance(features[torch.randint(0, n, (n,), generator=generator)], reference) for _ in range(repeats)]
    )
    return Estimate.bootstrap(value, draws, n)


def kernel_distance(features: Tensor, reference: Tensor, blocks: int = 10) -> Estimate:
    """Kernel distance (unbiased, cubic kernel; Binkowski et al. 2018).

    The interval is Student's over disjoint blocks of ``features``, each compared with the whole reference: blocks that
    share images would vary less than new samples do.

    Args:
        features: float (N, D), N at least 4.
        reference: float (M, D).
        blocks: Number of blocks; fewer where a block would hold a single row.
    """
    x, y = features.double(), reference.double()
    within = _off_diagonal_mean(_cubic(y, y))

    def distance(rows: Tensor) -> Tensor:
        return _off_diagonal_mean(_cubic(rows, rows)) + within - 2 * _cubic(rows, y).mean()

    value = float(distance(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = torch.stack([distance(x[rows]) for rows in order.tensor_split(max(2, min(blocks, len(x) // 2)))])
    quantile = float(student.ppf(0.975, len(parts) - 1))
    half = quantile * float(parts.std()) / len(parts) ** 0.5
    return Estimate(value, value - half, value + half, len(x))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    count = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
