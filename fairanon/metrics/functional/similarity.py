"""How alike two series of images are, pair by pair: SSIM, PSNR, and LPIPS where its weights are present."""

from __future__ import annotations

import math
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


def similarity(values: dict[str, Tensor], people: Tensor | None = None) -> Estimates:
    """Means of what `image_pairs` returned, each with Student's interval over the pairs, or over people.

    Args:
        values: See `image_pairs`.
        people: int64 (N,), who is shown, where several pairs are of one person; None is somebody else in each.

    Returns:
        ``ssim``, ``psnr`` (dB of the mean squared error over all pairs, 100 at most) and ``lpips`` (None where it was
        not measured).

    Examples:
        >>> black = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        >>> found = similarity(image_pairs(black, black + 51))
        >>> round(found["psnr"].value, 2)
        13.98
    """
    result: Estimates = {"lpips": None}
    for name, rows in values.items():
        mean = Estimate.mean(rows, people)
        if name != "error":
            result[name] = mean
            continue
        low, high = (None if end is None else _decibel(end) for end in (mean.high, mean.low))
        result["psnr"] = Estimate(_decibel(mean.value), low, high, mean.n, mean.missing)
    return result


def _decibel(error: float) -> float:
    return _HIGHEST_PSNR if error <= 10 ** (-_HIGHEST_PSNR / 10) else -10 * math.log10(error)
