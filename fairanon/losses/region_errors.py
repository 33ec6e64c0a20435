"""Denoising errors of the whole image and of regions (FairHuman, equations 2 to 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RegionMode = Literal["area", "official", "official_controlnet", "official_adapter"]
OFFICIAL_SCALE = {"official": 25.0, "official_controlnet": 1.0, "official_adapter": 1.0}
"""The official LoRA script multiplies masked errors by 5 before it squares them, the two others do not."""


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


def region_errors(error: Tensor, masks: Tensor, mode: RegionMode = "area") -> Tensor:
    """Each sample's global error and its error in every region.

    The objectives are its sums over the global batch, divided by those of `region_presence`.

    Args:
        error: float (B, C, h, w), squared errors.
        masks: bool (B, R, h, w).
        mode: ``area`` averages a region's error over its own area and over the samples that have it; the official
            modes over all elements of all samples, times `OFFICIAL_SCALE`: small regions then weigh little.

    Returns:
        float (B, 1 + R), the global one first, 0 where a sample lacks the region.
    """
    inside = masks.to(error)
    whole, masked = error.mean((1, 2, 3))[:, None], (error.mean(1, keepdim=True) * inside).sum((2, 3))
    if mode == "area":
        regions = masked / inside.sum((2, 3)).clamp_min(1)
    else:
        regions = OFFICIAL_SCALE[mode] * masked / error[0, 0].numel()
    return torch.cat([whole, regions], 1)


def region_presence(masks: Tensor, mode: RegionMode = "area") -> Tensor:
    """Which samples count for which objective: bool (B, 1 + R) from masks (B, R, h, w); in official modes all do."""
    present = masks.flatten(2).any(2) if mode == "area" else torch.ones_like(masks[..., 0, 0])
    return torch.cat([present.new_ones(len(masks), 1), present], 1)
