"""Masks for inpainting: everything that shows a person's appearance, parts of the face, random shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS, SIZE, ellipse
from data_modules.synthetic_faces.world import TONES, Scenes
from fairanon.imaging import dilate


def appearance_masks(scenes: Scenes, grow: int = 2) -> Tensor:
    """Whatever could betray a person: face, hair and everything whose colour depends on the tone (neck, ears, hands).

    Found by drawing each scene in the two outermost tones: what differs, depends on it. A mask of the face alone
    leaves the neck, and an inpainting model reads the tone off it.

    Args:
        scenes: B scenes with a person.
        grow: Pixels by which the mask is dilated.

    Returns:
        bool (B, 1, 64, 64).
    """
    ends = []
    for tone in (0, len(TONES) - 1):
        ends.append(render(scenes.replace(tone=torch.full_like(scenes.tone, tone)), masks=True))
    differs = (ends[0].image.int() - ends[1].image.int()).abs().amax(1, keepdim=True) > 0
    assert ends[0].masks is not None
    head = ends[0].masks[:, : MASKS.index("hair") + 1].bool().any(1, keepdim=True)
    return dilate(differs | head, grow)


def random_masks(generator: torch.Generator, count: int) -> Tensor:
    """Rectangles and ellipses of a tenth to half of the picture, as in SD-inpainting's training: bool (count, 1, 64, 64)."""
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    x, y = axis.view(1, 1, SIZE), axis.view(1, SIZE, 1)
    middle = 1.2 * torch.rand(count, 2, generator=generator) - 0.6
    half = 0.3 + 0.5 * torch.rand(count, 2, generator=generator)
    dx, dy = x - middle[:, 0, None, None], y - middle[:, 1, None, None]
    hx, hy = half[:, 0, None, None], half[:, 1, None, None]
    box = torch.maximum(dx.abs() - hx, dy.abs() - hy) < 0
    round_ones = ellipse(dx, dy, hx, hy) < 0
    return torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, box, round_ones)[:, None]
