"""What scorers think of a model's pictures, and whose they prefer."""

from __future__ import annotations

from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.callbacks.measures import Judged, Measure
from fairanon.evaluators.protocols import Scorer
from fairanon.metrics.functional.intervals import Estimate, mean_interval


class Ratings(Measure):
    """Mean score of each scorer, and how often it prefers the trained model (Ano-Face-Fair, table 2).

    Args:
        scorers: Rate pictures with their prompts, for example PickScore, HPSv2, ImageReward, LAION aesthetics.
    """

    def __init__(self, scorers: list[Scorer]) -> None:
        self.scorers = scorers
        self.judges = {scorer.name: scorer.name for scorer in scorers}

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Each scorer's rating of each picture."""
        prompts = [row.prompt for row in rows]
        return {f"rating.{scorer.name}": scorer.score(pixels, prompts) for scorer in self.scorers}

    def headline(self, keys: list[str]) -> list[str]:
        """Everything."""
        return keys

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """See `Measure.numbers`."""
        return {
            f"score/{scorer.name}": mean_interval(judged.values[f"rating.{scorer.name}"]) for scorer in self.scorers
        }

    def against(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """How often each scorer prefers the trained model's picture of the same prompt and noise; a tie is half a win."""
        result = {}
        for scorer in self.scorers:
            old, new = (judged.values[f"rating.{scorer.name}"] for judged in (before, after))
            result[f"win_rate/{scorer.name}"] = mean_interval((new > old).float() + 0.5 * (new == old).float())
        return result
