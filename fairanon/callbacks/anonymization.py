"""Are faces anonymized, and does each still look like its group?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.callbacks.measures import Judged, Measure
from fairanon.evaluators.protocols import AttributeClassifier, Embedder, FeatureNet, PictureSource
from fairanon.metrics import AnonymizationAccuracy, GroupAccuracy
from fairanon.metrics.anonymization import judged_right
from fairanon.metrics.distances import frechet_interval
from fairanon.metrics.functional.intervals import Estimate, mean_interval
from fairanon.metrics.functional.verification import cosine_distance, threshold_at
from fairanon.metrics.similarity import picture_pairs, similarity


class Anonymization(Measure):
    """Group accuracy, anonymization accuracy, distances and similarity to the source (Ano-Face-Fair, table 1).

    Args:
        judge: Judges groups and attributes.
        embedder: Recognizes faces.
        strangers: Pictures of different people, from which the verification threshold is calibrated.
        group: The attribute whose classes are the groups.
        attributes: Further attributes that a prompt asks for ("recall/NAME").
        false_match_rate: Share of strangers that the threshold takes for the same person.
        features: Computes features for the Fréchet distance to the sources; None leaves it out.
        clip: Computes image embeddings for CLIP-I; None leaves it out.
    """

    def __init__(
        self,
        judge: AttributeClassifier,
        embedder: Embedder,
        strangers: PictureSource,
        group: str = "race",
        attributes: tuple[str, ...] = ("gender",),
        false_match_rate: float = 1e-3,
        features: FeatureNet | None = None,
        clip: FeatureNet | None = None,
    ) -> None:
        for name in (group, *attributes):
            if name not in judge.classes:
                raise ValueError(
                    f"evaluate.measure: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        self.judge, self.embedder, self.strangers, self.group = judge, embedder, strangers, group
        self.attributes, self.false_match_rate = attributes, false_match_rate
        self.features, self.clip = features, clip
        self.judges = {"attributes": judge.name, "recognition": embedder.name}
        self.judges |= {what: net.name for what, net in (("features", features), ("clip_i", clip)) if net is not None}
        self._threshold: tuple[float, int] | None = None

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Probabilities, distance to the source (NaN where either shows no face), similarity and features."""
        pictures = [row.picture for row in rows if row.picture is not None]
        if len(pictures) != len(rows):
            raise ValueError("evaluate.prompts: anonymization is measured on pictures; give every row one.")
        sources = torch.stack(pictures)
        judged = self.judge.classify(pixels)
        values = {f"p.{name}": judged[name].contiguous() for name in (self.group, *self.attributes)}
        values["distance"] = cosine_distance(self.embedder.embed(pixels), self.embedder.embed(sources))
        values |= {f"alike.{name}": found for name, found in picture_pairs(pixels, sources).items()}
        if self.features is not None:
            values["features"] = self.features.features(pixels)
            values["features.source"] = self.features.features(sources)
        if self.clip is not None:
            values["clip_i"] = F.cosine_similarity(self.clip.features(pixels), self.clip.features(sources))
        return values

    def headline(self, keys: list[str]) -> list[str]:
        """Everything but the threshold, which is the same for all."""
        return [key for key in keys if key != "anonymization/threshold"]

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate]:
        """See `Measure.numbers`."""
        result: dict[str, Estimate] = {}
        for name in (self.group, *self.attributes):
            metric = GroupAccuracy(self.judge.classes[name])
            metric.update(*self._asked(judged, name))
            if name == self.group:
                result |= {f"group_accuracy/{group}": value for group, value in metric.compute().items()}
            else:
                result[f"recall/{name}"] = metric.compute()["overall"]
        threshold, pairs = self.threshold()
        distances = AnonymizationAccuracy(threshold)
        distances.update(judged.values["distance"])
        result |= {
            "anonymization/accuracy" if name == "accuracy" else f"distance/{name}": value
            for name, value in distances.compute().items()
        }
        result["anonymization/threshold"] = {
            "value": threshold, "low": threshold, "high": threshold, "n": float(pairs), "missing": 0.0
        }  # fmt: skip
        alike = {n.removeprefix("alike."): rows for n, rows in judged.values.items() if n.startswith("alike.")}
        result |= {name: value for name, value in similarity(alike).items() if value is not None}
        if self.features is not None:
            result["fid/source"] = frechet_interval(judged.values["features"], judged.values["features.source"])
        if self.clip is not None:
            result[f"clip_i/{self.clip.name.partition('-')[0]}"] = mean_interval(judged.values["clip_i"])
        return result

    def differences(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """How much each group's accuracy changed; the same people, prompts, masks and noise before and after."""
        old, new = (judged_right(*self._asked(judged, self.group)).float() for judged in (before, after))
        _, asked = self._asked(after, self.group)
        change = new - old
        result = {
            f"group_accuracy/{name}": mean_interval(change[asked == k])
            for k, name in enumerate(self.judge.classes[self.group])
            if (asked == k).any()
        }
        result["group_accuracy/overall"] = mean_interval(change)
        return result

    def threshold(self) -> tuple[float, int]:
        """The calibrated distance, and the number of pairs it was calibrated on."""
        if self._threshold is None:
            self._threshold = threshold_at(self.embedder.embed(self.strangers.pictures()), self.false_match_rate)
        return self._threshold

    def _asked(self, judged: Judged, name: str) -> tuple[Tensor, Tensor]:
        """Probabilities of an attribute and the class that each prompt asked for."""
        classes, asked = self.judge.classes[name], judged.asked(name)
        if unknown := sorted({str(value) for value in asked if value not in classes}):
            raise ValueError(f"evaluate.prompts: {name} {unknown[0]!r} is not one of {', '.join(classes)}.")
        return judged.values[f"p.{name}"], torch.tensor([classes.index(value) for value in asked if value is not None])
