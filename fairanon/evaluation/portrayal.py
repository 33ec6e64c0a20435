"""How people look in images, as a judge sees it: what an audit counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.imaging import resized
from fairanon.metrics.functional.estimates import Estimates
from fairanon.protocols import AttributeClassifier, FeatureNet, Scorer

_DARK = 4
"""Grey values between the darkest and the brightest pixel of each colour of an image that shows nothing: blacked out, refused, unreadable."""


@dataclass
class Portrayed(Observed):
    """What is to be seen.

    Attributes:
        probabilities: Of the classes of each attribute, float (N, K); NaN where no face was found, or nothing is to be seen.
        blank: bool (N,), nothing is to be seen.
        features: float (N, D); None of a judge that has none.
        scores: Each scorer's rating by its name, float (N,); NaN where nothing is to be seen.
    """

    probabilities: dict[str, Tensor]
    blank: Tensor
    features: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)


class Portrayal(Measure[Portrayed]):
    """Keeps what a judge says of each image; the numbers are an audit's own.

    Args:
        judge: Judges attributes and, if it can, computes features.
        scorers: Rate images beside it.
    """

    record = Portrayed
    sets = ("neutral", "heldout", "specific")

    def __init__(self, judge: AttributeClassifier, scorers: Sequence[Scorer] = ()) -> None:
        self.judge, self.scorers = judge, scorers
        self.judges = {"attributes": judge.name, **{scorer.name: scorer.name for scorer in scorers}}

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Portrayed:
        """See `Measure.observe`."""
        flat = pixels.flatten(2).int()
        blank = (flat.amax(2) - flat.amin(2)).amax(1) <= _DARK  # of each colour
        scores = {scorer.name: scorer.score(pixels, [row.prompt for row in rows]).float() for scorer in self.scorers}
        for values in scores.values():
            values[blank] = torch.nan
        side = getattr(self.judge, "side", None)
        if side is not None:  # a judge of images of one size
            pixels = resized(pixels, side)
        probabilities = self.judge.classify(pixels)
        for chances in probabilities.values():
            chances[blank] = torch.nan
        features = self.judge.features(pixels) if isinstance(self.judge, FeatureNet) else None
        return Portrayed(probabilities, blank, features, scores)

    def numbers(self, judged: Judged[Portrayed], noise: Judged[Portrayed] | None) -> Estimates:
        """None: an audit makes its own."""
        return {}

    def headline(self, keys: list[str]) -> list[str]:
        """None either."""
        return []
