"""ITI-GEN's loss in a joint space of images and texts (Zhang et al. 2023)."""

from __future__ import annotations

import itertools

from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-4
"""A direction that is shorter has no direction: tokens begin at 0, where all texts of a prompt are one."""


def joint_directions(images: Tensor, labels: Tensor, texts: Tensor) -> Tensor:
    """How differently the step from one class to another points among images and among texts (equation 2).

    Args:
        images: float (N, D), embeddings of images.
        labels: int64 (N,), the class that each shows; -1 if nobody knows.
        texts: float (N, K, D), embeddings of each image's prompt with the tokens of each class.

    Returns:
        The sum of 1 - cos over the pairs of classes that are there, divided by their number less 1; 0 where there is one alone.
    """
    there = [k for k in range(texts.shape[1]) if bool((labels == k).any())]
    total = texts.sum() * 0
    for a, b in itertools.combinations(there, 2):
        step = images[labels == a].mean(0) - images[labels == b].mean(0)
        said = texts[:, a].mean(0) - texts[:, b].mean(0)
        cosine = (step * said).sum() / (step.norm().clamp_min(_LEAST) * said.norm().clamp_min(_LEAST))
        total = total + 1 - cosine
    return total / max(1, len(there) - 1)


def consistency(texts: Tensor, bare: Tensor, least: float = 0.8) -> Tensor:
    """How far prompts with tokens have gone from the prompts without (equation 4).

    Args:
        texts: float (N, K, D), see `joint_directions`.
        bare: float (N, D), embeddings of the prompts alone.
        least: The cosine that is near enough.

    Returns:
        The mean of what the cosines lack.
    """
    return (least - F.cosine_similarity(texts, bare[:, None], dim=2)).clamp_min(0).mean()
