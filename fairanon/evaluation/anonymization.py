"""Are faces anonymized, and does each still look like its group?"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics import AnonymizationAccuracy, GroupAccuracy
from fairanon.metrics.anonymity import looks, protected
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.recall import judged_right
from fairanon.metrics.functional.similarity import image_pairs
from fairanon.metrics.functional.verification import cosine_distance, threshold_at
from fairanon.progress import progress_bar
from fairanon.protocols import AttributeClassifier, Embedder, FeatureNet, ImageSource, PerceptualDistance


@dataclass
class Anonymized(Observed):
    """Results beside their sources.

    Attributes:
        probabilities: Of the classes of each attribute, float (N, K); NaN where no face was found.
        distance: Cosine distance to the source, float (N,); NaN where either shows no face.
        alike: What `image_pairs` returns.
        features: float (N, D).
        source_features: Likewise, of the sources.
        clip_i: Cosine of the CLIP embeddings, float (N,).
        perceptual: Distance, float (N,).
    """

    probabilities: dict[str, Tensor]
    distance: Tensor
    alike: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    source_features: Tensor | None = None
    clip_i: Tensor | None = None
    perceptual: Tensor | None = None


_LOOKS = ("features", "clip_i", "perceptual")


class Anonymization(Measure[Anonymized]):
    """Group accuracy, anonymization accuracy, distances and similarity to the source (Ano-Face-Fair, table 1).

    Args:
        judge: Judges groups and attributes.
        embedder: Recognizes faces.
        strangers: Images of different people, from which the verification thresholds are calibrated.
        group: The attribute whose classes are the groups.
        attributes: Further attributes that a prompt asks for ("recall/NAME").
        false_match_rate: Share of strangers that a threshold takes for the same person.
        alike: Attributes that strangers share: each combination of their classes, as judged, has a threshold of its own.
            People who look alike match by mistake more often, and a result shares with its source what the prompt says.
            Empty is one threshold for all.
        features: Computes features for the Fréchet distance to the sources; None leaves it out.
        clip: Computes image embeddings for CLIP-I; None leaves it out.
        perceptual: A distance beside LPIPS, which is measured wherever its weights are; None leaves it out.
    """

    record = Anonymized
    higher_is_better: ClassVar[dict[str, bool]] = {
        "group_accuracy": GroupAccuracy.higher_is_better, "recall": True,
        "anonymization": AnonymizationAccuracy.higher_is_better, "fid": False, "kid": False,
    }  # fmt: skip

    def __init__(
        self,
        judge: AttributeClassifier,
        embedder: Embedder,
        strangers: ImageSource,
        group: str = "race",
        attributes: tuple[str, ...] = ("gender",),
        false_match_rate: float = 1e-3,
        alike: tuple[str, ...] = (),
        features: FeatureNet | None = None,
        clip: FeatureNet | None = None,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        for name in (group, *attributes, *alike):
            if name not in judge.classes:
                raise ValueError(
                    f"evaluate.measures: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        self.judge, self.embedder, self.strangers, self.group = judge, embedder, strangers, group
        self.attributes, self.false_match_rate, self.alike = attributes, false_match_rate, alike
        self.features, self.clip, self.perceptual = features, clip, perceptual
        self.judges = {"attributes": judge.name, "recognition": embedder.name}
        optional = {"features": features, "clip_i": clip, "perceptual": perceptual}
        self.judges |= {what: net.name for what, net in optional.items() if net is not None}
        self.settings = (group, *attributes, {name: judge.classes[name] for name in (group, *attributes)})
        self._thresholds: dict[tuple[str, ...], tuple[float, int]] = {}

    def shorten(self) -> None:
        """See `Measure.shorten`; few strangers are enough for one threshold only."""
        super().shorten()
        self.alike = ()

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Anonymized:
        """See `Measure.observe`."""
        images = [row.image for row in rows if row.image is not None]
        if len(images) != len(rows):
            raise ValueError("evaluate.prompts: anonymization is measured on images; give every row one.")
        sources = torch.stack(images)
        judged = self.judge.classify(pixels)
        record = Anonymized(
            {name: judged[name] for name in (self.group, *self.attributes)},
            cosine_distance(self.embedder.embed(pixels), self.embedder.embed(sources)),
            image_pairs(pixels, sources),
        )
        if self.features is not None:
            record.features, record.source_features = self.features.features(pixels), self.features.features(sources)
        if self.clip is not None:
            record.clip_i = F.cosine_similarity(self.clip.features(pixels), self.clip.features(sources))
        if self.perceptual is not None:
            record.perceptual = self.perceptual.distance(pixels, sources)
        return record

    def headline(self, keys: list[str]) -> list[str]:
        """Everything but the thresholds, which are the same for all."""
        return [key for key in keys if not key.startswith("anonymization/threshold")]

    def numbers(self, judged: Judged[Anonymized], noise: Judged[Anonymized] | None) -> Estimates:
        """See `Measure.numbers`."""
        values, result = judged.values, Estimates()
        for name in (self.group, *self.attributes):
            measured = GroupAccuracy(self.judge.classes[name]).measured(*self._asked(judged, name))
            if name == self.group:
                result |= {f"group_accuracy/{group}": value for group, value in measured.items()}
            else:
                result[f"recall/{name}"] = measured["overall"]
        result |= self._distances(judged)
        rows = {f"alike/{name}": measured for name, measured in values.alike.items()}
        rows |= {name: measured for name in _LOOKS if (measured := getattr(values, name)) is not None}
        sources = {} if values.source_features is None else {"features": values.source_features}
        for key, value in looks(rows, sources).items():
            if not key.startswith("preservation"):
                net = {"clip_i": self.clip, "perceptual": self.perceptual}.get(key)
                result[key if net is None else f"{key}/{net.name.partition('-')[0]}"] = value
        return result

    def differences(self, before: Judged[Anonymized], after: Judged[Anonymized]) -> dict[str, Estimate]:
        """How much each group's accuracy changed; the same people, prompts, masks and noise before and after."""
        old, new = (judged_right(*self._asked(judged, self.group)).float() for judged in (before, after))
        _, asked = self._asked(after, self.group)
        change = new - old
        result = {
            f"group_accuracy/{name}": Estimate.mean(change[asked == k])
            for k, name in enumerate(self.judge.classes[self.group])
            if (asked == k).any()
        }
        result["group_accuracy/overall"] = Estimate.mean(change)
        return result

    def thresholds(self) -> dict[tuple[str, ...], tuple[float, int]]:
        """The calibrated distance, and the number of pairs it rests on, for all strangers (empty key) and for each kind."""
        if not self._thresholds:
            images = progress_bar(self.strangers.images(), desc="strangers", unit="part", leave=False)
            parts = [(self.embedder.embed(part), self.judge.classify(part)) for part in images]
            embeddings = torch.cat([vectors for vectors, _ in parts])
            judged = {name: torch.cat([rows[name] for _, rows in parts]) for name in parts[0][1]}
            self._thresholds[()] = threshold_at(embeddings, self.false_match_rate)
            for kind in itertools.product(*(self.judge.classes[name] for name in self.alike)) if self.alike else ():
                here = torch.ones(len(embeddings), dtype=torch.bool)
                for name, value in zip(self.alike, kind, strict=True):
                    here &= judged_right(judged[name], torch.full((len(here),), self.judge.classes[name].index(value)))
                self._thresholds[kind] = threshold_at(embeddings[here], self.false_match_rate)
        return self._thresholds

    def _distances(self, judged: Judged[Anonymized]) -> Estimates:
        """Anonymization accuracy at the thresholds of each kind and, where they differ, at the one for all strangers."""
        known, distances = self.thresholds(), judged.values.distance
        asked = [judged.asked(name) for name in self.alike]
        kinds = list(zip(*asked, strict=True)) if asked else [()] * len(distances)
        thresholds = torch.tensor([known[kind][0] for kind in kinds])
        result = protected(distances > thresholds, distances)
        used = [known[kind] for kind in sorted(set(kinds))]
        values = torch.tensor([value for value, _ in used])
        result["anonymization/threshold"] = Estimate(
            float(values.mean()), float(values.min()), float(values.max()), sum(pairs for _, pairs in used)
        )
        if self.alike:
            value, pairs = known[()]
            result["anonymization/accuracy/one_threshold"] = AnonymizationAccuracy(value).measured(distances)[
                "accuracy"
            ]
            result["anonymization/threshold/one"] = Estimate.exact(value, pairs)
        return result

    def _asked(self, judged: Judged[Anonymized], name: str) -> tuple[Tensor, Tensor]:
        """Probabilities of an attribute and the class that each prompt asked for."""
        classes, asked = self.judge.classes[name], judged.asked(name)
        if unknown := sorted({str(value) for value in asked if value not in classes}):
            raise ValueError(f"evaluate.prompts: {name} {unknown[0]!r} is not one of {', '.join(classes)}.")
        return judged.values.probabilities[name], torch.tensor([classes.index(v) for v in asked if v is not None])
