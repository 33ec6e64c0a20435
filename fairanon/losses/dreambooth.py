"""Focused feature enhancement (FFE) and difference (DIFF) losses of Ano-Face-Fair.

Shapes: B batch, C channels, h x w size, K classes, D width of an embedding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ThetaMode = Literal["paper", "masked_mean"]
DiffMode = Literal["separate", "preserve", "official"]


def check_theta(theta: float) -> float:
    """Refuse a threshold that selects nothing, or everything and more."""
    if not 0 <= theta < 1:
        raise ValueError(
            f"theta must be in [0, 1), got {theta}: the mask is where the error exceeds theta times its maximum, and no "
            "error exceeds the maximum (the supplement's theta of 1.0 gives an empty mask)."
        )
    return theta


def critical_mask(error: Tensor, theta: float | Tensor, over_batch: bool = False) -> Tensor:
    """Where the error is critical (equation 2): above ``theta`` times its maximum.

    Args:
        error: float (B, C, h, w), not negative.
        theta: A number, or one per sample (B,).
        over_batch: Take the maximum over the whole batch, as the official code does; a sample with small errors then
            has no critical region.

    Returns:
        bool (B, C, h, w).
    """
    flat = error.flatten(1)
    peak = flat.amax() if over_batch else flat.amax(1)
    bound = torch.as_tensor(theta, device=error.device, dtype=error.dtype) * peak
    return error > bound.expand(len(error)).view(-1, 1, 1, 1)


def focused_feature_enhancement(
    prediction: Tensor, target: Tensor, theta: float | Tensor = 0.5, over_batch: bool = False
) -> Tensor:
    """Squared error inside the critical mask, averaged over all elements (equation 3, without its weight).

    Args:
        prediction: float (B, C, h, w): the model's prediction, or features of it.
        target: Same shape, without gradient.
        theta: See `critical_mask`.
        over_batch: See `critical_mask`.

    Returns:
        float (B,); the mask has no gradient.
    """
    error = prediction - target
    mask = critical_mask(error.detach().abs(), theta, over_batch)
    return (mask * error.square()).flatten(1).mean(1)


def optimised_theta(error: Tensor, weight: float, mode: ThetaMode = "masked_mean") -> Tensor:
    """The threshold that the supplement's equations 3 and 4 ask for, searched over the error's order statistics.

    The entropy of a uniform distribution over the mask is log |M|. As printed (``paper``), L_FFE + weight * log |M| is
    minimised: both terms shrink with the mask, so that the answer is always the single largest error. ``masked_mean``
    averages the error over the mask and rewards coverage, -L_FFE - weight * log |M|: the mean falls as the mask grows,
    the entropy rises, and ``weight`` decides between them.

    Args:
        error: float (B, C, h, w), absolute errors.
        weight: Of the entropy, not negative.
        mode: See above.

    Returns:
        float (B,) in [0, 1), to be used as ``theta``: just below the smallest error inside, as a share of the largest.
    """
    if weight < 0:
        raise ValueError(f"weight must not be negative, got {weight}.")
    ordered = error.detach().flatten(1).double().sort(1, descending=True).values
    count = torch.arange(1, ordered.shape[1] + 1, device=error.device, dtype=torch.float64)
    inside = ordered.square().cumsum(1)
    if mode == "paper":
        objective = inside / ordered.shape[1] + weight * count.log()
    else:
        objective = -inside / count - weight * count.log()
    # Equal errors are inside or outside together: only the last of each run is a possible edge of the mask.
    edge = torch.cat([ordered[:, :-1] > ordered[:, 1:], torch.ones_like(ordered[:, :1], dtype=torch.bool)], 1)
    best = objective.masked_fill(~edge, math.inf).argmin(1, keepdim=True)
    smallest = ordered.gather(1, best)[:, 0]
    following = torch.where(
        best[:, 0] + 1 < ordered.shape[1],
        ordered.gather(1, (best + 1).clamp_max(ordered.shape[1] - 1))[:, 0],
        torch.zeros_like(smallest),
    )
    middle = (smallest + following) / 2
    return (middle / ordered[:, 0].clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1 - 1e-9).to(error)


def cosines(embeddings: Tensor) -> Tensor:
    """Cosines of all pairs of different classes: float (K (K - 1) / 2,) from embeddings (K, D)."""
    unit = F.normalize(embeddings, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit[first] * unit[second]).sum(1)


def separate(embeddings: Tensor, minimum_angle: float) -> Tensor:
    """Push classes apart until every angle is at least ``minimum_angle`` (equations 4 and 5 with the sign of the text).

    As printed, equation 4 minimises 1 - cos, which pulls classes together; the text and equation 5 want angles of at
    least theta_min. The hinge relu(cos - cos(theta_min)) is 0 exactly where equation 5 holds.

    Args:
        embeddings: float (K, D), trainable, one per class.
        minimum_angle: theta_min in degrees.

    Returns:
        The mean over pairs, a scalar.
    """
    if len(embeddings) < 2:
        raise ValueError(f"at least two classes are needed, got {len(embeddings)}.")
    return F.relu(cosines(embeddings) - math.cos(math.radians(minimum_angle))).mean()


def preserve(embeddings: Tensor, start: Tensor) -> Tensor:
    """Keep classes where they were: mean of 1 - cos between embeddings (K, D) now and at the frozen start."""
    return (1 - F.cosine_similarity(embeddings, start, dim=1)).mean()


def official_difference(latents: Tensor, others: Tensor) -> Tensor:
    """The official code's DIFF: mean of 1 - cos over channels of two frozen sets of latents (B, C, h, w).

    It depends on no trained tensor: a constant in the total loss, without gradient.
    """
    return (1 - F.cosine_similarity(latents, others, dim=1)).mean()
