"""Makes faces unrecognizable as persons and keeps what they do: the identity mask of ID2Face (section III.C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from fairanon.imaging import blur as soften
from fairanon.seeding import Key, keyed_generator


@dataclass(frozen=True)
class Degradation:
    """Blur, downsampling, noise and JPEG inside the face, each of a random strength: (x * k) down + n, compressed, up.

    The order and the kinds are those of blind face restoration (GFPGAN, which the paper cites); the ranges here are
    stronger, for nothing in the face may say whose it is. Lengths are in pixels of a picture of 512.

    Args:
        blur: Standard deviation of the blur.
        shrink: Factor of the downsampling.
        noise: Standard deviation of the noise, of values in [0, 255].
        quality: Of the JPEG.
        tint: The face's mean colour becomes a random one between these values of [0, 255]: whatever else is done to a
            face, its mean colour tells the tone group. None keeps it.
    """

    blur: tuple[float, float] = (4.0, 16.0)
    shrink: tuple[float, float] = (8.0, 24.0)
    noise: tuple[float, float] = (0.0, 20.0)
    quality: tuple[int, int] = (30, 90)
    tint: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("blur", "shrink", "noise", "quality", "tint"):
            low, high = getattr(self, name) or (0, 0)
            if not 0 <= low <= high:
                raise ValueError(f"degradation.{name}: a range from low to high, not negative, got {(low, high)}.")

    def __call__(self, pictures: Tensor, masks: Tensor, keys: Sequence[Sequence[Key]]) -> Tensor:
        """Degrade each picture where its mask is.

        Args:
            pictures: uint8 (B, 3, H, W).
            masks: bool (B, 1, H, W), the face's skin and features.
            keys: B keys of the random strengths and of the noise.

        Returns:
            uint8 (B, 3, H, W) on the pictures' device; outside the masks exactly the pictures.
        """
        rows = zip(pictures.cpu(), masks.cpu(), keys, strict=True)
        worse = torch.stack([self._one(picture, mask, keyed_generator(*key)) for picture, mask, key in rows])
        return torch.where(masks, worse.to(pictures.device), pictures)

    def _one(self, picture: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        height, width = picture.shape[-2:]
        ranges = (self.blur, self.shrink, self.noise, self.quality)
        u = torch.rand(len(ranges), generator=generator).tolist()
        blur, shrink, noise, quality = (
            low + (high - low) * share for (low, high), share in zip(ranges, u, strict=True)
        )
        sigma = max(1e-3, blur * min(height, width) / 512)
        x = soften(picture[None].float(), sigma)
        factor = max(1.0, shrink * min(height, width) / 512)
        small = [max(1, round(side / factor)) for side in (height, width)]
        x = F.interpolate(x, small, mode="area")
        x = x + noise * torch.randn(x.shape, generator=generator)
        packed = encode_jpeg(x[0].round().clamp(0, 255).to(torch.uint8), quality=max(1, round(quality)))
        x = F.interpolate(decode_jpeg(packed)[None].float(), (height, width), mode="bilinear")
        if self.tint is not None:
            low, high = self.tint
            colour = low + (high - low) * torch.rand(3, 1, generator=generator)
            mean = x[0, :, mask[0]].mean(1, keepdim=True)
            x = x + (colour - mean)[:, :, None]
        return x[0].round().clamp(0, 255).to(torch.uint8)
