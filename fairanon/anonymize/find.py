"""Finds faces in photographs of any size: several scales, overlapping tiles, the boxes of several detectors together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fairanon.protocols import Detections, Detector

_SMALLEST = 10
"""Pixels of a face that a detector still finds."""
_OVERLAP = 128
"""Of tiles, in their own pixels: larger faces are found in the photograph as a whole."""
_SAME = 0.4
"""Intersection over union above which two boxes are of one face."""


class FaceFinder(Detector, Protocol):
    """A detector for photographs."""

    licence: str
    """Of its weights."""
    any_scale: bool
    """It finds faces of many sizes; otherwise photographs are shown to it as they are."""


class Finder:
    """Finds everybody's face, rather too many than too few.

    Args:
        detectors: Their boxes are united.
        side: The longer side at which a detector sees a photograph, in pixels.
        smallest: The side of the smallest face that is looked for, in pixels of the photograph.
        tiles: Look at large photographs in parts as well, so that faces of ``smallest`` pixels are found.
    """

    def __init__(
        self, detectors: Sequence[FaceFinder], side: int = 1280, smallest: float = 20, tiles: bool = True
    ) -> None:
        self.detectors, self.side, self.smallest, self.tiles = detectors, side, smallest, tiles

    def find(self, pixels: Tensor) -> Detections:
        """Every face of a photograph uint8 (3, H, W), the surest first."""
        boxes, scores = [torch.empty(0, 4)], [torch.empty(0)]
        for detector in self.detectors:
            for part, scale, corner in self._parts(pixels, detector.any_scale):
                found = detector.detect(part[None])[0]["face"]
                boxes.append(found.boxes / torch.tensor(scale).repeat(2) + torch.tensor(corner).repeat(2))
                scores.append(found.scores)
        limit = torch.tensor([pixels.shape[-1], pixels.shape[-2]]).repeat(2).float()
        return _united(torch.cat(boxes).clamp_min(0).minimum(limit), torch.cat(scores))

    def _parts(self, pixels: Tensor, any_scale: bool) -> Iterator[tuple[Tensor, _Pair, _Pair]]:
        """What a detector looks at: the part, how much it is enlarged along x and y, and its corner in the photograph."""
        height, width = pixels.shape[-2:]
        longer = max(height, width)
        if not any_scale:
            yield pixels, (1.0, 1.0), (0.0, 0.0)
            return
        sides = [min(self.side, 2 * longer)]
        if self.tiles and longer > self.side // 2:
            sides.append(self.side // 3)  # faces that fill the photograph
        for side in sides:
            yield *resized(pixels, side / longer), (0.0, 0.0)
        finest = min(1.0, _SMALLEST / self.smallest)
        if not self.tiles or finest * longer <= 1.2 * sides[0]:
            return
        reach = self.side / finest
        for top in _steps(height, reach, _OVERLAP / finest):
            for left in _steps(width, reach, _OVERLAP / finest):
                tile = pixels[:, top : top + math.ceil(reach), left : left + math.ceil(reach)]
                yield *resized(tile, finest), (left, top)


_Pair = tuple[float, float]


def _steps(length: int, reach: float, overlap: float) -> list[int]:
    """Where tiles begin."""
    if length <= reach:
        return [0]
    count = math.ceil((length - overlap) / (reach - overlap))
    return [round(k * (length - reach) / (count - 1)) for k in range(count)]


def resized(pixels: Tensor, scale: float) -> tuple[Tensor, tuple[float, float]]:
    """An image enlarged or reduced, and how much along x and y."""
    import cv2  # ten times faster than torch here

    height, width = pixels.shape[-2:]
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    array = np.asarray(pixels.permute(1, 2, 0).numpy())
    if shape != (width, height):
        if scale <= 0.5:  # by halves: much faster than all the way
            half = 2 ** int(math.log2(1 / scale))
            array = cv2.resize(array, (width // half, height // half), interpolation=cv2.INTER_AREA)
        array = cv2.resize(array, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return torch.from_numpy(array).permute(2, 0, 1), (shape[0] / width, shape[1] / height)


def _united(boxes: Tensor, scores: Tensor) -> Detections:
    """One box for each face: the hull of all that overlap with the surest one."""
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]
    left = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept, sure = [], []
    for row in range(len(boxes)):
        if not left[row]:
            continue
        same = left & (overlap(boxes[row], boxes) > _SAME)
        same[row] = True
        near = boxes[same]
        kept.append(torch.cat([near[:, :2].amin(0), near[:, 2:].amax(0)]))
        sure.append(scores[row])
        left &= ~same
    if not kept:
        return Detections(torch.empty(0, 4), torch.empty(0))
    return Detections(torch.stack(kept), torch.stack(sure))


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with each of (N, 4): float (N,)."""
    size = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp_min(0)
    shared = size.prod(1)
    total = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (total - shared).clamp_min(1e-9)
