"""Anonymizes every face of a picture: detect, align, inpaint, paste back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.evaluators.protocols import Detector, FaceParser, LandmarkDetector
from fairanon.imaging import Square, combine_regions, dilate
from fairanon.pipelines.inpaint import inpaint, seam

_EYES = (slice(36, 42), slice(42, 48))
"""Left and right eye among the 68 points, as the picture shows them."""


@dataclass(frozen=True)
class FaceResult:
    """What became of one face.

    Attributes:
        square: Where it was cut out.
        score: The detector's.
        covered: Share of the detected box that was drawn anew.
        parsed: The mask is the parser's; otherwise everything round the detected box.
    """

    square: Square
    score: float
    covered: float
    parsed: bool


class FaceAnonymizer:
    """Inpaints the faces of a picture one after the other, each under the same identity seed or one of its own.

    Args:
        backbone: An inpainting model.
        detector: Finds the kind "face".
        parser: Says which pixels make the mask; None takes everything round the detected box.
        region: The mask, an expression of the parser's regions such as "face" or "eyes+nose".
        least: A parser's mask that covers less of the detected box is not believed, and everything round the box is
            drawn anew: it may be a bystander's, or a few stray pixels. Lower it for small regions.
        landmarks: Turns a face upright by its eyes; None leaves it as it is.
        scale: Side of the cut as a multiple of the face's larger side.
        grow: Pixels of the cut by which the mask is dilated.
        feather: Width of the seam inside the mask, in pixels of the cut.
        steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
    """

    def __init__(
        self,
        backbone: Backbone,
        detector: Detector,
        parser: FaceParser | None = None,
        region: str = "face",
        least: float = 0.3,
        landmarks: LandmarkDetector | None = None,
        scale: float = 1.8,
        grow: int = 2,
        feather: int = 2,
        steps: int = 20,
        guidance_scale: float = 7.5,
    ) -> None:
        if not backbone.inpaints:
            raise ValueError("the backbone is no inpainting model; name one with channels for a mask.")
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}.")
        self.backbone, self.detector, self.parser, self.region, self.least = backbone, detector, parser, region, least
        self.landmarks, self.scale, self.grow, self.feather = landmarks, scale, grow, feather
        self.steps, self.guidance_scale = steps, guidance_scale

    def __call__(
        self, picture: Tensor, prompt: str, seed: int = 0, same_identity: bool = False
    ) -> tuple[Tensor, list[FaceResult]]:
        """Anonymize a picture.

        Args:
            picture: uint8 (3, H, W).
            prompt: What every face should look like.
            seed: The new identity's.
            same_identity: Every face gets the same starting noise; otherwise each its own.

        Returns:
            The picture, changed in the masks alone, and what became of each face, the surest first. No face found
            means an empty list and the same picture: nobody can say that it is anonymized.
        """
        size = int(self.backbone.unet.config.sample_size) * self.backbone.scale_factor
        found = self.detector.detect(picture[None])[0]["face"]
        results = []
        for number, (box, score) in enumerate(zip(found.boxes.tolist(), found.scores.tolist(), strict=True)):
            square = self._align(picture, box, size)
            cut = square.cut(picture, size)
            mask, parsed = self._mask(cut)
            key = (seed, "identity", 0 if same_identity else number)
            settings = {"steps": self.steps, "guidance_scale": self.guidance_scale, "feather": 0}
            drawn = inpaint(self.backbone, [prompt], [key], cut[None], mask[None], **settings)[0]  # type: ignore[arg-type]  # mixed kinds
            picture = square.put_back(picture, drawn, seam(mask[None], self.feather)[0])
            results.append(FaceResult(square, score, self._covered(mask), parsed))
        return picture, results

    def _align(self, picture: Tensor, box: list[float], size: int) -> Square:
        """The square round a face, turned so that its eyes are level where landmarks are found."""
        x0, y0, x1, y1 = box
        square = Square((x0 + x1) / 2, (y0 + y1) / 2, self.scale * max(x1 - x0, y1 - y0, 2.0))
        if self.landmarks is None:
            return square
        points = self.landmarks.landmarks(square.cut(picture, size)[None])[0]
        left, right = (points[eye].mean(0) for eye in _EYES)
        if points.isnan().any():
            return square
        angle = torch.rad2deg(torch.atan2(right[1] - left[1], right[0] - left[0]))
        return Square(square.x, square.y, square.side, float(angle))

    def _mask(self, cut: Tensor) -> tuple[Tensor, bool]:
        """Which part of a cut is drawn anew, bool (1, S, S), and whether the parser says so."""
        if self.parser is not None:
            masks = {name: value[0] for name, value in self.parser.parse(cut[None]).items()}
            mask = dilate(combine_regions(masks, self.region), self.grow)
            if self._covered(mask) >= self.least:
                return mask, True
        return self._middle(cut.shape[-1], 1.2), False

    def _covered(self, mask: Tensor) -> float:
        """Share of the detected box, in the middle of each cut, that a mask covers."""
        return float(mask[self._middle(mask.shape[-1], 1.0)].float().mean())

    def _middle(self, size: int, share: float) -> Tensor:
        """The square of ``share`` times the detected face's larger side: bool (1, size, size)."""
        border = round(size * (1 - share / max(share, self.scale)) / 2)
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        mask[:, border : size - border, border : size - border] = True
        return mask
