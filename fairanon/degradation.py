"""Makes faces unrecognizable as persons and keeps what they do: the identity mask of ID2Face (section III.C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from fairanon.imaging import blur as soften
from fairanon.imaging import dilate
from fairanon.landmarks import HeadFrame, pixel_centres
from fairanon.seeding import Key, keyed_generator

_GREY = 127


@dataclass(frozen=True)
class IdentityMask:
    """Which pixels could show who somebody is.

    Args:
        kind: ``parsed`` is the paper's: the parser's mask, dilated; its outline is the person's. ``generic``: one shape
            for everybody, fixed in the head's frame, which covers hair, ears and neck whoever it is: a half ellipse on a
            rectangle. What the parser sees outside it (a hand, say) is covered too, dilated.
        half_width: Of the shape, as a share of the image's side; the defaults fit faces aligned as FFHQ's are.
        up: How far it reaches above the head's origin, likewise.
        down: How far below, likewise.
        grow: Pixels of an image of 512 by which parsed masks are dilated.
    """

    kind: Literal["generic", "parsed"] = "generic"
    half_width: float = 0.42
    up: float = 0.46
    down: float = 0.46
    grow: int = 16

    def __post_init__(self) -> None:
        if min(self.half_width, self.up, self.down) <= 0 or self.grow < 0:
            raise ValueError(f"degradation.mask: sizes must be positive and grow not negative, got {self}.")

    def __call__(self, masks: Tensor, landmarks: Tensor) -> Tensor:
        """The pixels to be hidden.

        Args:
            masks: bool (B, 1, H, W), the parser's.
            landmarks: float (B, 68, 2), shares of the sides.

        Returns:
            bool (B, 1, H, W).
        """
        height, width = masks.shape[-2:]
        grow = round(self.grow * min(height, width) / 512)
        if self.kind == "parsed":
            return dilate(masks, grow)
        u, v = HeadFrame.of(landmarks).to_head(pixel_centres(height, width, masks.device).to(landmarks)).unbind(2)
        top = (u / self.half_width).square() + (v / self.up).square() <= 1
        shape = torch.where(v < 0, top, (u.abs() <= self.half_width) & (v <= self.down)).view(masks.shape)
        return shape | dilate(masks & ~shape, grow)


@dataclass(frozen=True)
class Degradation:
    """What is done to the pixels of the identity mask.

    ``paper``: blur, downsampling, noise and JPEG, each of a random strength: (x * k) down + n, compressed, up. The order
    and the kinds are those of blind face restoration (GFPGAN, which the paper cites); the ranges here are stronger, for
    nothing in the face may say whose it is. Lengths are in pixels of an image of 512. ``remove``: plain grey.

    Args:
        kind: See above.
        mask: Where.
        blur: Standard deviation of the blur.
        shrink: Factor of the downsampling.
        noise: Standard deviation of the noise, of values in [0, 255].
        quality: Of the JPEG.
    """

    kind: Literal["remove", "paper"] = "remove"
    mask: IdentityMask = IdentityMask()
    blur: tuple[float, float] = (4.0, 16.0)
    shrink: tuple[float, float] = (8.0, 24.0)
    noise: tuple[float, float] = (0.0, 20.0)
    quality: tuple[int, int] = (30, 90)

    def __post_init__(self) -> None:
        for name in ("blur", "shrink", "noise", "quality"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"degradation.{name}: a range from low to high, not negative, got {(low, high)}.")

    def __call__(
        self, images: Tensor, masks: Tensor, landmarks: Tensor, keys: Sequence[Sequence[Key]]
    ) -> tuple[Tensor, Tensor]:
        """Degrade each image where its identity mask is.

        Args:
            images: uint8 (B, 3, H, W).
            masks: bool (B, 1, H, W), the parser's.
            landmarks: float (B, 68, 2), shares of the sides.
            keys: B keys of the random strengths and of the noise.

        Returns:
            uint8 (B, 3, H, W) on the images' device, outside the mask exactly the images; and the mask, bool
            (B, 1, H, W).
        """
        hidden = self.mask(masks, landmarks)
        if self.kind == "remove":
            return images.masked_fill(hidden, _GREY), hidden
        rows = zip(images.cpu(), keys, strict=True)
        worse = torch.stack([self._one(image, keyed_generator(*key)) for image, key in rows])
        return torch.where(hidden, worse.to(images.device), images), hidden

    def _one(self, image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        ranges = (self.blur, self.shrink, self.noise, self.quality)
        u = torch.rand(len(ranges), generator=generator).tolist()
        blur, shrink, noise, quality = (
            low + (high - low) * share for (low, high), share in zip(ranges, u, strict=True)
        )
        sigma = max(1e-3, blur * min(height, width) / 512)
        x = soften(image[None].float(), sigma)
        factor = max(1.0, shrink * min(height, width) / 512)
        small = [max(1, round(side / factor)) for side in (height, width)]
        x = F.interpolate(x, small, mode="area")
        x = x + noise * torch.randn(x.shape, generator=generator)
        packed = encode_jpeg(x[0].round().clamp(0, 255).to(torch.uint8), quality=max(1, round(quality)))
        x = F.interpolate(decode_jpeg(packed)[None].float(), (height, width), mode="bilinear")
        return x[0].round().clamp(0, 255).to(torch.uint8)
