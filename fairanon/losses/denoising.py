"""Denoising errors."""

from __future__ import annotations

from torch import Tensor


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample over everything but the batch.

    Args:
        prediction: float (B, ...).
        target: float (B, ...), same shape.

    Returns:
        float (B,).
    """
    return (prediction - target).square().flatten(1).mean(1)
