"""The frame of a head, from the 68 landmarks of its face: where it is and how it leans, not whose it is.

Shapes: B faces, P points. Coordinates are x and y as shares of a square image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = (slice(0, 17), slice(17, 27), slice(27, 36), slice(36, 48), slice(48, 68))
"""Jaw, brows, nose, eyes and mouth among the 68 points."""


@dataclass(frozen=True)
class HeadFrame:
    """Origin midway between the ends of the jaw line (points 0 and 16), turned as that line is.

    Attributes:
        origin: float (B, 2).
        direction: float (B, 2), unit, from the image's left end of the jaw line to its right one.
    """

    origin: Tensor
    direction: Tensor

    @classmethod
    def of(cls, landmarks: Tensor) -> HeadFrame:
        """The frames of faces, float (B, 68, 2)."""
        left, right = landmarks[:, 0], landmarks[:, 16]
        return cls((left + right) / 2, torch.nn.functional.normalize(right - left, dim=1))

    def to_head(self, points: Tensor) -> Tensor:
        """Points of the image (B or 1, P, 2) in the head's frame (B, P, 2), still in sides of the image."""
        away = points - self.origin[:, None]
        cos, sin = self.direction[:, None].unbind(2)
        return torch.stack([away[..., 0] * cos + away[..., 1] * sin, away[..., 1] * cos - away[..., 0] * sin], 2)

    def to_image(self, points: Tensor) -> Tensor:
        """The way back: points of the head's frame (B, P, 2) in the image."""
        cos, sin = self.direction[:, None].unbind(2)
        turned = [points[..., 0] * cos - points[..., 1] * sin, points[..., 0] * sin + points[..., 1] * cos]
        return torch.stack(turned, 2) + self.origin[:, None]


def pixel_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Where the pixels of an image are, row by row: float32 (1, height * width, 2)."""
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(1, -1, 2)


def raster(landmarks: Tensor, height: int, width: int, spread: float = 0.02) -> Tensor:
    """Heat maps of landmarks, one for each of `GROUPS`.

    Args:
        landmarks: float (B, 68, 2).
        height: H.
        width: W.
        spread: Deviation of a point's bell, as a share of the sides.

    Returns:
        float (B, 5, H, W), the sum of the points' bells, each 1 at its point.
    """
    y, x = ((torch.arange(n, device=landmarks.device) + 0.5) / n for n in (height, width))
    across = (-((landmarks[..., :1] - x) / spread).square() / 2).exp()  # (B, 68, W)
    down = (-((landmarks[..., 1:] - y) / spread).square() / 2).exp()
    return torch.stack([down[:, group].transpose(1, 2) @ across[:, group] for group in GROUPS], 1)
