"""Denoising errors of the whole picture and of regions (FairHuman, equations 2 to 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RegionMode = Literal["area", "official", "official_controlnet", "official_adapter"]
OFFICIAL_SCALE = {"official": 25.0, "official_controlnet": 1.0, "official_adapter": 1.0}
"""The official LoRA script multiplies masked errors by 5 before it squares them, the two others do not."""


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Grow masks by ``radius`` pixels in every direction (a square), as the official masks are by 16.

    Args:
        masks: bool (..., H, W).
        radius: Pixels.

    Returns:
        bool, same shape.
    """
    if radius == 0:
        return masks
    flat = masks.float().flatten(0, -3)[:, None]
    return (F.max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius) > 0).view_as(masks)


def latent_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks at latent size: a latent belongs to a region if any of its pixels does, so that no hand vanishes.

    Args:
        masks: bool (B, R, H, W).
        height: h.
        width: w.

    Returns:
        bool (B, R, h, w).
    """
    return F.adaptive_max_pool2d(masks.float(), (height, width)) > 0


def squared_errors(
    mode: RegionMode, prediction: Tensor, target: Tensor, x0_prediction: Tensor, x0: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """The squared errors that the objectives average.

    Args:
        mode: ``area`` and ``official`` take the prediction's error; ``official_controlnet`` adds that of the clean
            latents it implies; ``official_adapter`` takes the latter alone, weighted by EDM's sigma ** -2 =
            abar / (1 - abar), which is 0 at zero terminal SNR.
        prediction: float (B, C, h, w).
        target: Same shape.
        x0_prediction: Same shape; the clean latents that the prediction implies.
        x0: Same shape; the clean latents.
        alphas_cumprod: float (B,), abar at each sample's timestep.

    Returns:
        float (B, C, h, w).
    """
    if mode == "official_adapter":
        weight = (alphas_cumprod / (1 - alphas_cumprod)).view(-1, 1, 1, 1)
        return weight * (x0_prediction - x0).square()
    error = (prediction - target).square()
    return error + (x0_prediction - x0).square() if mode == "official_controlnet" else error


def region_sums(error: Tensor, masks: Tensor, mode: RegionMode = "area") -> tuple[Tensor, Tensor]:
    """The global objective and one per region, as sums over samples, to be divided by counts over the global batch.

    Args:
        error: float (B, C, h, w), squared errors.
        masks: bool (B, R, h, w).
        mode: ``area`` averages a region's error over its own area and over the samples that have it; the official
            modes over all elements of all samples, times `OFFICIAL_SCALE`: small regions then weigh little.

    Returns:
        float (1 + R,) sums, the global one first, and float (1 + R,) counts of samples.
    """
    inside = masks.to(error)
    masked = torch.einsum("bchw,brhw->br", error, inside) / error.shape[1]
    batch = error.new_full((1,), len(error))
    if mode != "area":
        regions = OFFICIAL_SCALE[mode] * masked / error[0, 0].numel()
        counts = batch.expand(masks.shape[1])
    else:
        area = inside.sum((2, 3))
        regions, counts = masked / area.clamp_min(1), (area > 0).to(error).sum(0)
    return torch.cat([error.mean((1, 2, 3)).sum()[None], regions.sum(0)]), torch.cat([batch, counts])
