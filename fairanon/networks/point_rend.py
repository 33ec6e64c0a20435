"""PointRend for semantic segmentation (Kirillov et al. 2020) on a small torchvision backbone.

Shapes: B images, K classes, H x W size (multiples of 16), P points with coordinates (x, y) in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STAGES = ((0, 16), (1, 16), (3, 24), (8, 48))
"""Layers of MobileNetV3-small whose outputs are used, with their channels: strides 2, 4, 8 and 16."""


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps (B, C, h, w) at points (B, P, 2), bilinear: (B, C, P)."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False, padding_mode="border")[:, :, 0]


def uncertainty(logits: Tensor) -> Tensor:
    """How close the two most likely classes are: logits (B, K, ...) to (B, ...), 0 for a draw, lower for surer."""
    best = logits.topk(2, dim=1).values
    return best[:, 1] - best[:, 0]


class PointRend(nn.Module):
    """Coarse logits at half the size; a point head, which also sees full-size features, decides where they are unsure.

    The paper's coarse logits have a quarter of the size or less, of images thirty times as large: here a brow would
    vanish in them, and what is not seen is not unsure.

    Args:
        classes: K.
        width: Channels of the fused features.
        points: Points per image and training step.
        oversample: How many times as many are drawn, of which the least sure are taken.
        anywhere: Share of the points that is taken anywhere.
    """

    def __init__(
        self, classes: int, width: int = 64, points: int = 1024, oversample: int = 3, anywhere: float = 0.25
    ) -> None:
        super().__init__()
        self.classes, self.points, self.oversample, self.anywhere = classes, points, oversample, anywhere
        from torchvision.models import mobilenet_v3_small  # takes seconds, and few want a parser

        layers = mobilenet_v3_small(weights=None).features
        self.stages = nn.ModuleList()
        first = 0
        for last, _ in _STAGES:
            self.stages.append(layers[first : last + 1])
            first = last + 1
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for _, channels in _STAGES)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, width // 2, 3, padding=1)
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1),
        )  # fmt: skip
        widths = [width // 2 + width, width, width]
        self.head = nn.ModuleList(nn.Conv1d(inputs + classes, width, 1) for inputs in widths)
        self.last = nn.Conv1d(width + classes, classes, 1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Full-size features (B, width / 2, H, W) and fused ones (B, width, H / 2, W / 2) of images in [-1, 1]."""
        levels = []
        x = images
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        fused = levels[-1]
        for level in reversed(levels[:-1]):
            fused = level + F.interpolate(fused, level.shape[-2:], mode="bilinear")
        return self.stem(images), fused

    def point_logits(self, fine: Tensor, fused: Tensor, coarse: Tensor, points: Tensor) -> Tensor:
        """Logits (B, K, P) at points; every layer of the head sees the coarse logits again."""
        guess = sample_points(coarse, points)
        x = torch.cat([sample_points(fine, points), sample_points(fused, points)], 1)
        for layer in self.head:
            x = F.relu(layer(torch.cat([x, guess], 1)))
        return self.last(torch.cat([x, guess], 1))

    def training_points(self, coarse: Tensor, height: int, width: int) -> Tensor:
        """Points (B, P, 2), most of them where the coarse logits are unsure (section 3.1).

        Centres of pixels of an image of H x W: labels are known there, and half a pixel beside an edge the nearest one
        is wrong as often as not. The paper's images are so large that it does not matter.
        """
        batch = len(coarse)
        drawn = torch.rand(batch, self.points * self.oversample, 2, device=coarse.device)
        count = round(self.points * (1 - self.anywhere))
        chosen = uncertainty(sample_points(coarse, drawn)).topk(count, dim=1).indices
        unsure = drawn.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        points = torch.cat([unsure, torch.rand(batch, self.points - count, 2, device=coarse.device)], 1)
        size = coarse.new_tensor([width, height])
        return ((points * size).floor() + 0.5) / size

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the coarse logits and of the point head.

        Args:
            images: float (B, 3, H, W) in [-1, 1].
            labels: int64 (B, H, W).

        Returns:
            ``coarse`` and ``points``, scalars.
        """
        fine, fused = self.features(images)
        coarse = self.coarse(fused)
        points = self.training_points(coarse.detach(), *labels.shape[-2:])
        nearest = F.grid_sample(
            labels[:, None].float(), 2 * points[:, None] - 1, mode="nearest", padding_mode="border", align_corners=False
        )
        return {
            "coarse": F.cross_entropy(F.interpolate(coarse, labels.shape[-2:], mode="bilinear"), labels),
            "points": F.cross_entropy(self.point_logits(fine, fused, coarse, points), nearest[:, 0, 0].long()),
        }

    def forward(self, images: Tensor, budget: int | None = None) -> Tensor:
        """Logits (B, K, H, W) by subdivision: double the size, decide the least sure points anew, until it is reached.

        Args:
            images: float (B, 3, H, W) in [-1, 1].
            budget: Points decided anew per doubling; None is a quarter of those of each size.
        """
        fine, fused = self.features(images)
        coarse = logits = self.coarse(fused)
        while logits.shape[-1] < images.shape[-1]:
            logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear")
            height, width = logits.shape[-2:]
            count = min(height * width, height * width // 4 if budget is None else budget)
            chosen = uncertainty(logits).flatten(1).topk(count, dim=1).indices
            points = torch.stack([(chosen % width + 0.5) / width, (chosen // width + 0.5) / height], 2)
            decided = self.point_logits(fine, fused, coarse, points)
            where = chosen[:, None].expand(-1, self.classes, -1)
            logits = logits.flatten(2).scatter(2, where, decided).view_as(logits)
        return logits
