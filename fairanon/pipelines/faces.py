"""Anonymizes the faces of an image: detect, align, inpaint, paste back."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.imaging import Square, combine_regions, dilate
from fairanon.pipelines.id2face import ID2FacePipeline
from fairanon.pipelines.inpaint import inpaint, seam
from fairanon.protocols import Detector, FaceParser, LandmarkDetector
from fairanon.redaction import redact
from fairanon.seeding import Key

Faces = Literal["all", "largest", "one"]
"""Whose faces: everybody's, the largest alone (the others stay recognizable), or an error if there are several."""
_EYES = (slice(36, 42), slice(42, 48))
"""Left and right eye among the 68 points, as the image shows them."""


@dataclass(frozen=True)
class FaceResult:
    """What became of one face.

    Attributes:
        square: Where it was cut out.
        score: The detector's.
        covered: Share of the detected box that was inpainted.
        parsed: The mask is the parser's; otherwise everything round the detected box.
        drawn: It was inpainted; otherwise it could not be, and is painted over.
    """

    square: Square
    score: float
    covered: float
    parsed: bool
    drawn: bool = True


class _Anonymizer:
    """What all have in common: finding, aligning, masking and pasting back; the arguments are those of `FaceAnonymizer`."""

    def __init__(
        self,
        *,
        size: int,
        detector: Detector,
        parser: FaceParser | None,
        region: str,
        minimum: float,
        landmarks: LandmarkDetector | None,
        scale: float,
        grow: int,
        feather: int,
        faces: Faces,
    ) -> None:
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}.")
        self.size, self.detector, self.parser, self.region, self.minimum = size, detector, parser, region, minimum
        self.landmarks, self.scale, self.grow, self.feather, self.faces = landmarks, scale, grow, feather, faces

    def _anonymize(
        self,
        image: Tensor,
        draw: Callable[[Tensor, Tensor, tuple[Key, ...]], tuple[Tensor, Tensor] | None],
        seed: int | None,
        same_identity: bool,
    ) -> tuple[Tensor, list[FaceResult]]:
        """Exchange the faces.

        ``draw`` makes of a cut uint8 (3, S, S), its mask bool (1, S, S) and a key a new cut, and says where it is to be
        taken; None if it cannot.
        """
        seed = secrets.randbits(62) if seed is None else seed
        found = self.detector.detect(image[None])[0]["face"]
        chosen = list(zip(found.boxes.tolist(), found.scores.tolist(), strict=True))
        if len(chosen) > 1 and self.faces == "one":
            raise ValueError(f'the image shows {len(chosen)} faces; choose faces: "all" or "largest".')
        if chosen and self.faces == "largest":
            chosen = [max(chosen, key=lambda face: (face[0][2] - face[0][0]) * (face[0][3] - face[0][1]))]
        results = []
        for number, (box, score) in enumerate(chosen):
            square = self._align(image, box, self.size)
            cut = square.cut(image, self.size)
            mask, parsed = self._mask(cut)
            drawn = draw(cut, mask, (seed, "identity", 0 if same_identity else number))
            new, mask = (redact(cut[None], mask[None], "mask", 1.0)[0], mask) if drawn is None else drawn
            image = square.put_back(image, new, seam(mask[None], self.feather)[0])
            results.append(FaceResult(square, score, self._covered(mask), parsed, drawn is not None))
        return image, results

    def _align(self, image: Tensor, box: list[float], size: int) -> Square:
        """The square round a face, turned so that its eyes are level where landmarks are found."""
        x0, y0, x1, y1 = box
        square = Square((x0 + x1) / 2, (y0 + y1) / 2, self.scale * max(x1 - x0, y1 - y0, 2.0))
        if self.landmarks is None:
            return square
        points = self.landmarks.landmarks(square.cut(image, size)[None])[0]
        left, right = (points[eye].mean(0) for eye in _EYES)
        if points.isnan().any():
            return square
        angle = torch.rad2deg(torch.atan2(right[1] - left[1], right[0] - left[0]))
        return Square(square.x, square.y, square.side, float(angle))

    def _mask(self, cut: Tensor) -> tuple[Tensor, bool]:
        """Which part of a cut is inpainted, bool (1, S, S), and whether the parser says so."""
        if self.parser is not None:
            masks = {name: value[0] for name, value in self.parser.parse(cut[None]).items()}
            mask = dilate(combine_regions(masks, self.region), self.grow)
            if self._covered(mask) >= self.minimum:
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


