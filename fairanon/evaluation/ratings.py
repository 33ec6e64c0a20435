"""What scorers think of a model's images, and whose they prefer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.protocols import Scorer


@dataclass
class Scores(Observed):
    """Each scorer's rating, by its name: float (N,)."""

    by: dict[str, Tensor]


class Ratings(Measure[Scores]):
    """Mean score of each scorer, and how often it prefers the trained model (Ano-Face-Fair, table 2).

    Args:
        scorers: Rate images with their prompts, for example PickScore, HPSv2, ImageReward, LAION aesthetics.
    """

    record = Scores
    higher_is_better: ClassVar[dict[str, bool]] = {"score": True, "win_rate": True}

    def __init__(self, scorers: list[Scorer]) -> None:
        self.scorers = scorers
        self.judges = {scorer.name: scorer.name for scorer in scorers}

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Scores:
        """See `Measure.observe`."""
        prompts = [row.prompt for row in rows]
        return Scores({scorer.name: scorer.score(pixels, prompts) for scorer in self.scorers})

    def headline(self, keys: list[str]) -> list[str]:
        """Everything."""
        return keys

    def numbers(self, judged: Judged[Scores], noise: Judged[Scores] | None) -> Estimates:
        """See `Measure.numbers`."""
        return {f"score/{name}": Estimate.mean(values, judged.prompt) for name, values in judged.values.by.items()}

    def differences(self, before: Judged[Scores], after: Judged[Scores]) -> dict[str, Estimate]:
        """How much higher each scorer rates the trained model's image of the same prompt and noise."""
        by = before.values.by
        return {f"score/{name}": Estimate.mean(new - by[name], after.prompt) for name, new in after.values.by.items()}

    def against(self, before: Judged[Scores], after: Judged[Scores]) -> dict[str, Estimate]:
        """How often each scorer prefers the trained model's image of the same prompt and noise; a tie is half a win.

        The interval speaks of all prompts of the kind: images of one prompt are alike.
        """
        result = {}
        for name, new in after.values.by.items():
            old = before.values.by[name]
            rated = ~(new.isnan() | old.isnan())
            wins = ((new > old) + 0.5 * (new == old))[rated]
            if len(wins):
                missing = int((~rated).sum())
                result[f"win_rate/{name}"] = Estimate.skewed(wins, after.prompt[rated], missing)
        return result
