"""Is everything but the identity still there?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.evaluation.identity_retrieval import UNSEEN, classes_of, labels_of
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics.anonymity import looks
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.geometry_distance import geometry_distance
from fairanon.protocols import AttributeClassifier, FaceGeometry, FeatureNet, Scorer


@dataclass
class Kept(Observed):
    """Results beside their originals.

    Attributes:
        labels: Of the results, by attribute: int64 (N,).
        source_labels: Of the originals.
        geometry: What `FaceGeometry.measure` says of the results.
        source_geometry: Of the originals.
        features: Of the results, float (N, D).
        source_features: Of the originals.
        quality: Of the results, float (N,).
    """

    labels: dict[str, Tensor] = field(default_factory=dict)
    source_labels: dict[str, Tensor] = field(default_factory=dict)
    geometry: dict[str, Tensor] = field(default_factory=dict)
    source_geometry: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    source_features: Tensor | None = None
    quality: Tensor | None = None


class Preservation(Measure[Kept]):
    """Attributes, geometry and quality that anonymized images keep (ID2Face, tables I to III).

    Args:
        judges: Judge what an image shows.
        kept: What should still be there.
        redrawn: What belongs to the appearance of a person; the share that stayed is reported all the same.
        geometry: Measures landmarks, pose, expression and gaze; None leaves them out.
        features: Computes features for the Fréchet distance to the originals; None leaves it out.
        quality: Rates images without a reference, as MUSIQ does; None where its weights are absent: "n/a".
    """

    record = Kept
    sets = ("people",)
    higher_is_better: ClassVar[dict[str, bool]] = {
        "kept": True,
        "preservation": False,
        "fid": False,
        "kid": False,
        "quality": True,
    }

    def __init__(
        self,
        judges: list[AttributeClassifier] | None = None,
        kept: tuple[str, ...] = (),
        redrawn: tuple[str, ...] = (),
        geometry: FaceGeometry | None = None,
        features: FeatureNet | None = None,
        quality: Scorer | None = None,
    ) -> None:
        self.attributes, self.names, self.redrawn = judges or [], (*kept, *redrawn), redrawn
        classes_of(self.attributes, self.names)
        self.geometry, self.features, self.quality = geometry, features, quality
        self.judges = {"attributes": "+".join(judge.name for judge in self.attributes)} if self.attributes else {}
        optional = {"geometry": geometry, "features": features, "quality": quality}
        self.judges |= {what: judge.name for what, judge in optional.items() if judge is not None}
        self.settings = self.names

    def direction(self, key: str) -> bool | None:
        """See `Measure`; nobody wants more of what is redrawn to stay, or less."""
        return None if key.removeprefix("kept/") in self.redrawn else super().direction(key)

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Kept:
        """See `Measure.observe`."""
        images = [row.image for row in rows if row.image is not None]
        if len(images) != len(rows):
            raise ValueError("evaluate.prompts: preservation is measured on images; give every row one.")
        sources = torch.stack(images)
        labels, source_labels = (labels_of(self.attributes, x, self.names) for x in (pixels, sources))
        record = Kept(labels, source_labels)
        if self.geometry is not None:
            record.geometry, record.source_geometry = self.geometry.measure(pixels), self.geometry.measure(sources)
        if self.features is not None:
            record.features, record.source_features = self.features.features(pixels), self.features.features(sources)
        if self.quality is not None:
            record.quality = self.quality.score(pixels, [""] * len(pixels))
        return record

    def headline(self, keys: list[str]) -> list[str]:
        """The columns of the paper's tables in their order, then what was kept."""
        columns = [f"preservation/{name}" for name in ("landmarks", "pose", "expression", "gaze")]
        columns += ["quality", "fid/source", *(f"kept/{name}" for name in self.names)]
        return [key for key in columns if key in keys]

    def numbers(self, judged: Judged[Kept], noise: Judged[Kept] | None) -> Estimates:
        """See `Measure.numbers`."""
        values = judged.values
        result: Estimates = {}
        for name in self.names:
            same = (values.labels[name] == values.source_labels[name]) & (values.labels[name] != UNSEEN)
            result[f"kept/{name}"] = Estimate.share(int(same.sum()), len(same))
        rows = {f"geometry/{name}": measured for name, measured in values.geometry.items()}
        sources = {f"geometry/{name}": measured for name, measured in values.source_geometry.items()}
        for name, source in values.source_geometry.items():
            result[f"preservation/{name}/random"] = Estimate.mean(geometry_distance(name, source.roll(1, 0), source))
        if values.features is not None and values.source_features is not None:
            rows["features"], sources["features"] = values.features, values.source_features
        if values.quality is not None:
            rows["quality"] = values.quality
        return {"quality": None, **result, **looks(rows, sources)}
