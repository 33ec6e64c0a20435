"""Hides faces by drawing others in their place: Ano-Face-Fair's inpainting, ID2Face."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fairanon.anonymizer.attack import aligned
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.hide import region
from fairanon.anonymizer.register import People
from fairanon.backbones import Backbone, Sampling
from fairanon.imaging import Square, combine_regions, dilate
from fairanon.networks.id2face_networks import refuse_negated
from fairanon.pipelines import ID2FacePipeline, inpaint
from fairanon.pipelines.collection import keyed_draws
from fairanon.pipelines.inpaint import seam
from fairanon.protocols import FaceMatcher, FaceParser, LandmarkDetector
from fairanon.redaction import redact
from fairanon.seeding import Key

_BELIEVED = 0.3
"""A parser's mask that covers less of the detected box is not believed: it may be a bystander's, or a few stray pixels."""


class Drawer(Protocol):
    """Draws new faces in aligned cuts; each depends on its own cut, mask and key alone."""

    name: str
    size: int
    """S, side of a cut."""

    def draw(
        self, cuts: Tensor, masks: Tensor, keys: Sequence[Sequence[Key]], controls: Tensor | None
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """New cuts uint8 (B, 3, S, S), where they are taken, bool (B, 1, S, S), and which of them could be drawn.

        Args:
            cuts: uint8 (B, 3, S, S).
            masks: bool (B, 1, S, S), the faces.
            keys: B keys.
            controls: Who is drawn, see `latents`; None draws somebody for each key.
        """
        ...

    def latents(self, cuts: Tensor) -> Tensor:
        """Who is shown, float (B, d); d is 0 where that has no part in who is drawn."""
        ...

    def identities(self, latents: Tensor, people: Sequence[str], key: bytes) -> Tensor | None:
        """A new identity for each person: float (P, D) of their latents (P, d) and names; None: keys say it all."""
        ...


class InpaintDrawer:
    """Ano-Face-Fair: draws what a prompt says into the mask.

    Args:
        backbone: An inpainting model.
        prompt: What every face should look like.
        sampling: How.
    """

    name = "ano-face-fair"

    def __init__(self, backbone: Backbone, prompt: str, sampling: Sampling) -> None:
        if not backbone.inpaints:
            raise ValueError("--checkpoint: it is no inpainting model; name one with channels for a mask.")
        self.size = int(backbone.unet.config.sample_size) * backbone.scale_factor
        self.backbone, self.prompt, self.sampling = backbone, prompt, sampling

    def draw(
        self, cuts: Tensor, masks: Tensor, keys: Sequence[Sequence[Key]], controls: Tensor | None
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """See `Drawer`."""
        prompts = [self.prompt] * len(cuts)
        new = inpaint(self.backbone, prompts, keys, cuts, masks, self.sampling, feather=0)
        return new, masks, [True] * len(cuts)

    def latents(self, cuts: Tensor) -> Tensor:
        """See `Drawer`."""
        return torch.empty(len(cuts), 0)

    def identities(self, latents: Tensor, people: Sequence[str], key: bytes) -> Tensor | None:
        """See `Drawer`: who it is comes from the starting noise."""
        return None


class ID2FaceDrawer:
    """ID2Face: no prompt, but landmarks.

    Args:
        pipeline: Trained.
        landmarks: Finds the 68 points.
        steps: Of the pipeline's scheduler.
        feather: Pixels of a cut by which what is taken is larger than what is hidden: the seam.
    """

    name = "id2face"

    def __init__(
        self, pipeline: ID2FacePipeline, landmarks: LandmarkDetector, steps: int = 15, feather: int = 2
    ) -> None:
        refuse_negated(pipeline.mapping)
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.size = int(pipeline.unet.config.sample_size) * factor
        self.pipeline, self.landmarks, self.steps, self.feather = pipeline, landmarks, steps, feather

    def draw(
        self, cuts: Tensor, masks: Tensor, keys: Sequence[Sequence[Key]], controls: Tensor | None
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """See `Drawer`; a face without landmarks cannot be drawn."""
        points = self.landmarks.landmarks(cuts) / self.size
        seen = ~points.isnan().flatten(1).any(1)
        if not seen.any():
            return cuts, masks, seen.tolist()
        points[~seen] = points[seen][0]  # drawn, too, and thrown away: all batches are of one size
        new = self.pipeline(cuts, masks, points, keys, controls, num_inference_steps=self.steps)
        taken = dilate(self.pipeline.changed(masks, points), self.feather)
        return new, taken, seen.tolist()

    def latents(self, cuts: Tensor) -> Tensor:
        """See `Drawer`."""
        return self.pipeline.latents_of(cuts).cpu()

    def identities(self, latents: Tensor, people: Sequence[str], key: bytes) -> Tensor | None:
        """See `Drawer`."""
        return self.pipeline.identities(latents, keyed_draws(key, people, self.pipeline.draws_shape)).cpu()


@dataclass
class _Drawing:
    """A face as it was drawn.

    Attributes:
        attempt: Of the face.
        square: Where it lies.
        new: uint8 (3, S, S).
        weight: float (1, S, S), how much of it is taken.
        drawn: It could be; otherwise it is painted over.
    """

    attempt: int
    square: Square
    new: Tensor
    weight: Tensor
    drawn: bool


def _painted(drawing: _Drawing, height: int, width: int) -> tuple[int, int, int, int]:
    """About what of a picture was changed: the box of what was taken, upright about its middle."""
    _, rows, columns = (drawing.weight > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        return region((drawing.square.x, drawing.square.y) * 2, 1.0, height, width)
    size, scale = drawing.weight.shape[-1], drawing.square.side / drawing.weight.shape[-1]
    wide, high = (int(places.max() - places.min() + 1) * scale for places in (columns, rows))
    u, v = ((float(places.max() + places.min() + 1) / 2 - size / 2) * scale for places in (columns, rows))
    angle = math.radians(drawing.square.angle)
    x = drawing.square.x + u * math.cos(angle) - v * math.sin(angle)
    y = drawing.square.y + u * math.sin(angle) + v * math.cos(angle)
    return region((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), 1.0, height, width)


class Generative:
    """Aligns faces, has others drawn, pastes them back with a soft seam.

    What is drawn depends on the seed, the picture's name, the face's number and the attempt; with a key on the person.

    Args:
        drawer: Draws.
        seed: Of the new faces.
        turn: Says how a face leans; None leaves it as it is.
        parser: Says which pixels make the mask; None takes everything round the detected box.
        region: An expression of the parser's regions, such as "face" or "face-eyes".
        scale: Side of a cut as a multiple of the face's larger side: as much as training images show.
        box_scale: Without a parser the mask is the box enlarged by this factor.
        grow: Pixels of a cut by which a parsed mask is dilated.
        feather: Width of the seam inside the mask, in pixels of a cut.
        batch_size: Faces drawn at once, always as many, so that a face does not depend on how many came with it; when the
            memory is too small, half as many.
    """

    def __init__(
        self,
        drawer: Drawer,
        seed: int,
        turn: FaceMatcher | None = None,
        parser: FaceParser | None = None,
        region: str = "face",
        scale: float = 1.8,
        box_scale: float = 1.2,
        grow: int = 2,
        feather: int = 2,
        batch_size: int = 8,
    ) -> None:
        self.drawer, self.seed, self.turn, self.parser, self.region = drawer, seed, turn, parser, region
        self.scale, self.box_scale, self.grow, self.feather = max(scale, box_scale), box_scale, grow, feather
        self.name, self.batch_size = drawer.name, batch_size
        self.people: People | None = None
        self._drawings: dict[tuple[str, int], _Drawing] = {}

    def square(self, pixels: Tensor, face: Face) -> Square:
        """Where a face is cut out, uint8 (3, H, W) of the original."""
        x0, y0, x1, y1 = face.box
        straight = Square((x0 + x1) / 2, (y0 + y1) / 2, self.scale * max(x1 - x0, y1 - y0, 2.0))
        leaning = None if self.turn is None else aligned(self.turn, pixels, torch.tensor(face.box), face.quarters)
        return straight if leaning is None else Square(straight.x, straight.y, straight.side, leaning.angle)

    def draw(self, pictures: Sequence[Picture]) -> None:
        """See `Hider`: faces are drawn in batches, across pictures."""
        todo = self._missing(pictures)
        while todo:
            part = todo[: self.batch_size]
            try:
                self._draw(part)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                continue
            todo = todo[len(part) :]

    def wants_more(self, pictures: Sequence[Picture]) -> bool:
        """See `Hider`: a batch is not full."""
        return len(self._missing(pictures)) < self.batch_size

    def _missing(self, pictures: Sequence[Picture]) -> list[tuple[Picture, int, Face]]:
        """Faces that are not drawn, each with its number."""
        return [
            (picture, number, face)
            for picture in pictures
            for number, face in enumerate(picture.faces)
            if face.asked and not self._is_drawn(picture.name, number, face)
        ]

    def apply(self, picture: Picture) -> Tensor:
        """See `Hider`."""
        result = picture.photo.pixels.clone(memory_format=torch.preserve_format)
        for number, face in enumerate(picture.faces):
            if not face.asked:
                continue
            drawing = self._drawings[picture.name, number]
            face.method = self.name if drawing.drawn else "mask"
            face.region = _painted(drawing, *result.shape[-2:])
            drawing.square.put_back(result, drawing.new, drawing.weight)
        return result

    def new_face(self, name: str, number: int) -> str:
        """See `Hider`: with a key one for each person; it says nothing to those who do not have the key, and draws nobody."""
        return self._digest("counted ", name, number)

    def _digest(self, purpose: str, name: str, number: int) -> str:
        """Of a purpose and whom a picture's face shows; empty where there is no key, or nobody knew it."""
        if self.people is None or (name, number) not in self.people.names:
            return ""
        person = self.people.names[name, number]
        return hmac.new(self.people.key, f"{purpose}{person}".encode(), hashlib.sha256).hexdigest()

    def forget(self, picture: Picture) -> None:
        """See `Hider`."""
        for number in range(len(picture.faces)):
            self._drawings.pop((picture.name, number), None)

    def _is_drawn(self, name: str, number: int, face: Face) -> bool:
        known = self._drawings.get((name, number))
        return known is not None and known.attempt == face.attempt

    def _draw(self, part: Sequence[tuple[Picture, int, Face]]) -> None:
        squares = [self.square(picture.photo.pixels, face) for picture, _, face in part]
        size = self.drawer.size
        cuts = torch.stack([s.crop(p.photo.pixels, size) for s, (p, _, _) in zip(squares, part, strict=True)])
        masks = torch.stack([self._mask(cut) for cut in cuts])
        keys = [self._key(picture.name, number, face) for picture, number, face in part]
        rows = [min(k, len(part) - 1) for k in range(self.batch_size)]  # kernels round by the size of a batch
        controls = self._controls(part)
        new, taken, drawn = self.drawer.draw(
            cuts[rows], masks[rows], [keys[row] for row in rows], None if controls is None else controls[rows]
        )
        for row, (picture, number, face) in enumerate(part):
            image, mask = new[row], taken[row]
            can = drawn[row] and not self._is_nobodys(picture.name, number)
            if not can:
                mask = self._middle(size, self.box_scale)
                image = redact(cuts[row][None], mask[None], "mask", 1.0)[0]
            weight = seam(mask[None], self.feather)[0]
            self._drawings[picture.name, number] = _Drawing(face.attempt, squares[row], image, weight, can)

    def _key(self, name: str, number: int, face: Face) -> tuple[Key, ...]:
        person = self._digest("", name, number)
        return (person, "identity") if person else (self.seed, "identity", name, number, face.attempt)

    def _controls(self, part: Sequence[tuple[Picture, int, Face]]) -> Tensor | None:
        if self.people is None or self.people.controls is None:
            return None
        anybody = next(iter(self.people.controls.values()))
        names = [self.people.names.get((picture.name, number)) for picture, number, _ in part]
        return torch.stack([anybody if name is None else self.people.controls[name] for name in names])

    def _is_nobodys(self, name: str, number: int) -> bool:
        """A face of a collection with a key that nobody knew when its people were told apart: it is painted over."""
        return self.people is not None and (name, number) not in self.people.names

    def _mask(self, cut: Tensor) -> Tensor:
        """Which part of a cut is drawn anew, bool (1, S, S)."""
        if self.parser is not None:
            masks = {name: value[0] for name, value in self.parser.parse(cut[None]).items()}
            mask = dilate(combine_regions(masks, self.region), self.grow)
            if float(mask[self._middle(cut.shape[-1], 1.0)].float().mean()) >= _BELIEVED:
                return mask
        return self._middle(cut.shape[-1], self.box_scale)

    def _middle(self, size: int, share: float) -> Tensor:
        """The square of ``share`` times the detected face's larger side: bool (1, size, size)."""
        border = round(size * (1 - share / max(share, self.scale)) / 2)
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        mask[:, border : size - border, border : size - border] = True
        return mask