class FaceAnonymizer(_Anonymizer):
    """Inpaints the faces of an image one after the other, each under the same identity seed or one of its own.

    Args:
        backbone: An inpainting model.
        detector: Finds the kind "face".
        parser: Says which pixels make the mask; None takes everything round the detected box.
        region: The mask, an expression of the parser's regions such as "face" or "eyes+nose".
        minimum: A parser's mask that covers less of the detected box is not believed, and everything round the box is
            inpainted: it may be a bystander's, or a few stray pixels. Lower it for small regions.
        landmarks: Turns a face upright by its eyes; None leaves it as it is.
        scale: Side of the cut as a multiple of the face's larger side.
        grow: Pixels of the cut by which the mask is dilated.
        feather: Width of the seam inside the mask, in pixels of the cut.
        steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        faces: See `Faces`.
    """

    def __init__(
        self,
        backbone: Backbone,
        detector: Detector,
        parser: FaceParser | None = None,
        region: str = "face",
        minimum: float = 0.3,
        landmarks: LandmarkDetector | None = None,
        scale: float = 1.8,
        grow: int = 2,
        feather: int = 2,
        steps: int = 20,
        guidance_scale: float = 7.5,
        faces: Faces = "all",
    ) -> None:
        if not backbone.inpaints:
            raise ValueError("the backbone is no inpainting model; name one with channels for a mask.")
        size = int(backbone.unet.config.sample_size) * backbone.scale_factor
        super().__init__(
            size=size, detector=detector, parser=parser, region=region, minimum=minimum, landmarks=landmarks, scale=scale,
            grow=grow, feather=feather, faces=faces,
        )  # fmt: skip
        self.backbone, self.steps, self.guidance_scale = backbone, steps, guidance_scale

    def __call__(
        self, image: Tensor, prompt: str, seed: int | None = None, same_identity: bool = False
    ) -> tuple[Tensor, list[FaceResult]]:
        """Anonymize an image.

        Args:
            image: uint8 (3, H, W).
            prompt: What every face should look like.
            seed: The new identities'; None draws a secret one. Whoever knows it knows what was drawn, and with the result
                can work back towards the person: give one only where images must be repeatable.
            same_identity: Every face gets the same starting noise; otherwise each its own.

        Returns:
            The image, changed in the masks alone, and what became of each face, the surest first. No face found
            means an empty list and the same image: nobody can say that it is anonymized.

        Raises:
            ValueError: There are several faces, and ``faces`` is "one".
        """

        def draw(cut: Tensor, mask: Tensor, key: tuple[Key, ...]) -> tuple[Tensor, Tensor]:
            settings = {"steps": self.steps, "guidance_scale": self.guidance_scale, "feather": 0}
            return inpaint(self.backbone, [prompt], [key], cut[None], mask[None], **settings)[0], mask  # type: ignore[arg-type]  # mixed kinds

        return self._anonymize(image, draw, seed, same_identity)


class ID2FaceAnonymizer(_Anonymizer):
    """The same by ID2Face: no prompt, but landmarks; a face without them is painted over.

    Args:
        pipeline: Trained.
        detector: Finds the kind "face".
        landmarks: Finds the 68 points.
        parser: See `FaceAnonymizer`.
        region: Likewise.
        minimum: Likewise.
        scale: Likewise; images were aligned in training, and a cut should show as much.
        grow: Likewise.
        feather: Likewise.
        steps: Steps of the pipeline's scheduler.
        faces: See `Faces`.
    """

    def __init__(
        self,
        pipeline: ID2FacePipeline,
        detector: Detector,
        landmarks: LandmarkDetector,
        parser: FaceParser | None = None,
        region: str = "face",
        minimum: float = 0.3,
        scale: float = 1.8,
        grow: int = 2,
        feather: int = 2,
        steps: int = 15,
        faces: Faces = "all",
    ) -> None:
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        super().__init__(
            size=int(pipeline.unet.config.sample_size) * factor, detector=detector, parser=parser, region=region,
            minimum=minimum, landmarks=landmarks, scale=scale, grow=grow, feather=feather, faces=faces,
        )  # fmt: skip
        self.pipeline, self.steps, self.points = pipeline, steps, landmarks

    def __call__(
        self, image: Tensor, seed: int | None = None, same_identity: bool = False
    ) -> tuple[Tensor, list[FaceResult]]:
        """Anonymize an image; see `FaceAnonymizer`."""

        def draw(cut: Tensor, mask: Tensor, key: tuple[Key, ...]) -> tuple[Tensor, Tensor] | None:
            points = self.points.landmarks(cut[None]) / self.size
            if points.isnan().any():
                return None
            new = self.pipeline(cut[None], mask[None], points, [key], num_inference_steps=self.steps)[0]
            return new, dilate(
                self.pipeline.changed(mask[None], points)[0], self.feather
            )  # the seam: outside what is hidden

        return self._anonymize(image, draw, seed, same_identity)
