"""Masks that hide everything that shows a person's appearance."""

from __future__ import annotations

import torch
from torch import Tensor

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS
from data_modules.synthetic_faces.world import TONES, Scenes
from fairanon.imaging import dilate


def boxes(masks: Tensor) -> Tensor:
    """The box round each mask: bool (..., H, W), empty where the mask is."""
    result = masks.any(-1, keepdim=True) & masks.any(-2, keepdim=True)  # rows and columns that are touched ...
    for axis in (-1, -2):  # ... and what lies between them
        before = result.cumsum(axis) > 0
        after = result.flip(axis).cumsum(axis).flip(axis) > 0
        result = before & after
    return result


def appearance_masks(scenes: Scenes, grow: int = 2) -> Tensor:
    """Boxes round whatever could betray a person: head and neck with the hair, and each hand.

    What depends on the tone is found by drawing each scene in the two outermost ones: a mask of the face alone leaves
    the neck, and an inpainting model reads the tone off it. Boxes, because it reads a face's shape off a mask that
    follows it.

    Args:
        scenes: B scenes with a person.
        grow: Pixels by which the boxes are wider.

    Returns:
        bool (B, 1, 64, 64).
    """
    ends = []
    for tone in (0, len(TONES) - 1):
        ends.append(render(scenes.replace(tone=torch.full_like(scenes.tone, tone)), masks=True))
    assert ends[0].masks is not None
    differs = (ends[0].image.int() - ends[1].image.int()).abs().amax(1, keepdim=True) > 0
    parts = ends[0].masks.bool()
    hands = parts[:, [MASKS.index("left_hand"), MASKS.index("right_hand")]]
    hands = boxes(dilate(hands, 2))
    head = boxes((differs & ~hands.any(1, keepdim=True)) | parts[:, : MASKS.index("hair") + 1].any(1, keepdim=True))
    return dilate(differs | head | hands.any(1, keepdim=True), grow)
