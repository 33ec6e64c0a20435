"""Classical redactions of a face: what everybody uses, and what ID2Face is measured against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.imaging import blur

Redaction = Literal["blur", "pixelate", "mask"]
REDACTIONS: tuple[Redaction, ...] = ("blur", "pixelate", "mask")


def redact(images: Tensor, masks: Tensor, kind: Redaction, strength: float) -> Tensor:
    """Blur, pixelate or paint over what the masks cover.

    Args:
        images: uint8 (B, 3, H, W).
        masks: bool (B, 1, H, W), the faces.
        kind: ``blur``: Gaussian, its deviation is ``strength`` times a quarter of the shorter side. ``pixelate``: blocks of
            up to ``strength`` times half of that side. ``mask``: grey that covers the face with this opacity.
        strength: In [0, 1]; 0 leaves the images as they are.

    Returns:
        uint8 (B, 3, H, W); outside the masks exactly the images.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}.")
    height, width = images.shape[-2:]
    side = min(height, width)
    if kind == "blur":
        worse = _bytes(blur(images.float(), strength * side / 4))
    elif kind == "pixelate":
        block = max(1.0, strength * side / 2)
        small = F.interpolate(images.float(), [max(1, round(n / block)) for n in (height, width)], mode="area")
        worse = F.interpolate(_bytes(small), (height, width), mode="nearest")
    elif strength == 1:
        worse = torch.full_like(images, 127)
    else:
        worse = _bytes(images.float().lerp(torch.full_like(images, 127.0, dtype=torch.float32), strength))
    return torch.where(masks, worse, images)


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
