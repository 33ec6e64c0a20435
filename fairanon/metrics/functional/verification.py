"""Face verification: distances and the threshold at which two images count as the same person."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
"""In which a recognizer compares faces: 1 - cos of unit vectors, or the length of their difference."""


def distances(embeddings: Tensor, others: Tensor, metric: Metric) -> Tensor:
    """Between every two: float32 (N, M) of float (N, D) and (M, D).

    Examples:
        >>> distances(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.5]]), "euclidean").item()
        1.5
    """
    if metric == "euclidean":
        return torch.cdist(embeddings, others, compute_mode="donot_use_mm_for_euclid_dist")
    return 1 - embeddings @ others.T


def as_cosines(probes: Tensor, gallery: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Vectors whose products rank as the metric does: the cosine, or 1 - d^2 / 2 of a Euclidean distance d.

    What all of the gallery have in common is taken away before: far from the origin, digits would cancel.

    Examples:
        >>> x, y = torch.tensor([[0.0, 1.2]]), torch.tensor([[0.5, 0.0]])
        >>> probe, known = as_cosines(x, y, "euclidean")
        >>> round((probe @ known.T).item(), 6), round(1 - (x - y).square().sum().item() / 2, 6)
        (0.155, 0.155)
    """
    if metric == "cosine":
        return probes, gallery
    middle = gallery.double().nanmean(0).nan_to_num()
    near, known = (rows.double() - middle for rows in (probes, gallery))
    first, second = (rows.square().sum(1, keepdim=True) / 2 for rows in (near, known))
    return (
        torch.cat([near, 1 - first, torch.ones_like(first)], 1).to(probes.dtype),
        torch.cat([known, torch.ones_like(second), -second], 1).to(gallery.dtype),
    )


def cosine_distance(embeddings: Tensor, others: Tensor) -> Tensor:
    """1 - cos of unit vectors, row by row: float (N,) in [0, 2], NaN where one of the two is NaN.

    Examples:
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
    known = embeddings[~embeddings.isnan().any(1)]
    return threshold_among(1 - known @ known.T, false_match_rate)


def threshold_among(distances: Tensor, false_match_rate: float = 1e-3) -> tuple[float, int]:
    """The same of the distances between N different people, float (N, N)."""
    first, second = torch.triu_indices(len(distances), len(distances), 1)
    pairs = distances[first, second]
    if len(pairs) * false_match_rate < 10:
        raise ValueError(
            f"{len(distances)} people make {len(pairs)} pairs, too few for a false-match rate of {false_match_rate:g}: it "
            f"takes {math.ceil(10 / false_match_rate)} (at .001 those of 142 people)."
        )
    place = int(len(pairs) * false_match_rate)
    value = pairs.kthvalue(place).values
    alike = int((pairs <= value).sum())
    if alike > 2 * place or value <= 1e-3 * pairs.median():
        raise ValueError(
            f"{alike} of {len(pairs)} pairs are as near as {float(value):.3g} or nearer, so that no threshold has a false-match rate of "
            f"{false_match_rate:g}: some people are there several times, or this recognizer gives many people one embedding."
        )
    return float(value), len(pairs)


def false_match_interval(distances: Tensor, threshold: float, resamples: int = 1000) -> tuple[float, float]:
    """Within what the false-match rate at a threshold lies: a bootstrap over people, whose pairs are not independent.

    Args:
        distances: float (N, N) between N different people.
        threshold: Up to this distance a pair matches; it counts as fixed, though it may come from the same pairs.
        resamples: Of the people, with replacement; a person who is drawn twice is no pair with themselves.

    Returns:
        2.5 and 97.5 % of the resampled rates.
    """
    count = len(distances)
    first, second = torch.triu_indices(count, count, 1)
    near = distances[first, second] <= threshold
    first, second = first[near], second[near]
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(resamples):
        drawn = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count).double()
        pairs = (count**2 - drawn.square().sum()) / 2
        rates.append((drawn[first] * drawn[second]).sum() / pairs)
    low, high = torch.quantile(torch.stack(rates), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
