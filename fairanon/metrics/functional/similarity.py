"""How alike two series of images are, pair by pair: SSIM, PSNR, and LPIPS where its weights are present."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate, Estimates

_HIGHEST_PSNR = 100.0


def lpips_weights() -> Path:
    """Where torchvision keeps the AlexNet that LPIPS compares with, present or not."""
    from torchvision.models import AlexNet_Weights  # both take seconds to import, and hiding faces needs neither

    return Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def image_pairs(images: Tensor, others: Tensor) -> dict[str, Tensor]:
    """How alike two series of images are, pair by pair.

    Args:
        images: uint8 (N, 3, H, W), at least 11 pixels high and wide (64 for LPIPS).
        others: uint8, same shape.

    Returns:
        float (N,) each: ``ssim`` (1 for equal images), ``error`` (mean squared, of pixels in [0, 1]) and, where
        `lpips_weights` is a file, ``lpips`` (0 for equal images).
    """
    from torchmetrics.functional.image import (
        learned_perceptual_image_patch_similarity,
        structural_similarity_index_measure,
    )

    x, y = images.float() / 255, others.float() / 255
    alike = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(alike, Tensor)
    result = {"ssim": alike.reshape(-1), "error": (x - y).square().mean((1, 2, 3))}
    if lpips_weights().exists():
        apart = learned_perceptual_image_patch_similarity(x, y, "alex", reduction="none", normalize=True)
        result["lpips"] = apart.reshape(-1)
    return result


def similarity(values: dict[str, Tensor], repeats: int = 1000, seed: int = 0) -> Estimates:
    """Means of what `image_pairs` returned, each with a bootstrap interval over the pairs.

    Args:
        values: See `image_pairs`.
        repeats: Bootstrap repeats.
        seed: Of the draws.

    Returns:
        ``ssim``, ``psnr`` (dB of the mean squared error over all pairs, 100 at most) and ``lpips`` (None where it was
        not measured).

    Examples:
        >>> black = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        >>> found = similarity(image_pairs(black, black + 51))
        >>> round(found["psnr"].value, 2)
        13.98
    """
    count = len(values["ssim"])
    draws = torch.randint(0, count, (repeats, count), generator=torch.Generator().manual_seed(seed))

    def estimate(value: Tensor, spread: Tensor) -> Estimate:
        return Estimate.bootstrap(float(value), spread, count)

    def decibel(error: Tensor) -> Tensor:
        return (-10 * error.log10()).clamp(max=_HIGHEST_PSNR)

    result: Estimates = {"lpips": None}
    for name, rows in values.items():
        if name == "error":
            result["psnr"] = estimate(decibel(rows.mean()), decibel(rows[draws].mean(1)))
        else:
            result[name] = estimate(rows.mean(), rows[draws].mean(1))
    return result
