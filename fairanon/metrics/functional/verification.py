"""Face verification: distances and the threshold at which two images count as the same person."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_distance(embeddings: Tensor, others: Tensor) -> Tensor:
    """1 - cos of unit vectors, row by row: float (N,) in [0, 2], NaN where one of the two is NaN.

    >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])).item()
    0.3999999761581421
    """
    return 1 - (embeddings * others).sum(1)


def threshold_at(embeddings: Tensor, false_match_rate: float = 1e-3) -> tuple[float, int]:
    """The cosine distance below which two images match, calibrated on images of different people.

    Args:
        embeddings: float (N, D), unit vectors of N different people; rows of NaN are left out.
        false_match_rate: Share of the N (N - 1) / 2 impostor pairs that may match.

    Returns:
        The distance, and the number of pairs.

    Raises:
        ValueError: There are too few pairs for this rate.
    """
    found = embeddings[~embeddings.isnan().any(1)]
    return threshold_among(1 - found @ found.T, false_match_rate)


def threshold_among(distances: Tensor, false_match_rate: float = 1e-3) -> tuple[float, int]:
    """The same of the distances between N different people, float (N, N)."""
    first, second = torch.triu_indices(len(distances), len(distances), 1)
    pairs = distances[first, second]
    if len(pairs) * false_match_rate < 10:
        raise ValueError(
            f"{len(pairs)} impostor pairs are too few for a false-match rate of {false_match_rate:g}: fewer than ten "
            "would match by mistake; give more people."
        )
    place = int(len(pairs) * false_match_rate)
    return float(pairs.kthvalue(place).values), len(pairs)
