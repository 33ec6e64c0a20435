"""Condition images for control networks: the scene's pose as lines, its depth as grey."""

from __future__ import annotations

import torch
from torch import Tensor

from data_modules.synthetic_faces.head import landmarks, pose_heads
from data_modules.synthetic_faces.renderer import FINGERS, THUMB, hand_place
from data_modules.synthetic_faces.shapes import MASKS, SIZE, box, capsule, column, ellipse
from data_modules.synthetic_faces.world import Scenes

_LINES: tuple[tuple[range, bool, tuple[float, float, float]], ...] = (  # landmarks, closed, colour
    (range(17), False, (0.9, 0.9, 0.9)),
    (range(17, 22), False, (0.9, 0.6, 0.1)),
    (range(22, 27), False, (0.9, 0.6, 0.1)),
    (range(27, 31), False, (0.2, 0.8, 0.3)),
    (range(31, 36), False, (0.2, 0.8, 0.3)),
    (range(36, 42), True, (0.2, 0.5, 1.0)),
    (range(42, 48), True, (0.2, 0.5, 1.0)),
    (range(48, 60), True, (0.9, 0.2, 0.3)),
)
_HANDS = {-1.0: (0.2, 0.9, 0.9), 1.0: (0.9, 0.2, 0.9)}
_THICK = 0.016


def _axes() -> tuple[Tensor, Tensor]:
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    return axis.view(1, 1, SIZE), axis.view(1, SIZE, 1)


def pose_images(scenes: Scenes) -> Tensor:
    """Facial outlines and hand bones in colours on black.

    Args:
        scenes: B scenes with a person.

    Returns:
        uint8 (B, 3, 64, 64).
    """
    x, y = _axes()
    points = landmarks(pose_heads(scenes))
    canvas = torch.zeros(len(scenes), 3, SIZE, SIZE)

    def line(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], colour: tuple[float, float, float]) -> None:
        cover = (0.5 - capsule(x, y, *a, *b, _THICK) * (SIZE / 2)).clamp(0, 1)
        canvas.copy_(torch.maximum(canvas, cover[:, None] * torch.tensor(colour).view(1, 3, 1, 1)))

    def point(k: int) -> tuple[Tensor, Tensor]:
        return column(points[:, k, 0]), column(points[:, k, 1])

    for numbers, closed, colour in _LINES:
        ends = [*numbers[1:], *([numbers[0]] if closed else [])]
        for first, second in zip(numbers, ends, strict=False):
            line(point(first), point(second), colour)
    shown = column(scenes.hands)
    for side, colour in _HANDS.items():
        middle_x, middle_y, angle = hand_place(scenes, side)

        def place(
            hx: float, hy: float, side: float = side, angle: Tensor = angle,
            middle_x: Tensor = middle_x, middle_y: Tensor = middle_y,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            px, py = hx * angle.cos() - hy * angle.sin(), hx * angle.sin() + hy * angle.cos()
            return torch.where(shown, middle_x + side * px, 9.0), middle_y + py

        for tip_x, tip_y in FINGERS:
            line(place(0.0, 0.08), place(tip_x * 0.75, -0.05), colour)
            line(place(tip_x * 0.75, -0.05), place(tip_x * 1.08, tip_y), colour)
        line(place(0.0, 0.08), place(*THUMB[0]), colour)
        line(place(*THUMB[0]), place(*THUMB[1]), colour)
        line(place(0.0, 0.08), place(0.0, 0.3), colour)
    return (canvas * 255).round().to(torch.uint8)


_DEPTH = {"hair": 0.5, "face": 0.6, "eyes": 0.66, "brows": 0.7, "nose": 0.85, "lips": 0.7,
          "left_hand": 0.95, "right_hand": 0.95}  # fmt: skip


def depth_images(scenes: Scenes, masks: Tensor) -> Tensor:
    """Nearness as grey: background black, hands nearest.

    Args:
        scenes: B scenes with a person.
        masks: Their masks as `render` returns them.

    Returns:
        uint8 (B, 3, 64, 64), three equal channels.
    """
    x, y = _axes()
    head = pose_heads(scenes)
    u, v = head.to_head(x, y)
    male = column((scenes.gender == 1).float())
    depth = torch.zeros(len(scenes), SIZE, SIZE)
    for near, shape in (
        (0.35, ellipse(x - head.x * 0.5, y - 1.12, 0.78 + 0.06 * male, 0.68)),  # body
        (0.42, box(x - head.x, y - 0.42, 0.125 + 0.035 * male, 0.26, 0.04)),  # neck
        (0.48, ellipse(u, v + 0.02, head.width + 0.05, head.height + 0.05)),  # head, with whatever it wears
    ):
        depth = depth.lerp(torch.tensor(near), (0.5 - shape * (SIZE / 2)).clamp(0, 1))
    bulge = (1 - (u / head.width) ** 2 - (v / head.height) ** 2).clamp_min(0).sqrt()
    for name, near in _DEPTH.items():
        here = masks[:, MASKS.index(name)] > 0
        depth = torch.where(here, near + (0.1 * bulge if name in ("face", "eyes", "lips") else 0.0), depth)
    return (depth.clamp(0, 1) * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
