"""How well people's faces and hands are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics import DetectionConfidence
from fairanon.metrics.functional.distances import frechet_interval
from fairanon.metrics.functional.estimates import Estimates
from fairanon.progress import progress_bar
from fairanon.protocols import Detections, Detector, FeatureNet, ImageSource


@dataclass
class Regions(Observed):
    """What was found.

    Attributes:
        scores: Of the best detections of each kind, float (N, most), NaN behind the last.
        features: Of the ``whole`` image and of the crop of the best detection of each kind, float (N, D), NaN without one.
    """

    scores: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)


class RegionQuality(Measure[Regions]):
    """Confidence and detection rate of faces and hands, Fréchet distances of whole images and of crops.

    Args:
        detector: Finds the kinds "face" and "hand" (or others).
        features: Computes features for the Fréchet distances; None leaves them out.
        reference: Real images for the Fréchet distances.
        expected: How many of each kind an image should show where its prompt row does not say (column of that name).
        crop: Side to which crops are resized.
        margin: Width of the border round a detection that belongs to its crop, as a share of the box.
    """

    record = Regions
    higher_is_better: ClassVar[dict[str, bool]] = {
        "confidence": DetectionConfidence.higher_is_better, "detection_rate": DetectionConfidence.higher_is_better,
        "fid": False,
    }  # fmt: skip

    def __init__(
        self,
        detector: Detector,
        features: FeatureNet | None = None,
        reference: ImageSource | None = None,
        expected: dict[str, int] | None = None,
        crop: int = 64,
        margin: float = 0.15,
    ) -> None:
        if (features is None) != (reference is None):
            raise ValueError("evaluate.measures: features and reference belong together; give both or neither.")
        self.detector, self.features, self.reference = detector, features, reference
        self.expected = dict.fromkeys(detector.kinds, 1) | (expected or {})
        self.crop, self.margin = crop, margin
        self.most = max(self.expected.values())
        self.settings = (self.most, crop, margin)
        self.judges = {"detections": detector.name} | ({} if features is None else {"features": features.name})
        self._real: dict[str, Tensor] | None = None

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Regions:
        """See `Measure.observe`."""
        detections = self.detector.detect(pixels)
        scores = {kind: self._scores([by_kind[kind] for by_kind in detections]) for kind in self.detector.kinds}
        return Regions(scores, self._features(pixels, detections))

    def headline(self, keys: list[str]) -> list[str]:
        """Everything but the confidence over detections alone."""
        return [key for key in keys if not key.endswith("/detected")]

    def numbers(self, judged: Judged[Regions], noise: Judged[Regions] | None) -> Estimates:
        """See `Measure.numbers`."""
        result: Estimates = {}
        for kind, scores in judged.values.scores.items():
            asked = [self.expected[kind] if text is None else int(text) for text in judged.asked(kind)]
            if not any(asked):
                continue
            for name, value in DetectionConfidence().measured(scores, torch.tensor(asked)).items():
                first, inside, rest = name.partition("/")
                result[f"{first}/{kind}{inside}{rest}"] = value
        for name, values in self._reference().items():
            drawn, real = _present(judged.values.features[name]), _present(values)
            if len(drawn) > 1 and len(real) > 1:
                result[f"fid/{name}"] = replace(frechet_interval(drawn, real), missing=len(judged) - len(drawn))
        return result

    # --- pieces ------------------------------------------------------------------------------------------

    def _scores(self, per_image: list[Detections]) -> Tensor:
        """The best scores: float (N, most), NaN behind the last detection."""
        rows = torch.full((len(per_image), self.most), float("nan"))
        for row, detections in zip(rows, per_image, strict=True):
            best = detections.scores[: self.most]
            row[: len(best)] = best
        return rows

    def _features(self, pixels: Tensor, detections: list[dict[str, Detections]]) -> dict[str, Tensor]:
        """See `Regions`; nothing where nobody computes features."""
        if self.features is None:
            return {}
        whole = self.features.features(pixels)
        values = {"whole": whole}
        for kind in self.detector.kinds:
            rows = torch.full_like(whole, float("nan"))
            here = [n for n, by_kind in enumerate(detections) if len(by_kind[kind].scores)]
            if here:
                crops = [self._crop(pixels[n], detections[n][kind].boxes[0]) for n in here]
                rows[here] = self.features.features(torch.stack(crops))
            values[kind] = rows
        return values

    def _crop(self, image: Tensor, box: Tensor) -> Tensor:
        """The square round a box, cut off at the image's border, resized."""
        height, width = image.shape[-2:]
        x0, y0, x1, y1 = box.tolist()
        half = max(x1 - x0, y1 - y0, 2.0) * (0.5 + self.margin)
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        left, right = (min(max(round(middle_x + side * half), 0), width) for side in (-1, 1))
        top, bottom = (min(max(round(middle_y + side * half), 0), height) for side in (-1, 1))
        part = image[None, :, top : max(bottom, top + 1), left : max(right, left + 1)].float()
        return F.interpolate(part, (self.crop, self.crop), mode="bilinear", antialias=True)[0].round().to(torch.uint8)

    def _reference(self) -> dict[str, Tensor]:
        """Features of the real images; nothing without any."""
        if self._real is None and self.reference is not None:
            images = progress_bar(self.reference.images(), desc="reference images", unit="part", leave=False)
            parts = [self._features(part, self.detector.detect(part)) for part in images]
            self._real = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._real or {}


def _present(features: Tensor) -> Tensor:
    return features[~features.isnan().any(1)]
