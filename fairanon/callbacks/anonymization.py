"""Are faces anonymized, and does each still look like its group?"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.batches import PromptRow
from fairanon.callbacks.measures import Judged, Measure
from fairanon.evaluators.protocols import AttributeClassifier, Embedder, FeatureNet, PerceptualDistance, PictureSource
from fairanon.metrics import AnonymizationAccuracy, GroupAccuracy
from fairanon.metrics.anonymization import judged_right
from fairanon.metrics.distances import frechet_interval
from fairanon.metrics.functional.intervals import Estimate, mean_interval
from fairanon.metrics.functional.verification import cosine_distance, threshold_at
from fairanon.metrics.similarity import picture_pairs, similarity
from fairanon.metrics.whole import whole


class Anonymization(Measure):
    """Group accuracy, anonymization accuracy, distances and similarity to the source (Ano-Face-Fair, table 1).

    Args:
        judge: Judges groups and attributes.
        embedder: Recognizes faces.
        strangers: Pictures of different people, from which the verification thresholds are calibrated.
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

    def __init__(
        self,
        judge: AttributeClassifier,
        embedder: Embedder,
        strangers: PictureSource,
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
                    f"evaluate.measure: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        self.judge, self.embedder, self.strangers, self.group = judge, embedder, strangers, group
        self.attributes, self.false_match_rate, self.alike = attributes, false_match_rate, alike
        self.features, self.clip, self.perceptual = features, clip, perceptual
        self.judges = {"attributes": judge.name, "recognition": embedder.name}
        optional = {"features": features, "clip_i": clip, "perceptual": perceptual}
        self.judges |= {what: net.name for what, net in optional.items() if net is not None}
        self.settings = (group, *attributes, {name: judge.classes[name] for name in (group, *attributes)})
        self._thresholds: dict[tuple[str, ...], tuple[float, int]] = {}

    def cut(self) -> None:
        """See `Measure.cut`; few strangers are enough for one threshold only."""
        super().cut()
        self.alike = ()

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
        if self.perceptual is not None:
            values["perceptual"] = self.perceptual.distance(pixels, sources)
        return values

    def headline(self, keys: list[str]) -> list[str]:
        """Everything but the thresholds, which are the same for all."""
        return [key for key in keys if not key.startswith("anonymization/threshold")]

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """See `Measure.numbers`."""
        result: dict[str, Estimate | None] = {}
        for name in (self.group, *self.attributes):
            metric = whole(GroupAccuracy(self.judge.classes[name]))
            metric.update(*self._asked(judged, name))
            if name == self.group:
                result |= {f"group_accuracy/{group}": value for group, value in metric.compute().items()}
            else:
                result[f"recall/{name}"] = metric.compute()["overall"]
        result |= self._distances(judged)
        alike = {n.removeprefix("alike."): rows for n, rows in judged.values.items() if n.startswith("alike.")}
        result |= similarity(alike)
        if self.features is not None:
            result["fid/source"] = frechet_interval(judged.values["features"], judged.values["features.source"])
        if self.clip is not None:
            result[f"clip_i/{self.clip.name.partition('-')[0]}"] = mean_interval(judged.values["clip_i"])
        if self.perceptual is not None:
            name = f"perceptual/{self.perceptual.name.partition('-')[0]}"
            result[name] = mean_interval(judged.values["perceptual"])
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

    def thresholds(self) -> dict[tuple[str, ...], tuple[float, int]]:
        """The calibrated distance, and the number of pairs it rests on, for all strangers (empty key) and for each kind."""
        if not self._thresholds:
            pictures = tqdm(self.strangers.pictures(), desc="strangers", unit="part", leave=False)
            parts = [(self.embedder.embed(part), self.judge.classify(part)) for part in pictures]
            embeddings = torch.cat([found for found, _ in parts])
            judged = {name: torch.cat([rows[name] for _, rows in parts]) for name in parts[0][1]}
            self._thresholds[()] = threshold_at(embeddings, self.false_match_rate)
            for kind in itertools.product(*(self.judge.classes[name] for name in self.alike)) if self.alike else ():
                here = torch.ones(len(embeddings), dtype=torch.bool)
                for name, value in zip(self.alike, kind, strict=True):
                    here &= judged_right(judged[name], torch.full((len(here),), self.judge.classes[name].index(value)))
                self._thresholds[kind] = threshold_at(embeddings[here], self.false_match_rate)
        return self._thresholds

    def _distances(self, judged: Judged) -> dict[str, Estimate]:
        """Anonymization accuracy at the thresholds of each kind and, where they differ, at the one for all strangers."""
        known, distances = self.thresholds(), judged.values["distance"]
        asked = [judged.asked(name) for name in self.alike]
        kinds = list(zip(*asked, strict=True)) if asked else [()] * len(distances)
        metric = whole(AnonymizationAccuracy(known[()][0]))
        metric.update(distances, torch.tensor([known[kind][0] for kind in kinds]))
        found = metric.compute()
        result = {"anonymization/accuracy": found.pop("accuracy")}
        result |= {f"distance/{name}": value for name, value in found.items()}
        used = [known[kind] for kind in sorted(set(kinds))]
        values = torch.tensor([value for value, _ in used])
        result["anonymization/threshold"] = {
            "value": float(values.mean()), "low": float(values.min()), "high": float(values.max()),
            "n": float(sum(pairs for _, pairs in used)), "missing": 0.0,
        }  # fmt: skip
        if self.alike:
            one = whole(AnonymizationAccuracy(known[()][0]))
            one.update(distances)
            result["anonymization/accuracy/one_threshold"] = one.compute()["accuracy"]
            value, pairs = known[()]
            result["anonymization/threshold/one"] = {
                "value": value, "low": value, "high": value, "n": float(pairs), "missing": 0.0
            }  # fmt: skip
        return result

    def _asked(self, judged: Judged, name: str) -> tuple[Tensor, Tensor]:
        """Probabilities of an attribute and the class that each prompt asked for."""
        classes, asked = self.judge.classes[name], judged.asked(name)
        if unknown := sorted({str(value) for value in asked if value not in classes}):
            raise ValueError(f"evaluate.prompts: {name} {unknown[0]!r} is not one of {', '.join(classes)}.")
        return judged.values[f"p.{name}"], torch.tensor([classes.index(value) for value in asked if value is not None])
