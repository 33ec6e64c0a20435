"""What is measured on samples: a `Measure` judges each picture once and turns judgements into numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.batches import PromptRow
from fairanon.evaluators.judge import Judge, place, plain
from fairanon.evaluators.protocols import AttributeClassifier, FeatureNet, PictureSource
from fairanon.metrics import AttributeRecall, FairnessDiscrepancy
from fairanon.metrics.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.intervals import Estimate, interval, mean_interval, wilson
from fairanon.metrics.whole import whole
from fairanon.report import plot_shares


@dataclass
class Judged:
    """Judged samples of one model.

    Attributes:
        rows: The prompt table.
        prompt: int64 (N,), each picture's row in it.
        values: What `Measure.observe` said of them, N rows each.
        thumbnails: uint8 (T, 3, S, S), the first pictures of each prompt.
        thumbnail_prompt: int64 (T,).
    """

    rows: list[PromptRow]
    prompt: Tensor
    values: dict[str, Tensor]
    thumbnails: Tensor
    thumbnail_prompt: Tensor

    def within(self, *sets: str) -> Tensor:
        """Which pictures belong to prompts of these sets: bool (N,)."""
        return torch.isin(self.prompt, torch.tensor([n for n, row in enumerate(self.rows) if row.set in sets]))

    def asked(self, name: str) -> list[str | None]:
        """What each picture's prompt asks of an attribute."""
        return [self.rows[row].asked.get(name) for row in self.prompt.tolist()]


class FewPictures:
    """The first pictures of a set.

    Args:
        source: The set.
        count: About how many; a verification threshold wants 142.
    """

    def __init__(self, source: PictureSource, count: int = 160) -> None:
        self.source, self.count = source, count

    def pictures(self) -> Iterator[Tensor]:
        """See `PictureSource`."""
        seen = 0
        for part in self.source.pictures():
            yield part
            seen += len(part)
            if seen >= self.count:
                return


