"""Hides faces by what everybody uses: a solid mask, pixelation, blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.faces import Face, Paint, Picture
from fairanon.config.experiments import UserError
from fairanon.imaging import CorruptImageError, Square, combine_regions, opened, to_rgb
from fairanon.protocols import FaceParser
from fairanon.redaction import Redaction, redact

GREY = 127
"""Of a solid mask."""
_GROWS = 1.2
"""A face that is still recognized has more round it hidden the next time: hair, a neck."""
_STRONGER = 1.6
Shape = Literal["auto", "box", "ellipse"]
_CORE = 0.86
"""Up to this part of its radius an ellipse is hidden whole; from there to its edge the picture fades in."""
_CORNER = 2**0.25
"""Where the corner of a box lies that an ellipse of the fourth degree was drawn into, as a multiple of the radius."""
_LARGEST = 2048
"""Pixels of the longer side of an image that a mask shows."""
_BLUR_SIDE = 256
"""A blurred face has no finer detail than this many pixels across: larger ones are blurred at this size."""


class Hider(Protocol):
    """Hides faces; how depends on a picture's name, the face and its attempt, not on what else is hidden with it."""

    name: str

    def draw(self, pictures: Sequence[Picture]) -> None:
        """What takes time and is done for many pictures at once: whatever their faces need."""
        ...

    def wants_more(self, pictures: Sequence[Picture]) -> bool:
        """Whether it is worth waiting for more pictures before these are drawn."""
        ...

    def apply(self, picture: Picture) -> Tensor:
        """The picture with all its faces hidden, uint8 (3, H, W); its faces say by which method, and where."""
        ...

    def new_face(self, name: str, number: int) -> str:
        """Which new face a picture's face gets: the same text for all that get it, and empty for one that nobody else gets."""
        ...

    def forget(self, picture: Picture) -> None:
        """Nobody asks for this picture any more."""
        ...


class Classical:
    """A solid mask, pixelation or blur of the box round a face.

    A face that is recognized nevertheless is hidden more strongly, the last time by a solid mask: of that nothing can be
    computed back. One that no recognizer can test is hidden at full strength at once.

    Args:
        kind: Which.
        strength: Of the first attempt, see `redact`; a mask is always solid.
        box_scale: Side of what is hidden as a multiple of the detected box's.
        tries: How often it is tried.
        parser: Says what of a face stays.
        keep: Which of its regions, joined by +; "" for none. What stays can tell who it is.
        shape: Of what is hidden; "auto" is an ellipse that fades in for blur and pixelation, a box for a mask.
        colour: Of a mask: red, green and blue, 0 to 255; in a picture without colours the grey of the same lightness.
        image: What a mask shows, stretched to its size; where it is transparent it shows the colour, never the face. The last
            mask shows the colour alone.
    """

    def __init__(
        self,
        kind: Redaction,
        strength: float = 0.5,
        box_scale: float = 1.4,
        tries: int = 4,
        parser: FaceParser | None = None,
        keep: str = "",
        shape: Shape = "auto",
        colour: tuple[int, int, int] = (GREY, GREY, GREY),
        image: Path | None = None,
    ) -> None:
        self.colour, self.image = colour, None if image is None else _opaque(image, colour)
        self.name: str = kind
        self.shape = shape
        self.strength, self.box_scale, self.tries = strength, box_scale, tries
        self.kind, self.parser, self.keep = kind, parser, keep

    def draw(self, pictures: Sequence[Picture]) -> None:
        """See `Hider`: there is nothing to prepare."""

    def wants_more(self, pictures: Sequence[Picture]) -> bool:
        """See `Hider`: pictures have nothing in common."""
        return False

    def new_face(self, name: str, number: int) -> str:
        """See `Hider`: nobody gets one."""
        return ""

    def forget(self, picture: Picture) -> None:
        """See `Hider`: nothing is kept."""

    def apply(self, picture: Picture) -> Tensor:
        """See `Hider`."""
        result = picture.photo.pixels.clone(memory_format=torch.preserve_format)
        painted: list[tuple[Face, Tensor, Tensor]] = []
        for face in picture.asked:
            last = 0 < face.attempt == self.tries - 1
            kind: Redaction = "mask" if last else self.kind
            full = kind == "mask" or not face.testable  # what nobody can test is hidden as well as can be
            strength = 1.0 if full else min(1.0, self.strength * _STRONGER**face.attempt)
            face.method, face.strength = kind, None if kind == "mask" else round(strength, 3)
            grown = _GROWS ** (face.attempt if self.kind == "mask" else 2 * last)
            scale = self.box_scale * grown
            face.region = region(face.box, scale, *result.shape[-2:])
            x0, y0, x1, y1 = face.region
            near = result[:, y0:y1, x0:x1]
            taken = torch.ones(1, *near.shape[-2:], dtype=torch.bool)
            if kind == "mask":
                hidden = self._paint(near, picture.photo.grey, plain=last)
            else:
                hidden = _redacted(near, kind, strength)
            face.ellipse = scale if self.shape == "ellipse" or (self.shape == "auto" and kind != "mask") else 0.0
            if face.ellipse:
                weight = ellipse(face.box, scale, face.region)
                if kind == "mask":  # paint does not fade: it is told by its colour
                    taken = weight[None] > 0.5
                    weight = taken[0].float()
                hidden = near.float().lerp(hidden.float(), weight).round().to(torch.uint8)
            if self.keep and self.parser is not None:
                taken = taken & self._mask(picture, face, self.parser)
                hidden = torch.where(taken, hidden, near)
            near.copy_(hidden)
            if kind == "mask":
                painted.append((face, near, taken))
        for face, near, taken in painted:  # one mask may lie upon another
            face.paint = Paint(near.clone(), taken[0])
        return result

    def _paint(self, near: Tensor, grey: bool, plain: bool) -> Tensor:
        """What a mask puts in the place of a region uint8 (3, h, w), likewise; ``plain``: a colour, in any case."""
        size = (near.shape[-1], near.shape[-2])
        image = Image.new("RGB", size, self.colour) if self.image is None or plain else self.image.resize(size)
        if grey:
            image = image.convert("L").convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _mask(self, picture: Picture, face: Face, parser: FaceParser) -> Tensor:
        """What of the region is hidden, bool (1, h, w)."""
        assert face.region is not None
        x0, y0, x1, y1 = face.region
        left, top, right, bottom = face.box
        square = Square((left + right) / 2, (top + bottom) / 2, 2.5 * max(right - left, bottom - top))
        size = round(min(512, max(32, square.side)))
        masks = {name: m[0] for name, m in parser.parse(square.crop(picture.photo.pixels, size)[None]).items()}
        kept = combine_regions(masks, self.keep).float()
        shown = torch.zeros(3, *picture.photo.pixels.shape[-2:], dtype=torch.uint8)
        square.put_back(shown, (kept * 255).to(torch.uint8).expand(3, -1, -1), torch.ones(1, size, size))
        return shown[:1, y0:y1, x0:x1] < 128


