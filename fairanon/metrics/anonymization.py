"""Was a face anonymized, and does it still look like its group?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.anonymization import anonymization_accuracy
from fairanon.metrics.functional.estimates import Estimate
from fairanon.metrics.functional.recall import group_accuracy


class AnonymizationAccuracy(Metric):
    """`anonymization_accuracy` for a loop of one's own.

    Args:
        threshold: Cosine distance above which two images are different people. The default, 0.6, is a convention
            (cosine similarity 0.4); calibrate it for the recognizer with `threshold_at`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    distances: list[Tensor]

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("distances", [], dist_reduce_fx="cat")

    def update(self, distances: Tensor) -> None:
        """Add images: distances to their sources, float (N,), NaN without a face."""
        self.distances.append(distances)

    def compute(self) -> dict[str, Estimate]:
        """See `anonymization_accuracy`."""
        if not len(self.distances):
            raise ValueError("no image was added.")
        return anonymization_accuracy(dim_zero_cat(self.distances), self.threshold)


class GroupAccuracy(Metric):
    """`group_accuracy` for a loop of one's own.

    Args:
        groups: The groups, in the order of the judge's classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    probabilities: list[Tensor]
    asked: list[Tensor]

    def __init__(self, groups: Sequence[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("asked", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, asked: Tensor) -> None:
        """Add images; see `group_accuracy`."""
        self.probabilities.append(probabilities)
        self.asked.append(asked)

    def compute(self) -> dict[str, Estimate]:
        """See `group_accuracy`."""
        return group_accuracy(dim_zero_cat(self.probabilities), dim_zero_cat(self.asked), self.groups)