class Measure(ABC):
    """Judges pictures and measures a model by them.

    Attributes:
        judges: Who judges what, by name and version; recorded beside the numbers.
        settings: Whatever else than the judges `observe` depends on.
    """

    judges: dict[str, str]
    settings: tuple[Any, ...] = ()

    def to(self, device: torch.device) -> None:
        """Put every judge on a device: the one of the process that measures."""
        place(vars(self), device)

    def cut(self) -> None:
        """Read a few pictures of each reference set only, for a rehearsal."""
        for name, value in list(vars(self).items()):
            if hasattr(value, "pictures"):
                setattr(self, name, FewPictures(value))

    def recipe(self) -> list[Any]:
        """What `observe` depends on: names stored judgements."""
        judges = {name: value for name, value in vars(self).items() if isinstance(value, (Judge, list))}
        return [self.judges, self.settings, plain(judges)]

    @abstractmethod
    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Judge pictures uint8 (N, 3, H, W) of N prompts: tensors of N rows, kept instead of the pictures."""

    @abstractmethod
    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """Every number of one model, None where its judge is absent; keys are metric/attribute/variant.

        Args:
            judged: Its samples.
            noise: The base model's samples of the set "generic" from other noise; None if there is no such set.
        """

    @abstractmethod
    def headline(self, keys: list[str]) -> list[str]:
        """Those of the measured keys that a table of experiments shows."""

    def compare(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """Ratios after / before, with paired intervals, where they are of interest."""
        return {}

    def differences(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """Differences after - before, with paired intervals, where they are of interest."""
        return {}

    def against(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """Numbers of the trained model that need both, such as win rates."""
        return {}

    def rivals(self, after: Judged) -> dict[str, dict[str, Estimate | None]]:
        """Other ways to do what the trained model does, on the same prompts: for each its numbers."""
        return {}

    def draw(self, folder: Path, before: Judged, after: Judged) -> None:  # noqa: B027  # not every measure has a picture
        """Write pictures beside the numbers."""


class Population(Measure):
    """Whom a model draws: discrepancy of neutral prompts, recall of identity-specific ones, distances, drift.

    Args:
        judge: Judges attributes and, if it can, computes features.
        attributes: Whose fairness is measured.
        unchanged: Attributes whose shares training should not move.
        subject: Attribute that says whether the picture shows what was asked ("alignment"); None leaves it out.
        reference: Balanced pictures for the Fréchet distance; None leaves it out.
        target: Ideal shares of an attribute's classes other than uniform.
        repeats: Bootstrap repeats.
    """

    def __init__(
        self,
        judge: AttributeClassifier,
        attributes: tuple[str, ...] = ("gender", "tone"),
        unchanged: tuple[str, ...] = (),
        subject: str | None = None,
        reference: PictureSource | None = None,
        target: dict[str, dict[str, float]] | None = None,
        repeats: int = 1000,
    ) -> None:
        for name in (*attributes, *unchanged, *([subject] if subject else [])):
            if name not in judge.classes:
                raise ValueError(
                    f"evaluate.measure: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        self.judge, self.attributes, self.unchanged, self.subject = judge, attributes, unchanged, subject
        self.reference, self.target, self.repeats = reference, target or {}, repeats
        self.judges = {"attributes": judge.name}
        self._reference_features: Tensor | None = None

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Probabilities of each attribute ("p.NAME") and features."""
        values = {f"p.{name}": rows.contiguous() for name, rows in self.judge.classify(pixels).items()}
        if isinstance(self.judge, FeatureNet):
            values["features"] = self.judge.features(pixels)
        return values

    def headline(self, keys: list[str]) -> list[str]:
        """Discrepancies, recall and distances."""
        return [key for key in keys if key.endswith("/per_prompt") or key == "recall/overall" or key.startswith("fid/")]

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """See `Measure.numbers`."""
        result: dict[str, Estimate | None] = {}
        for attribute in self.attributes:
            if judged.values[f"p.{attribute}"][judged.within("neutral")].isnan().any(1).all():
                result[f"discrepancy/{attribute}/per_prompt"] = None  # nobody is to be seen in any of the pictures
                continue
            for name, value in self._discrepancy(judged, attribute, "neutral").compute().items():
                result[f"discrepancy/{attribute}/{name}"] = value
            held = judged.values[f"p.{attribute}"][judged.within("heldout")]
            if len(held) and held.isnan().any(1).all():
                result[f"discrepancy/{attribute}/heldout"] = None
            elif len(held):
                heldout = self._discrepancy(judged, attribute, "heldout").compute()
                result[f"discrepancy/{attribute}/heldout"] = heldout["per_prompt"]
        result |= self._recalls(judged)
        neutral = judged.within("neutral")
        for attribute in self.unchanged:
            rows = judged.values[f"p.{attribute}"][neutral]
            seen = rows[~rows.isnan().any(1)]
            for k, name in enumerate(self.judge.classes[attribute]):
                hits = int((seen.argmax(1) == k).sum())
                low, high = wilson(hits, max(1, len(seen)))
                result[f"share/{attribute}/{name}"] = {
                    "value": hits / max(1, len(seen)), "low": low, "high": high,
                    "n": float(len(rows)), "missing": float(len(rows) - len(seen)),
                }  # fmt: skip
        features = judged.values.get("features")
        if features is not None and self.reference is not None:
            reference = self._features_of(self.reference)
            result["fid/balanced"] = frechet_interval(features[neutral], reference)
            result["kid/balanced"] = kernel_distance(features[neutral], reference)
        if features is not None and noise is not None:
            result["fid/generic"] = frechet_interval(features[judged.within("generic")], noise.values["features"])
        return result

    def compare(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """Discrepancy after divided by before, with an interval from a bootstrap paired over prompts."""
        result = {}
        for attribute in self.attributes:
            for name, sets in (("per_prompt", "neutral"), ("heldout", "heldout")):
                chosen = after.within(sets)
                if not chosen.any():
                    continue
                both = before, after
                seen = [self._discrepancy(judged, attribute, sets).judged_prompts()[0] for judged in both]
                shared = torch.tensor(sorted(seen[0] & seen[1]))  # or the bootstrap would pair different prompts
                if not len(shared):
                    continue
                old, new = (self._discrepancy(judged, attribute, sets, prompts=shared) for judged in both)
                value = new.compute()["per_prompt"]["value"] / old.compute()["per_prompt"]["value"]
                estimate = interval(value, new.bootstrap() / old.bootstrap())
                result[f"discrepancy/{attribute}/{name}"] = {
                    **estimate._asdict(), "n": float(chosen.sum()), "missing": 0.0
                }  # fmt: skip
        return result

    def draw(self, folder: Path, before: Judged, after: Judged) -> None:
        """``shares.png``: who is drawn for each neutral prompt."""
        rows = [n for n, row in enumerate(after.rows) if row.set in ("neutral", "heldout")][:20]

        def shares(judged: Judged, attribute: str) -> list[list[float]]:
            result = []
            for row in rows:
                found = judged.values[f"p.{attribute}"][judged.prompt == row]
                labels = found[~found.isnan().any(1)].argmax(1)
                counts = torch.bincount(labels, minlength=len(self.judge.classes[attribute]))
                result.append((counts / max(1, len(labels))).tolist())
            return result

        classes = {name: self.judge.classes[name] for name in self.attributes}
        ideal = {
            name: [self.target.get(name, {}).get(value, 1 / len(values)) for value in values]
            for name, values in classes.items()
        }
        both = {name: (shares(before, name), shares(after, name)) for name in self.attributes}
        names = [after.rows[n].prompt + " (held out)" * (after.rows[n].set == "heldout") for n in rows]
        plot_shares(folder / "shares.png", names, classes, both, ideal)

    # --- pieces ------------------------------------------------------------------------------------------

    def _discrepancy(
        self, judged: Judged, attribute: str, *sets: str, prompts: Tensor | None = None
    ) -> FairnessDiscrepancy:
        classes = self.judge.classes[attribute]
        shares = self.target.get(attribute)
        ideal = None if shares is None else tuple(shares[name] for name in classes)
        metric = whole(FairnessDiscrepancy(len(classes), ideal, self.repeats))
        chosen = judged.within(*sets)
        if prompts is not None:
            chosen &= torch.isin(judged.prompt, prompts)
        metric.update(judged.values[f"p.{attribute}"][chosen], judged.prompt[chosen])
        return metric

    def _features_of(self, source: PictureSource) -> Tensor:
        if self._reference_features is None:
            assert isinstance(self.judge, FeatureNet)
            parts = tqdm(source.pictures(), desc="reference pictures", unit="part", leave=False)
            self._reference_features = torch.cat([self.judge.features(part) for part in parts])
        return self._reference_features

    def _recalls(self, judged: Judged) -> dict[str, Estimate]:
        """Recall of each asked attribute on the specific prompts, and of all fairness attributes together."""
        result: dict[str, Estimate] = {}
        specific = judged.within("specific")
        together = torch.ones(int(specific.sum()), dtype=torch.bool)
        for attribute in dict.fromkeys((*self.attributes, *([self.subject] if self.subject else []))):
            classes = self.judge.classes[attribute]
            asked = [value for value, chosen in zip(judged.asked(attribute), specific, strict=True) if chosen]
            named = torch.tensor([value is not None for value in asked], dtype=torch.bool)
            if not named.any():
                continue
            rows = judged.values[f"p.{attribute}"][specific][named]
            numbers = torch.tensor([classes.index(value) for value in asked if value is not None])
            metric = whole(AttributeRecall())
            metric.update(rows, numbers)
            result[f"recall/{attribute}"] = metric.compute()
            if attribute in self.attributes:
                together[named] &= ~rows.isnan().any(1) & (rows.nan_to_num().argmax(1) == numbers)
        if result:
            both = whole(AttributeRecall())
            both.update(F.one_hot(together.long(), 2).float(), torch.ones(len(together), dtype=torch.long))
            result["recall/overall"] = both.compute()
        if self.subject is not None:
            asked = judged.asked(self.subject)
            classes = self.judge.classes[self.subject]
            named = torch.tensor([value is not None for value in asked])
            numbers = torch.tensor([classes.index(value) for value in asked if value is not None])
            confidence = judged.values[f"p.{self.subject}"][named].gather(1, numbers[:, None])[:, 0]
            result[f"alignment/{self.subject}"] = mean_interval(confidence)
        return result
