"""How well people's faces and hands are drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.batches import PromptRow
from fairanon.callbacks.measures import Judged
from fairanon.callbacks.ratings import Ratings
from fairanon.evaluators.protocols import Detections, Detector, FeatureNet, PictureSource, Scorer
from fairanon.metrics import DetectionConfidence
from fairanon.metrics.distances import frechet_interval
from fairanon.metrics.functional.intervals import Estimate
from fairanon.metrics.whole import whole


class RegionQuality(Ratings):
    """Confidence and detection rate of faces and hands, Fréchet distances of whole pictures and of crops, ratings.

    Args:
        detector: Finds the kinds "face" and "hand" (or others).
        features: Computes features for the Fréchet distances; None leaves them out.
        reference: Real pictures for the Fréchet distances.
        scorers: See `Ratings`.
        expected: How many of each kind a picture should show where its prompt row does not say (column of that name).
        crop: Side to which crops are resized.
        margin: Width of the border round a detection that belongs to its crop, as a share of the box.
    """

    def __init__(
        self,
        detector: Detector,
        features: FeatureNet | None = None,
        reference: PictureSource | None = None,
        scorers: list[Scorer] | None = None,
        expected: dict[str, int] | None = None,
        crop: int = 64,
        margin: float = 0.15,
    ) -> None:
        if (features is None) != (reference is None):
            raise ValueError("evaluate.measure: features and reference belong together; give both or neither.")
        super().__init__(scorers or [])
        self.detector, self.features, self.reference = detector, features, reference
        self.expected = dict.fromkeys(detector.kinds, 1) | (expected or {})
        self.crop, self.margin = crop, margin
        self.most = max(self.expected.values())
        self.settings = (self.most, crop, margin)
        self.judges |= {"detections": detector.name} | ({} if features is None else {"features": features.name})
        self._real: dict[str, Tensor] | None = None

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Scores of the best detections of each kind, features of pictures and crops, and scorers' ratings."""
        found = self.detector.detect(pixels)
        values = {f"scores.{kind}": self._scores([one[kind] for one in found]) for kind in self.detector.kinds}
        values |= self._features(pixels, found)
        return values | super().observe(pixels, rows)

    def headline(self, keys: list[str]) -> list[str]:
        """Everything but the confidence over detections alone."""
        return [key for key in keys if not key.endswith("/detected")]

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """See `Measure.numbers`."""
        result: dict[str, Estimate | None] = {}
        for kind in self.detector.kinds:
            asked = [self.expected[kind] if text is None else int(text) for text in judged.asked(kind)]
            if not any(asked):
                continue
            metric = whole(DetectionConfidence())
            metric.update(judged.values[f"scores.{kind}"], torch.tensor(asked))
            for name, value in metric.compute().items():
                first, _, rest = name.partition("/")
                result[f"{first}/{kind}" + (f"/{rest}" if rest else "")] = value
        if self.features is not None:
            real = self._reference()
            for name, values in real.items():
                drawn = _present(judged.values[f"features.{name}"])
                if len(drawn) > 1 and len(_present(values)) > 1:
                    missing = float(len(judged.prompt) - len(drawn))
                    result[f"fid/{name}"] = {**frechet_interval(drawn, _present(values)), "missing": missing}
        return result | super().numbers(judged, noise)

    # --- pieces ------------------------------------------------------------------------------------------

    def _scores(self, found: list[Detections]) -> Tensor:
        """The best scores: float (N, most), NaN behind the last detection."""
        rows = torch.full((len(found), self.most), float("nan"))
        for row, detections in zip(rows, found, strict=True):
            best = detections.scores[: self.most]
            row[: len(best)] = best
        return rows

    def _features(self, pixels: Tensor, found: list[dict[str, Detections]]) -> dict[str, Tensor]:
        """Features of whole pictures and of the crop of the best detection of each kind (NaN without one)."""
        if self.features is None:
            return {}
        whole = self.features.features(pixels)
        values = {"features.whole": whole}
        for kind in self.detector.kinds:
            rows = torch.full_like(whole, float("nan"))
            here = [n for n, one in enumerate(found) if len(one[kind].scores)]
            if here:
                crops = [self._crop(pixels[n], found[n][kind].boxes[0]) for n in here]
                rows[here] = self.features.features(torch.stack(crops))
            values[f"features.{kind}"] = rows
        return values

    def _crop(self, picture: Tensor, box: Tensor) -> Tensor:
        """The square round a box, cut off at the picture's border, resized."""
        height, width = picture.shape[-2:]
        x0, y0, x1, y1 = box.tolist()
        half = max(x1 - x0, y1 - y0, 2.0) * (0.5 + self.margin)
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        left, right = (min(max(round(middle_x + side * half), 0), width) for side in (-1, 1))
        top, bottom = (min(max(round(middle_y + side * half), 0), height) for side in (-1, 1))
        part = picture[None, :, top : max(bottom, top + 1), left : max(right, left + 1)].float()
        return F.interpolate(part, (self.crop, self.crop), mode="bilinear", antialias=True)[0].round().to(torch.uint8)

    def _reference(self) -> dict[str, Tensor]:
        if self._real is None:
            assert self.reference is not None
            pictures = tqdm(self.reference.pictures(), desc="reference pictures", unit="part", leave=False)
            parts = [self._features(part, self.detector.detect(part)) for part in pictures]
            self._real = {
                name.removeprefix("features."): torch.cat([part[name] for part in parts]) for name in parts[0]
            }
        return self._real


def _present(features: Tensor) -> Tensor:
    return features[~features.isnan().any(1)]
