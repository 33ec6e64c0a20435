"""Fairness discrepancy as a metric."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.discrepancy import fairness_discrepancy
from fairanon.metrics.functional.estimates import Estimate


class FairnessDiscrepancy(Metric):
    """`fairness_discrepancy` for a loop of one's own.

    Args:
        classes: Number of classes K.
        target: Ideal shares; None is uniform.
        repeats: Bootstrap repeats.
        seed: Of the bootstrap; equal for models that are compared.

    Raises:
        ValueError: ``target`` is not K shares that sum to 1.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    probabilities: list[Tensor]
    prompts: list[Tensor]

    def __init__(
        self, classes: int, target: tuple[float, ...] | None = None, repeats: int = 1000, seed: int = 0
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}.")
        if target is not None and (len(target) != classes or abs(sum(target) - 1) > 1e-6 or min(target) < 0):
            raise ValueError(f"target must be {classes} shares that sum to 1, got {target}.")
        self.classes, self.target, self.repeats, self.seed = classes, target, repeats, seed
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("prompts", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, prompts: Tensor) -> None:
        """Add images; see `fairness_discrepancy`."""
        if probabilities.dim() != 2 or probabilities.shape[1] != self.classes:
            raise ValueError(f"probabilities must be (N, {self.classes}), got {tuple(probabilities.shape)}.")
        self.probabilities.append(probabilities)
        self.prompts.append(prompts)

    def compute(self) -> dict[str, Estimate]:
        """See `fairness_discrepancy`."""
        rows, prompts = dim_zero_cat(self.probabilities).cpu(), dim_zero_cat(self.prompts).cpu()
        return fairness_discrepancy(rows, prompts, self.target, self.repeats, self.seed)
