"""Finds faces in photographs of any size: several scales, overlapping tiles, the boxes of several detectors together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fairanon.imaging import to_array
from fairanon.protocols import Detector

_SMALLEST = 12
"""Pixels of a face that a detector still finds."""
_OVERLAP = 128
"""Of tiles, in their own pixels, half of a tile at most: larger faces are found in the photograph as a whole."""
_WHOLE = 1.7
"""Photographs of up to so many times the detector's side are seen at their own size; larger ones in tiles, reduced as far as the smallest face allows."""
_TURNED = 0.35
"""Score of a face in a turned copy at least: cups and windows on their side look more like faces than upright ones."""
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
        side: The longer side at which a detector sees a photograph, in pixels; one that is up to 1.7 times as large is seen as it is, too, unless ``fast``.
        smallest: The side of the smallest face that is looked for, in pixels of the photograph.
        tiles: Look at large photographs in parts as well, so that faces of ``smallest`` pixels are found.
        fast: Look at fewer scales, and only at the photograph as it lies: who lies down, and who stands behind noise or a
            pattern, is found less often.
    """

    def __init__(
        self,
        detectors: Sequence[FaceFinder],
        side: int = 1280,
        smallest: float = 20,
        tiles: bool = True,
        fast: bool = False,
    ) -> None:
        self.detectors, self.side, self.smallest, self.tiles, self.fast = detectors, side, smallest, tiles, fast

    def find(self, pixels: Tensor) -> Found:
        """Every face of a photograph uint8 (3, H, W), the surest first."""
        boxes, scores, quarters = [torch.empty(0, 4)], [torch.empty(0)], [0] * 0
        for detector in self.detectors:
            for look in self._looks(pixels) if detector.any_scale else [_Look(pixels)]:
                detections = detector.detect(look.part[None])[0]["face"]
                sure = detections.scores >= (_TURNED if look.quarters else 0.0)
                boxes.append(look.in_the_photograph(detections.boxes[sure]))
                scores.append(detections.scores[sure])
                quarters += [look.quarters] * int(sure.sum())
        limit = torch.tensor([pixels.shape[-1], pixels.shape[-2]]).repeat(2).float()
        kept = Found(torch.cat(boxes).clamp_min(0).minimum(limit), torch.cat(scores), torch.tensor(quarters).long())
        return kept.united()[0]

    def _looks(self, pixels: Tensor) -> Iterator[_Look]:
        height, width = pixels.shape[-2:]
        longer = max(height, width)
        sides = [min(self.side, 2 * longer)]
        if self.tiles and longer > self.side // 2:
            sides.append(self.side // 3)  # faces that fill the photograph
        if not self.fast:  # not enlarged or reduced, which blurs; halved, against noise and lines
            own = longer if longer <= _WHOLE * self.side else self.side
            sides += [own, min(own, self.side) // 2]
        for side in dict.fromkeys(sides):
            yield _Look(*resized(pixels, side / longer))
        yield from self._tiles(pixels, max(sides))
        if self.fast:
            return
        small, (along_x, along_y) = resized(pixels, min(1.0, self.side // 2 / longer))
        for quarters in (1, 2, 3):  # who lies, or stands on their head
            scale = (along_y, along_x) if quarters % 2 else (along_x, along_y)
            yield _Look(small.rot90(quarters, (1, 2)), scale, quarters=quarters)
        if _noise(pixels) > _NOISY:
            yield _Look(*resized(_smoothed(pixels), min(1.0, self.side / longer)))

    def _tiles(self, pixels: Tensor, seen: float) -> Iterator[_Look]:
        """Parts of a photograph that shows more than at a longer side of ``seen`` pixels."""
        height, width = pixels.shape[-2:]
        finest = min(1.0, _SMALLEST / self.smallest)
        if not self.tiles or finest * max(height, width) <= seen:
            return
        reach, shared = self.side / finest, min(_OVERLAP, self.side // 2) / finest
        for top, bottom in _spans(height, reach, shared):
            for left, right in _spans(width, reach, shared):
                yield _Look(*resized(pixels[:, top:bottom, left:right], finest), (left, top))


@dataclass
class _Look:
    """What a detector looks at.

    Attributes:
        part: uint8 (3, h, w).
        scale: How much it is enlarged along x and y.
        corner: Where it begins in the photograph, x and y.
        quarters: How often all of the photograph was turned by 90 degrees, anticlockwise.
    """

    part: Tensor
    scale: tuple[float, float] = (1.0, 1.0)
    corner: tuple[float, float] = (0.0, 0.0)
    quarters: int = 0

    def in_the_photograph(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) of the part as those of the photograph."""
        boxes = boxes / torch.tensor(self.scale).repeat(2) + torch.tensor(self.corner).repeat(2)
        height, width = (self.part.shape[k] / self.scale[-1 - k] for k in (-2, -1))
        return turned(boxes, height, width, -self.quarters % 4)


