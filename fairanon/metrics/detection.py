"""Face and hand confidence as a metric."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.detection import detection_confidence
from fairanon.metrics.functional.estimates import Estimate


class DetectionConfidence(Metric):
    """`detection_confidence` for a loop of one's own."""

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
        """Add images; see `detection_confidence`."""
        self.scores.append(scores.float())
        self.expected.append(expected)

    def compute(self) -> dict[str, Estimate]:
        """See `detection_confidence`."""
        return detection_confidence(dim_zero_cat(self.scores), dim_zero_cat(self.expected))
