"""How alike two series of pictures are, picture by picture: SSIM, PSNR, and LPIPS where its weights are present."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    structural_similarity_index_measure,
)
from torchvision.models import AlexNet_Weights

from fairanon.metrics.functional.intervals import interval

_HIGHEST_PSNR = 100.0


def lpips_weights() -> Path:
    """Where torchvision keeps the AlexNet that LPIPS compares with, present or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def similarity(
    pictures: Tensor, others: Tensor, repeats: int = 1000, seed: int = 0
) -> dict[str, dict[str, float] | None]:
    """Mean similarity of pairs of pictures, each with a bootstrap interval over the pairs.

    Args:
        pictures: uint8 (N, 3, H, W), at least 11 pixels high and wide (64 for LPIPS).
        others: uint8, same shape.
        repeats: Bootstrap repeats.
        seed: Names the draws.

    Returns:
        ``ssim`` (1 for equal pictures), ``psnr`` (dB of the mean squared error over all pairs, 100 at most) and
        ``lpips`` (0 for equal pictures; None where `lpips_weights` is no file).
    """
    x, y = pictures.float() / 255, others.float() / 255
    draws = torch.randint(0, len(x), (repeats, len(x)), generator=torch.Generator().manual_seed(seed))

    def estimate(value: Tensor, spread: Tensor) -> dict[str, float]:
        return {**interval(float(value), spread)._asdict(), "n": float(len(x)), "missing": 0.0}

    def decibel(error: Tensor) -> Tensor:
        return (-10 * error.log10()).clamp(max=_HIGHEST_PSNR)

    alike = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(alike, Tensor)
    error = (x - y).square().mean((1, 2, 3))
    result: dict[str, dict[str, float] | None] = {
        "ssim": estimate(alike.mean(), alike[draws].mean(1)),
        "psnr": estimate(decibel(error.mean()), decibel(error[draws].mean(1))),
        "lpips": None,
    }
    if lpips_weights().exists():
        apart = learned_perceptual_image_patch_similarity(x, y, "alex", reduction="none", normalize=True).reshape(-1)
        result["lpips"] = estimate(apart.mean(), apart[draws].mean(1))
    return result