def turned(boxes: Tensor, height: float, width: float, quarters: int) -> Tensor:
    """Boxes (N, 4) of an image of this size, once it was turned by so many quarters, anticlockwise (`torch.rot90`)."""
    for _ in range(quarters):
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes, height, width = torch.stack([y0, width - x1, y1, width - x0], 1), width, height
    return boxes


_NOISY = 10.0
"""Grey values of noise from which on a smoothed copy is looked at too."""


def _noise(pixels: Tensor) -> float:
    """Standard deviation of a photograph's noise in grey values, robustly by a difference of Laplacians (Immerkaer, 1996)."""
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    bands = max(1, pixels.shape[1] // 512)  # a part of the rows of a large photograph is enough
    rows = [pixels[1, k : k + 512 // bands] for k in range(0, pixels.shape[1], bands * (512 // bands))]
    grey = np.concatenate([np.asarray(band.numpy()) for band in rows]).astype(np.float32)
    return float(np.median(np.abs(cv2.filter2D(grey, -1, kernel)))) / 6 / 0.6745


def _smoothed(pixels: Tensor) -> Tensor:
    import cv2

    return torch.from_numpy(cv2.medianBlur(to_array(pixels), 5)).permute(2, 0, 1)


def _spans(length: int, reach: float, overlap: float) -> list[tuple[int, int]]:
    """Where tiles begin and end: as few as reach, all of one size, and no larger than they must be."""
    count = 1 if length <= reach else math.ceil((length - overlap) / (reach - overlap))
    size = (length + (count - 1) * overlap) / count
    return [(math.floor(k * (size - overlap)), math.ceil(k * (size - overlap) + size)) for k in range(count)]


def resized(pixels: Tensor, scale: float) -> tuple[Tensor, tuple[float, float]]:
    """An image enlarged or reduced, and how much along x and y."""
    import cv2  # ten times faster than torch here

    height, width = pixels.shape[-2:]
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    array = np.asarray(pixels.permute(1, 2, 0).numpy())
    if shape != (width, height):
        if scale <= 0.5:  # by halves: much faster than all the way
            half = 2 ** int(math.log2(1 / scale))
            array = cv2.resize(array, (max(1, width // half), max(1, height // half)), interpolation=cv2.INTER_AREA)
        array = cv2.resize(array, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return torch.from_numpy(array).permute(2, 0, 1), (shape[0] / width, shape[1] / height)


@dataclass
class Found:
    """Faces.

    Attributes:
        boxes: float (N, 4), x0 y0 x1 y1 in pixels.
        scores: float (N,).
        quarters: int64 (N,), by how many quarters anticlockwise the photograph was turned when the face was seen.
    """

    boxes: Tensor
    scores: Tensor
    quarters: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def united(self) -> tuple[Found, list[Tensor]]:
        """One box for each face, the hull of all that overlap with the surest one, the surest first; and their rows."""
        order = self.scores.argsort(descending=True, stable=True)
        left = (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        groups = []
        for row in order.tolist():
            if left[row]:
                same = left & (overlap(self.boxes[row], self.boxes) > _SAME)
                same[row] = True
                left &= ~same
                groups.append(order[same[order]])
        hulls = [torch.cat([self.boxes[g][:, :2].amin(0), self.boxes[g][:, 2:].amax(0)]) for g in groups]
        first = torch.stack([g[0] for g in groups]) if groups else torch.empty(0, dtype=torch.long)
        boxes = torch.stack(hulls) if hulls else torch.empty(0, 4)
        return Found(boxes, self.scores[first], self.quarters[first]), groups


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with each of (N, 4): float (N,).

    It is torchvision's ``box_iou``, whose import takes as long as torch's.
    """
    shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp_min(0).prod(1)
    both = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (shared / (both - shared)).nan_to_num()
