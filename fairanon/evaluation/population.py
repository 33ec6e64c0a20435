"""Whom does a model draw?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation.confusions import read_errors
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics import FairnessDiscrepancy
from fairanon.metrics.functional.discrepancy import bootstrap_discrepancy, prompt_counts, rms_discrepancy
from fairanon.metrics.functional.discrepancy import judged as seen_rows
from fairanon.metrics.functional.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.estimates import Estimate, Estimates, as_json
from fairanon.metrics.functional.recall import attribute_recall, group_accuracy, judged_right
from fairanon.progress import progress_bar
from fairanon.prompts import wanted_shares
from fairanon.protocols import AttributeClassifier, FeatureNet, ImageSource

_ENOUGH = 10
"""Images of a prompt below which a bootstrap of its discrepancy holds far less than it promises: of twelve .87, see benchmarks/coverage.py."""
_FEWEST = 4
"""Images that a distance of populations takes: `kernel_distance` needs so many."""


@dataclass
class Appearance(Observed):
    """Who is to be seen.

    Attributes:
        probabilities: Of the classes of each attribute, float (N, K); NaN where no face was found.
        features: float (N, D); None of a judge that has none.
    """

    probabilities: dict[str, Tensor]
    features: Tensor | None = None


class Population(Measure[Appearance]):
    """Discrepancy of neutral prompts, recall of identity-specific ones, distances, drift (PopAlign, tables 1 to 3).

    Where it is known what the judge gets wrong (``experiments/judges/*.confusion.json``), a discrepancy without it stands beside
    the others, as an audit has it.

    Args:
        judge: Judges attributes and, if it can, computes features.
        attributes: Whose fairness is measured.
        unchanged: Attributes whose shares training should not move.
        subject: Attribute that says whether the image shows what was asked ("alignment"); None leaves it out.
        reference: Balanced images for the Fréchet distance; None leaves it out.
        target: Ideal shares of an attribute's classes other than uniform.
        repeats: Bootstrap repeats.
    """

    record = Appearance
    sets = ("neutral", "heldout", "specific", "generic")
    other_noise = ("generic",)
    higher_is_better: ClassVar[dict[str, bool]] = {
        "discrepancy": FairnessDiscrepancy.higher_is_better, "recall": True, "alignment": True, "fid": False, "kid": False,
    }  # fmt: skip

    def __init__(
        self,
        judge: AttributeClassifier,
        attributes: tuple[str, ...] = ("gender", "tone"),
        unchanged: tuple[str, ...] = (),
        subject: str | None = None,
        reference: ImageSource | None = None,
        target: dict[str, dict[str, float]] | None = None,
        repeats: int = 1000,
    ) -> None:
        for name in (*attributes, *unchanged, *([subject] if subject else [])):
            if name not in judge.classes:
                raise ValueError(
                    f"evaluate.measures: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        for name, shares in (target or {}).items():
            wanted_shares(judge.classes.get(name, ()), shares, f"evaluate.measures: target of {name!r}")
        self.judge, self.attributes, self.unchanged, self.subject = judge, attributes, unchanged, subject
        self.reference, self.target, self.repeats = reference, target or {}, repeats
        self.judges = {"attributes": judge.name}
        classes = {name: judge.classes[name] for name in attributes}
        self._confusions = read_errors("auto", judge.name, classes).confusions
        self._reference_features: Tensor | None = None

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Appearance:
        """See `Measure.observe`."""
        features = self.judge.features(pixels) if isinstance(self.judge, FeatureNet) else None
        return Appearance(self.judge.classify(pixels), features)

    def quick(self, judged: Judged[Appearance]) -> Estimates:
        """See `Measure.quick`: discrepancies prompt by prompt."""
        seen = [name for name in self.attributes if self._seen(judged, name).any()]
        return {f"discrepancy/{name}/per_prompt": self._discrepancy(judged, name)["per_prompt"] for name in seen}

    def headline(self, keys: list[str]) -> list[str]:
        """Discrepancies prompt by prompt and, as the paper's tables have them, of all images together; recall, distances."""
        ends = ("/per_prompt", "/pooled")
        return [key for key in keys if key.endswith(ends) or key == "recall/overall" or key.startswith("fid/")]

    def numbers(self, judged: Judged[Appearance], noise: Judged[Appearance] | None) -> Estimates:
        """See `Measure.numbers`."""
        neutral, held_out = judged.within("neutral"), judged.within("heldout")
        result: Estimates = {}
        for attribute in self.attributes:
            if not self._seen(neutral, attribute).any():
                result[f"discrepancy/{attribute}/per_prompt"] = None  # nobody is to be seen in any of the images
                continue
            for name, value in self._discrepancy(neutral, attribute).items():
                result[f"discrepancy/{attribute}/{name}"] = value
            if attribute in self._confusions:
                result[f"discrepancy/{attribute}/corrected"] = self._corrected(neutral, attribute)
            if len(held_out):
                seen = self._seen(held_out, attribute).any()
                estimate = self._discrepancy(held_out, attribute)["per_prompt"] if seen else None
                result[f"discrepancy/{attribute}/heldout"] = estimate
        result |= self._recalls(judged.within("specific"))
        if self.subject is not None:
            result[f"alignment/{self.subject}"] = self._alignment(judged, self.subject)
        for attribute in self.unchanged:
            result |= self._shares(neutral, attribute)
        features = neutral.values.features
        if features is not None and len(features) >= _FEWEST and self.reference is not None:
            reference = self._features_of(self.reference)
            result["fid/balanced"] = frechet_interval(features, reference)
            result["kid/balanced"] = kernel_distance(features, reference)
        if noise is not None and noise.values.features is not None:
            generic = judged.within("generic").values.features
            assert generic is not None
            result["fid/generic"] = frechet_interval(generic, noise.values.features)
        return result

    def compare(self, before: Judged[Appearance], after: Judged[Appearance]) -> dict[str, Estimate]:
        """Discrepancy after divided by before, with an interval from a bootstrap paired over prompts.

        Of each prompt as many images count before as after: of fewer, chance alone makes a discrepancy larger. Where that leaves
        fewer than `_ENOUGH` on average, a resample says too little of what chance does, and the ratio has no interval.
        """
        result = {}
        for attribute in self.attributes:
            for key, name, sets in (
                ("per_prompt", "per_prompt", "neutral"), ("pooled", "pooled", "neutral"),
                ("heldout", "per_prompt", "heldout"),
            ):  # fmt: skip
                both = before.within(sets), after.within(sets)
                old, new = _as_many(*(judged[self._seen(judged, attribute)] for judged in both))
                if not len(old):
                    continue
                estimates = [self._discrepancy(judged, attribute)[name] for judged in (old, new)]
                values = [0.0 if estimate is None else estimate.value for estimate in estimates]
                if not values[0]:
                    continue  # nothing can be a part of it
                draws = [
                    bootstrap_discrepancy(
                        judged.values.probabilities[attribute],
                        judged.prompt,
                        self._ideal(attribute),
                        self.repeats,
                        pooled=name == "pooled",
                    )
                    for judged in (old, new)
                ]
                ratio = Estimate.quotient(draws[1], draws[0], values[1] / values[0], len(new), len(both[1]) - len(new))
                if len(new) < _ENOUGH * len(new.prompt.unique()):
                    ratio = replace(ratio, low=None, high=None)
                result[f"discrepancy/{attribute}/{key}"] = ratio
        return result

    def shares(self, before: Judged[Appearance], after: Judged[Appearance]) -> list[dict[str, Any]]:
        """See `Measure.shares`; of the prompts that name no group."""
        rows = [n for n, row in enumerate(after.rows) if row.set in ("neutral", "heldout")]
        table = []
        for attribute in self.attributes:
            classes, ideal = self.judge.classes[attribute], self._ideal(attribute)
            for prompt, chosen in [
                ("", [n for n in rows if after.rows[n].set == "neutral"]),
                *((_named(after.rows[n]), [n]) for n in rows),
            ]:
                both = [self._counted(judged, attribute, chosen) for judged in (before, after)]
                for k, name in enumerate(classes):
                    share = 1 / len(classes) if ideal is None else float(ideal[k])
                    numbers = as_json(dict(zip(("before", "after"), (estimates[k] for estimates in both), strict=True)))
                    table.append({"attribute": attribute, "prompt": prompt, "class": name, "ideal": share, **numbers})
        return table

    # --- pieces ------------------------------------------------------------------------------------------

    def _counted(self, judged: Judged[Appearance], attribute: str, prompts: list[int]) -> list[Estimate | None]:
        """The share of each class of an attribute in the images of some prompts; None where nobody is to be seen."""
        rows = judged.values.probabilities[attribute][torch.isin(judged.prompt, torch.tensor(prompts))]
        seen = rows[~rows.isnan().any(1)].argmax(1)
        if not len(seen):
            return [None] * len(self.judge.classes[attribute])
        counts = torch.bincount(seen, minlength=len(self.judge.classes[attribute])).tolist()
        shares = [Estimate.share(count, len(seen), len(rows) - len(seen)) for count in counts]
        return [replace(share, n=len(rows)) for share in shares]

    def _ideal(self, attribute: str) -> Tensor | None:
        shares = self.target.get(attribute)
        return None if shares is None else torch.tensor([shares[name] for name in self.judge.classes[attribute]])

    def _seen(self, judged: Judged[Appearance], attribute: str) -> Tensor:
        """In which images an attribute could be judged: bool (N,)."""
        return ~judged.values.probabilities[attribute].isnan().any(1)

    def _discrepancy(self, judged: Judged[Appearance], attribute: str) -> Estimates:
        rows, ideal = judged.values.probabilities[attribute], self._ideal(attribute)
        target = None if ideal is None else tuple(ideal.tolist())
        return FairnessDiscrepancy(rows.shape[1], target, self.repeats).measured(rows, judged.prompt)

    def _corrected(self, judged: Judged[Appearance], attribute: str) -> Estimate | None:
        """What `fairanon audit` calls the distance: without what chance and the judge's errors add."""
        rows = judged.values.probabilities[attribute]
        counts, errors = prompt_counts(*seen_rows(rows, judged.prompt)), self._confusions[attribute]
        distance = rms_discrepancy(counts, self._ideal(attribute), confusion=errors)
        return None if distance is None else replace(distance, missing=int(rows.isnan().any(1).sum()))

    def _features_of(self, source: ImageSource) -> Tensor:
        if self._reference_features is None:
            assert isinstance(self.judge, FeatureNet)
            parts = progress_bar(source.images(), desc="reference images", unit="part", leave=False)
            self._reference_features = torch.cat([self.judge.features(part) for part in parts])
        return self._reference_features

    def _asked(self, judged: Judged[Appearance], attribute: str) -> tuple[Tensor, Tensor, Tensor]:
        """Which images' prompts ask for a class of an attribute, their probabilities, and the class."""
        asked, classes = judged.asked(attribute), self.judge.classes[attribute]
        named = torch.tensor([value is not None for value in asked], dtype=torch.bool)
        numbers = torch.tensor([classes.index(value) for value in asked if value is not None])
        return named, judged.values.probabilities[attribute][named], numbers

    def _recalls(self, specific: Judged[Appearance]) -> dict[str, Estimate]:
        """Recall of each asked attribute on the specific prompts, of each class, and of all fairness attributes together."""
        result: dict[str, Estimate] = {}
        together = torch.ones(len(specific), dtype=torch.bool)
        counted = ~together
        for attribute in dict.fromkeys((*self.attributes, *([self.subject] if self.subject else []))):
            named, rows, numbers = self._asked(specific, attribute)
            if not named.any():
                continue
            result[f"recall/{attribute}"] = attribute_recall(rows, numbers)
            if attribute in self.attributes:
                each = group_accuracy(rows, numbers, self.judge.classes[attribute])
                result |= {f"recall/{attribute}/{name}": found for name, found in each.items() if name != "overall"}
                together[named] &= judged_right(rows, numbers)
                counted |= named
        if counted.any():
            right = together[counted].long()
            result["recall/overall"] = attribute_recall(F.one_hot(right, 2).float(), torch.ones_like(right))
        return result

    def _alignment(self, judged: Judged[Appearance], subject: str) -> Estimate:
        """Mean probability of the subject that each prompt asked for."""
        _, rows, numbers = self._asked(judged, subject)
        return Estimate.mean(rows.gather(1, numbers[:, None])[:, 0])

    def _shares(self, neutral: Judged[Appearance], attribute: str) -> Estimates:
        prompts = [n for n, row in enumerate(neutral.rows) if row.set == "neutral"]
        counted = self._counted(neutral, attribute, prompts)
        return {
            f"share/{attribute}/{name}": share
            for name, share in zip(self.judge.classes[attribute], counted, strict=True)
        }


def _as_many(*models: Judged[Appearance]) -> list[Judged[Appearance]]:
    """Of each prompt the first images of each model, as many as the one has of which there are fewest."""
    counts = [torch.bincount(judged.prompt, minlength=len(judged.rows)) for judged in models]
    fewest = torch.stack(counts).amin(0)
    chosen = []
    for judged, count in zip(models, counts, strict=True):
        order = judged.prompt.argsort(stable=True)
        place = torch.arange(len(order)) - (count.cumsum(0) - count)[judged.prompt[order]]  # among those of its prompt
        chosen.append(judged[order[place < fewest[judged.prompt[order]]].sort().values])
    return chosen


def _named(row: PromptRow) -> str:
    return row.prompt + " (held out)" * (row.set == "heldout")
