"""Masks that hide everything that shows a person's appearance."""

from __future__ import annotations

import torch
from torch import Tensor

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS
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
