"""What an inpainting U-Net is given beside noisy latents: 2C + 1 channels in all."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fairanon.imaging import resize_masks


def mask_latents(vae: AutoencoderKL, images: Tensor, masks: Tensor) -> Tensor:
    """The mask at latent size, and behind it the latents of what it leaves.

    Args:
        vae: Autoencoder of C latent channels.
        images: float (B, 3, H, W) in [-1, 1].
        masks: bool (B, 1, H, W), True where the image is inpainted.

    Returns:
        float32 (B, C + 1, h, w).
    """
    left = vae.encode(images * ~masks).latent_dist.mode().float() * float(vae.config.scaling_factor)
    return torch.cat([resize_masks(masks, left.shape[-2:]).to(left), left], 1)
