"""Fairness discrepancy of a population (Choi et al. 2020; PopAlign, equation 11).

Shapes: P prompts, n images of a prompt, K classes. The class list is fixed: a class that never appears counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discrepancy(share: Tensor, target: Tensor | None = None) -> Tensor:
    """|| share - target ||_2 over the last dimension.

    Args:
        share: float (..., K), shares of the classes.
        target: float (K,), the ideal shares; None is uniform.

    Returns:
        float (...), 0 (as asked) to sqrt(1 - 1/K) for a uniform target.
    """
    ideal = torch.full((share.shape[-1],), 1 / share.shape[-1]) if target is None else target
    return (share - ideal.to(share)).norm(dim=-1)


def debiased(share: Tensor, count: Tensor, target: Tensor | None = None) -> Tensor:
    """Discrepancy without the share that finite samples add: sqrt(max(0, f^2 - (1 - sum p^2) / (n - 1))).

    The expected square of the observed f is f^2 + (1 - sum p^2) / n for true shares p; ``(1 - sum p_hat^2) / (n - 1)``
    estimates the second term without bias.

    Args:
        share: float (..., K), observed shares.
        count: float (...), images they were observed on.
        target: As in `discrepancy`.
    """
    noise = (1 - share.square().sum(-1)) / (count - 1).clamp_min(1)
    return (discrepancy(share, target).square() - noise).clamp_min(0).sqrt()


def floor(count: int, classes: int, draws: int = 4000) -> float:
    """Mean discrepancy of a perfectly uniform population observed on ``count`` images (Monte Carlo, fixed seed)."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(0, classes, (draws, count), generator=generator)
    share = torch.zeros(draws, classes).scatter_add_(1, sample, torch.ones(draws, count)) / count
    return float(discrepancy(share).mean())


def bootstrap_shares(one_hot: Tensor, prompt: Tensor, repeats: int, seed: int = 0) -> Tensor:
    """Resampled class shares of each prompt: prompts are drawn first, then the images within each.

    The number of times a class is drawn among n images with replacement is multinomial, so the shares are drawn
    directly, without touching images.

    Args:
        one_hot: float (N, K), one row per judged image (hard labels).
        prompt: int64 (N,), the prompt of each image, 0 to P - 1, every prompt present.
        repeats: Bootstrap repeats R.
        seed: Names the resampling; the same seed draws the same prompts for another model (paired bootstrap).

    Returns:
        float (R, P, K): in each repeat, the shares of P prompts drawn with replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = int(prompt.max()) + 1
    counts = torch.zeros(prompts, one_hot.shape[1]).index_add_(0, prompt, one_hot.float())
    number = counts.sum(1)
    drawn = torch.randint(0, prompts, (repeats, prompts), generator=generator)
    result = torch.zeros(repeats, prompts, one_hot.shape[1])
    for p in range(prompts):
        where = drawn == p
        times = int(where.sum())
        if times:
            share = counts[p] / number[p]
            n = int(number[p])
            sample = torch.multinomial(share, times * n, replacement=True, generator=generator).view(times, n)
            result[where] = torch.zeros(times, len(share)).scatter_add_(1, sample, torch.ones(times, n)) / n
    return result
