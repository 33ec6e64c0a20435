"""Signed distances, colours and the canvas that paints them.

Coordinates: x to the right, y down, the image spans [-1, 1] in both. Every shape is a signed distance (negative
inside); a pixel's coverage is ``0.5 - distance / pixel`` clamped to [0, 1], which anti-aliases.

Shapes: B batch, S image side. A quantity of a scene is (B, 1, 1), a field over the image (B, S, S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE = 64
PARTS = ("face", "eyes", "brows", "nose", "lips", "hair", "left_hand", "right_hand")
"""What the segmenter tells apart; left and right are the image's."""
MASKS = (*PARTS, "neck", "ears", "glasses")
"""What the renderer knows: glasses lie over other parts, of the rest a pixel belongs to one at most."""


def ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """First-order distance to an ellipse round the origin."""
    nx, ny = x / rx, y / ry
    radius = (nx * nx + ny * ny).sqrt_().clamp_min_(1e-4)
    gradient = ((nx / rx) ** 2 + (ny / ry) ** 2).sqrt_().clamp_min_(1e-4)
    return radius * (radius - 1) / gradient


def box(x: Tensor, y: Tensor, hx: Tensor | float, hy: Tensor | float, corner: float = 0.0) -> Tensor:
    """Distance to a box round the origin with rounded corners (exact along the sides)."""
    return torch.maximum(x.abs() - hx, y.abs() - hy) if not corner else rounded(x.abs() - hx, y.abs() - hy, corner)


def rounded(dx: Tensor, dy: Tensor, corner: float) -> Tensor:
    """Distance to a box with round corners from the distances to its sides."""
    dx, dy = dx + corner, dy + corner
    outside = (dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2).sqrt_()
    return outside + torch.maximum(dx, dy).clamp_max(0) - corner


def capsule(
    x: Tensor,
    y: Tensor,
    ax: Tensor | float,
    ay: Tensor | float,
    bx: Tensor | float,
    by: Tensor | float,
    r: Tensor | float,
) -> Tensor:
    """Distance to a thick line from a to b."""
    px, py = x - ax, y - ay
    dx, dy = bx - ax, by - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-6)).clamp_(0, 1)
    return ((px - along * dx) ** 2 + (py - along * dy) ** 2).sqrt_() - r


class Canvas:
    """Paints colours through distances, back to front, over a window of the image's rows.

    ``covered`` holds the visible part of each mask: what is painted later hides what was painted before.
    """

    def __init__(self, image: Tensor, masks: Tensor | None) -> None:
        self.image, self.masks = image, masks
        self.pixel = 2 / image.shape[-1]

    def rows(self, rows: slice) -> Canvas:
        """The same canvas, some rows of it."""
        return Canvas(self.image[:, :, rows], None if self.masks is None else self.masks[:, :, rows])

    def paint(self, distance: Tensor, colour: Tensor, opacity: float = 1.0, mask: str | None = None) -> Tensor:
        """Blend ``colour`` ((3,), (B, 3, 1, 1) or (B, 3, S, S)) where ``distance`` is negative; return the coverage."""
        cover = (0.5 - distance / self.pixel).clamp_(0, 1) * opacity
        if colour.dim() == 1:
            colour = colour.view(1, 3, 1, 1)
        self.image.lerp_(colour.expand_as(self.image), cover[:, None].expand_as(self.image))
        if self.masks is not None:
            if opacity == 1.0:
                self.masks *= 1 - cover[:, None]
            if mask is not None:
                self.masks[:, MASKS.index(mask)] += cover
        return cover


def column(values: Tensor) -> Tensor:
    """A scene's quantity (B,) as (B, 1, 1)."""
    return values[:, None, None]


def mix(low: float, high: float, share: Tensor) -> Tensor:
    """The value at ``share`` of the way from ``low`` to ``high``."""
    return low + (high - low) * share


def along(axis: Tensor, position: Tensor) -> Tensor:
    """Colour at ``position`` in [0, 1] on a piecewise linear ``axis`` (K, 3): (B, 3)."""
    scaled = position.clamp(0, 1) * (len(axis) - 1)
    low = scaled.floor().clamp_max(len(axis) - 2)
    return torch.lerp(axis[low.long()], axis[low.long() + 1], (scaled - low)[:, None])


def colour(rgb: Tensor) -> Tensor:
    """Colours (B, 3) as (B, 3, 1, 1)."""
    return rgb[:, :, None, None]


def triangle(x: Tensor, y: Tensor, width: float, depth: float) -> Tensor:
    """A triangle pointing down from y = 0."""
    slope = math.hypot(width, depth)
    return torch.maximum((x.abs() * depth + y * width - width * depth) / slope, -y)


def rgb(red: int, green: int, blue: int) -> Tensor:
    """A colour from its usual 0 to 255."""
    return torch.tensor([red, green, blue]) / 255
