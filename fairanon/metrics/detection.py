"""Face and hand confidence, with the detection rate that they are worth nothing without."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.intervals import Estimate, mean_interval, wilson


class DetectionConfidence(Metric):
    """How sure a detector is of what pictures should show.

    ``confidence`` is the mean over pictures of the scores of the best ``expected`` detections, a missing one counting
    as 0, so that a missed hand lowers it. ``confidence/detected`` is the mean over detections alone, as FairHuman's
    evaluation reports it (supplement, section 4): a hand too bad to be found raises it. ``detection_rate`` is the
    share of what was expected that was found.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    expected: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("expected", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, expected: Tensor) -> None:
        """Add pictures.

        Args:
            scores: float (N, M), scores of each picture's detections, best first, NaN behind the last one.
            expected: int64 (N,), how many the picture should show; pictures of which nothing is expected do not count.
        """
        if int(expected.max()) > scores.shape[1]:
            raise ValueError(f"{int(expected.max())} detections are expected, but only {scores.shape[1]} were kept.")
        self.scores.append(scores.float())
        self.expected.append(expected)

    def compute(self) -> dict[str, Estimate]:
        """The three numbers, each with value, low, high, n (pictures) and missing (pictures without a detection)."""
        expected = dim_zero_cat(self.expected)
        scores, expected = dim_zero_cat(self.scores)[expected > 0], expected[expected > 0]
        if not len(scores):
            raise ValueError("no picture was added of which anything is expected.")
        best = scores.masked_fill(torch.arange(scores.shape[1]) >= expected[:, None], float("nan"))
        found = ~best.isnan()
        missing = int((~found.any(1)).sum())
        rate = int(found.sum()) / int(expected.sum())
        low, high = wilson(int(found.sum()), int(expected.sum()))
        seen = best[found]
        return {
            "confidence": mean_interval(best.nan_to_num(0.0).sum(1) / expected, missing),
            "confidence/detected": mean_interval(seen, missing) if len(seen) else dict.fromkeys(
                ("value", "low", "high"), float("nan")) | {"n": 0.0, "missing": float(missing)},
            "detection_rate": {"value": rate, "low": low, "high": high, "n": float(len(scores)), "missing": 0.0},
        }  # fmt: skip