def _opaque(path: Path, colour: tuple[int, int, int]) -> Image.Image:
    """A user's image on a ground of one colour.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with opened(path, str(path)) as file:
            image = ImageOps.exif_transpose(file)
            image = image.convert("RGBA") if image.has_transparency_data else to_rgb(image).convert("RGBA")
            image.thumbnail((_LARGEST, _LARGEST))
    except CorruptImageError as error:
        raise UserError(f"--replace-with: {error}; name an image.") from None
    ground = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def ellipse(box: Sequence[float], scale: float, within: tuple[int, int, int, int]) -> Tensor:
    """How much of each pixel is hidden: an ellipse of the fourth degree, whole where the face is, fading towards its edge.

    All of the detected box is hidden whole, however little it was enlarged: then nothing fades, or it stays a box.

    Args:
        box: x0 y0 x1 y1 of the face.
        scale: By how much it is enlarged.
        within: Whole pixels of the enlarged box inside the picture: x0, y0, x1, y1.

    Returns:
        float32 (h, w) in [0, 1].

    Examples:
        >>> weight = ellipse((40, 40, 60, 60), 1.4, (36, 36, 64, 64))
        >>> float(weight[4:24, 4:24].min()), float(weight[0, 0]), round(float(weight[0, 14]), 2)
        (1.0, 0.0, 0.51)
    """
    x0, y0, x1, y1 = within
    core = max(_CORE, _CORNER / scale)
    if core >= 1:
        return torch.ones(y1 - y0, x1 - x0)
    half_x, half_y = max((box[2] - box[0]) * scale / 2, 0.5), max((box[3] - box[1]) * scale / 2, 0.5)
    across = ((torch.arange(x0, x1) + 0.5 - (box[0] + box[2]) / 2).abs() - 0.5).clamp_min(0) / half_x
    down = ((torch.arange(y0, y1) + 0.5 - (box[1] + box[3]) / 2).abs() - 0.5).clamp_min(0) / half_y
    radius = (across[None] ** 4 + down[:, None] ** 4) ** 0.25  # of what of each pixel is nearest to the middle
    return ((1 - radius) / (1 - core)).clamp(0, 1)


def region(box: Sequence[float], scale: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels of a box that was enlarged about its middle, within the picture: x0, y0, x1, y1, at least one pixel."""
    x0, y0, x1, y1 = box
    x, y, w, h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * scale / 2, (y1 - y0) * scale / 2
    left, top = min(max(0, math.floor(x - w)), width - 1), min(max(0, math.floor(y - h)), height - 1)
    return left, top, min(width, max(left + 1, math.ceil(x + w))), min(height, max(top + 1, math.ceil(y + h)))


def _redacted(near: Tensor, kind: Redaction, strength: float) -> Tensor:
    height, width = near.shape[-2:]
    everywhere = torch.ones(1, 1, height, width, dtype=torch.bool)
    small = _BLUR_SIDE / min(height, width)
    if kind != "blur" or small >= 1:
        return redact(near[None], everywhere, kind, strength)[0]
    shape = [max(1, round(height * small)), max(1, round(width * small))]
    reduced = F.interpolate(near[None].float(), shape, mode="area").round().to(torch.uint8)
    blurred = redact(reduced, torch.ones(1, 1, *shape, dtype=torch.bool), kind, strength)
    return F.interpolate(blurred.float(), (height, width), mode="bilinear")[0].round().to(torch.uint8)
