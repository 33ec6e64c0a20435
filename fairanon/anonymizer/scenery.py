"""What lies outside of the faces: whether a result shows the scene of its original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.hide import region

SHARED = 0.7
"""Likeness below which two pictures are not of the same scene."""
_SAME, _CLEARLY = 0.98, 0.01
"""Likeness from which on two pictures show one scene, and how much more than its own another's must be: studio portraits before
one backdrop are all alike to .9 and more."""
_SIDE = 64
_ROUND = 1.5
"""What counts as a face and what hides it, as a multiple of its box."""


@dataclass(frozen=True)
class Scenery:
    """Small grey copies of an original and of its result: float (h, w), 64 pixels at most, and what is outside of faces."""

    original: Tensor
    result: Tensor
    outside: Tensor


def scenery(pixels: Tensor, other: Tensor, boxes: Tensor) -> Scenery:
    """What lies outside of the faces.

    Args:
        pixels: uint8 (3, H, W), the original.
        other: uint8, same shape, the result.
        boxes: float (N, 4), faces.
    """
    height, width = pixels.shape[-2:]
    shown = torch.ones(1, height, width)
    for box in boxes.tolist():
        x0, y0, x1, y1 = region(box, _ROUND, height, width)
        shown[:, y0:y1, x0:x1] = 0
    shape = [max(1, round(side * _SIDE / max(height, width))) for side in (height, width)]
    original, two, seen = (
        F.interpolate(image.float().mean(0, keepdim=True)[None], shape, mode="area")[0, 0]
        for image in (pixels, other, shown)
    )
    return Scenery(original, two, seen > 0.99)


def likeness(original: Scenery, result: Scenery | None = None) -> float | None:
    """How alike an original and a result are outside of the faces: the correlation of the small grey copies.

    Args:
        original: Of which the original counts.
        result: Of which the result counts; None: the same pair's.

    Returns:
        -1 to 1; None where less than a quarter of the picture is outside of faces, or that has one colour, or the shapes differ.
    """
    result = original if result is None else result
    if original.original.shape != result.result.shape:
        return None
    outside = original.outside & result.outside
    if float(outside.double().mean()) < 0.25:
        return None
    rows = torch.stack([original.original[outside], result.result[outside]])
    if float(rows[0].std()) < 2:
        return None
    return 0.0 if float(rows[1].std()) < 1e-3 else float(torch.corrcoef(rows)[0, 1])


def foreign(pair: Scenery, other: Scenery, surely: bool = True) -> bool:
    """Whether a pair's result shows another pair's scene rather than its own.

    Args:
        pair: Whose result.
        other: Whose scene.
        surely: It shows nearly the same; otherwise it is more like the other's than its own, as half of the results are that fit neither.
    """
    own, crossed = likeness(pair), likeness(other, pair)
    return own is not None and crossed is not None and crossed > max(_SAME * surely, own + _CLEARLY)
