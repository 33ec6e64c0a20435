"""What a judge must offer; third-party judges and the embedded world's own stand behind the same doors.

Every judge has a ``name`` with its version, which is recorded beside each number it produced. Images are
uint8 (N, 3, H, W), RGB, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.imaging import Square


class AttributeClassifier(Protocol):
    """Judges how a face appears (not what a person is)."""

    name: str
    classes: dict[str, tuple[str, ...]]
    """The fixed class list of each attribute."""

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """Probabilities per attribute: float32 (N, K); a row of NaN where no face was found."""
        ...


class DifferentiableClassifier(AttributeClassifier, Protocol):
    """A judge of attributes that a model can learn from."""

    def to(self, device: torch.device | str) -> None:
        """Move to a device."""
        ...

    def differentiable(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What it thinks of images, with gradients.

        Args:
            images: float (N, 3, H, W) in [-1, 1].

        Returns:
            Logits float (N, K) of each attribute, and features float (N, D) that say how alike two images are.
        """
        ...


class Embedder(Protocol):
    """Turns a face into a point of unit length; close points are the same person."""

    name: str

    def embed(self, pixels: Tensor) -> Tensor:
        """float32 (N, D), unit length; a row of NaN where no face was found."""
        ...


class FaceMatcher(Embedder, Protocol):
    """An embedder that can be told where a face is: it may be looked at where nobody would find it any more."""

    licence: str
    """Of its weights."""
    metric: Literal["cosine", "euclidean"]
    """How its embeddings are compared."""
    size: int
    """S, side of an aligned cut."""
    published: float | None
    """The distance below which two faces match, as its authors say; None if they do not."""

    def align(self, image: Tensor, box: Tensor) -> Square | None:
        """Where to look for the face in a box (4,) of an image uint8 (3, H, W); None if it finds none there."""
        ...

    def embed_aligned(self, cuts: Tensor) -> Tensor:
        """float32 (N, D) of aligned cuts uint8 (N, 3, S, S), whatever they show; not always of unit length."""
        ...


class ImageSource(Protocol):
    """A fixed set of images, for example the reference of a Fréchet distance."""

    def images(self) -> Iterator[Tensor]:
        """Parts of the set, one after the other: uint8 (n, 3, H, W). All of it may not fit into memory."""
        ...


class PromptSource(Protocol):
    """A data set's own prompts."""

    def rows(self) -> list[PromptRow]:
        """The prompts, each with its set and, if it has one, its condition image."""
        ...


@runtime_checkable
class OnDisk(Protocol):
    """A source or data module that reads files: it can be asked whether they are there before anything is prepared."""

    def look(self) -> None:
        """Look for what is needed, without reading images.

        Raises:
            OSError: Something is not there; one sentence says what, and what to do.
            ValueError: Something is there and cannot be used.
        """
        ...


@runtime_checkable
class FeatureNet(Protocol):
    """Features for Fréchet and kernel distances."""

    name: str

    def features(self, pixels: Tensor) -> Tensor:
        """float32 (N, D)."""
        ...


class PerceptualDistance(Protocol):
    """How far apart two images look."""

    name: str

    def distance(self, pixels: Tensor, others: Tensor) -> Tensor:
        """float32 (N,), 0 for equal images."""
        ...


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: float32 (K, 4), x0 y0 x1 y1 in pixels.
        scores: float32 (K,) in [0, 1], highest first.
    """

    boxes: Tensor
    scores: Tensor


class Detector(Protocol):
    """Finds things of one or more kinds ("face", "hand", "man", ...)."""

    name: str
    kinds: tuple[str, ...]

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """For each image the detections of each kind."""
        ...


class Scorer(Protocol):
    """Rates how well images match their prompts, or how good people would find them."""

    name: str

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """float32 (N,), higher is better; the unit is the scorer's own."""
        ...


class LandmarkDetector(Protocol):
    """Finds the usual 68 points of a face."""

    name: str

    def landmarks(self, pixels: Tensor) -> Tensor:
        """float32 (N, 68, 2), x and y in pixels; NaN where no face was found."""
        ...


class FaceGeometry(Protocol):
    """Measures what a face does, not whose it is."""

    name: str
    sizes: dict[str, int]
    """How many numbers each quantity has that it measures, landmarks left out."""

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """What it knows of ``landmarks``, ``pose``, ``expression`` and ``gaze``.

        Returns:
            For each float32 (N, ...): landmarks (N, 68, 2) in pixels, pose (N, 3) in degrees; NaN where no face was found.
        """
        ...


class FaceParser(Protocol):
    """Says which pixel belongs to which region of a face; "face" includes eyes, brows, nose and lips."""

    name: str
    regions: tuple[str, ...]

    def parse(self, pixels: Tensor) -> dict[str, Tensor]:
        """For each region a mask: bool (N, 1, H, W), all False where it is not seen."""
        ...
