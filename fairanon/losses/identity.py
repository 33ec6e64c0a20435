"""Losses of ID2Face (equations 11 to 22). Shapes: B samples, C latent channels, h x w latent size, D embedding width.

Which gradient reaches what: `identity_similarity` compares with a control vector that is detached (otherwise the ID-VAE
would learn to ask for whatever the image already shows); `identity_vae` alone trains the ID-VAE's decoder towards the
recognizer's embeddings; `region_prediction` trains the gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def latent_reconstruction(latents: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """Mean squared error of the clean latents, alpha-bar-weighted (equations 13 and 14, without lambda 1).

    Args:
        latents: float (B, C, h, w), z0.
        predicted: Likewise, the z0 that the prediction implies (equation 12).
        alpha_bar: float (B,), how much of z0 is left at each sample's timestep, in [0, 1].

    Returns:
        Scalar; the paper's norm is a sum, here a mean, as for the noise.
    """
    return (alpha_bar * (latents - predicted).square().mean((1, 2, 3))).mean()


def identity_similarity(embeddings: Tensor, control: Tensor, alpha_bar: Tensor) -> Tensor:
    """How far the drawn face is from the identity that was asked for (equations 15 and 18).

    Args:
        embeddings: float (B, D), of the decoded predicted z0, by a differentiable recognizer.
        control: float (B, D), the control vectors; detached here.
        alpha_bar: float (B,), see `latent_reconstruction`.

    Returns:
        float (B,).
    """
    return alpha_bar * (1 - F.cosine_similarity(embeddings, control.detach(), dim=1))


def region_prediction(gates: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Binary cross-entropy between the gates and the face's region, mean over the scales (equations 16 and 17).

    Args:
        gates: For each scale logits, float (B, 1, h, w).
        masks: bool (B, 1, H, W), the parser's; the label of a position is the share of its pixels that belong to the
            region, which at the masks' own size is the paper's 0 or 1.

    Returns:
        Scalar.
    """
    if not gates:
        raise ValueError("there is no gate map to supervise: run the U-Net first.")
    losses = []
    for logits in gates:
        height, width = logits.shape[-2:]
        region = F.adaptive_avg_pool2d(masks.float(), (height, width)).to(logits.dtype)
        losses.append(F.binary_cross_entropy_with_logits(logits, region))
    return torch.stack(losses).mean()


def identity_vae(embeddings: Tensor, rebuilt: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the rebuilt embeddings and divergence of the posterior from the prior (equations 19 and 20).

    Args:
        embeddings: float (B, D), the recognizer's.
        rebuilt: float (B, D).
        mean: float (B, d), the posterior's.
        log_variance: float (B, d), likewise.

    Returns:
        Both scalars, sums over the dimensions and means over the samples, as printed.
    """
    reconstruction = (embeddings - rebuilt).square().sum(1).mean()
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
    return reconstruction, divergence
