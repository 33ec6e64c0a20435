"""torchmetrics classes of our formulas: for a loop of one's own, and what the measures themselves use."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.detection import detection_confidence
from fairanon.metrics.functional.discrepancy import fairness_discrepancy
from fairanon.metrics.functional.estimates import Estimates
from fairanon.metrics.functional.protection import anonymization_accuracy
from fairanon.metrics.functional.recall import group_accuracy
from fairanon.metrics.functional.retrieval import identity_retrieval


class RowsMetric(Metric):
    """A formula of all images that were added, on one rank or on several.

    Attributes:
        rows: What one adds, in the order of `update`'s arguments.

    Args:
        settings: See `torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    rows: ClassVar[tuple[str, ...]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._estimates: Estimates = {}
        for name in self.rows:
            self.add_state(name, [], dist_reduce_fx="cat")

    @abstractmethod
    def formula(self, *rows: Tensor) -> Estimates:
        """The numbers of all rows."""

    def update(self, *rows: Tensor) -> None:
        """Add images: a row each, in the order of ``rows``."""
        for name, part in zip(self.rows, rows, strict=True):
            getattr(self, name).append(part)

    def compute(self) -> dict[str, Tensor]:
        """Each number by its key, float32 (), and the ends of its 95 % interval as ``KEY/low`` and ``KEY/high``.

        NaN where a number or an interval cannot be said.
        """
        if not len(getattr(self, self.rows[0])):
            raise ValueError(f"{type(self).__name__}: no image was added.")
        self._estimates = self.formula(*(dim_zero_cat(getattr(self, name)).cpu() for name in self.rows))
        numbers = {}
        for key, estimate in self._estimates.items():
            ends = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
            for name, value in zip((key, f"{key}/low", f"{key}/high"), ends, strict=True):
                numbers[name] = torch.tensor(torch.nan if value is None else value, device=self.device)
        return numbers

    def estimates(self) -> Estimates:
        """The same with how many images each rests on, and how many could not be judged."""
        self.compute()
        return self._estimates

    def measured(self, *rows: Tensor) -> Estimates:
        """The numbers of all images, where every rank holds all of them: nothing is gathered."""
        self.distributed_available_fn = lambda: False
        self.update(*rows)
        return self.estimates()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """The numbers with their intervals' ends as points; arguments and result as `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class AnonymizationAccuracy(RowsMetric):
    """`anonymization_accuracy`; add cosine distances to the sources, float (N,), NaN without a face.

    Args:
        threshold: Cosine distance above which two images are different people. The default, 0.6, is a convention
            (cosine similarity 0.4); calibrate it for the recognizer with `threshold_at`. One, or float (N,) of all images.
        settings: See `torchmetrics.Metric`.

    Examples:
        >>> metric = AnonymizationAccuracy(0.5)
        >>> metric.update(torch.tensor([0.9, 0.2, 0.7, 0.8]))
        >>> {key: round(value.item(), 2) for key, value in metric.compute().items() if key.startswith("accuracy")}
        {'accuracy': 0.75, 'accuracy/low': 0.3, 'accuracy/high': 0.95}
    """

    higher_is_better = True
    rows = ("distances",)

    def __init__(self, threshold: float | Tensor = 0.6, **settings: Any) -> None:
        super().__init__(**settings)
        self.threshold = threshold

    def formula(self, *rows: Tensor) -> Estimates:
        """See `anonymization_accuracy`."""
        return dict(anonymization_accuracy(rows[0], self.threshold))


class GroupAccuracy(RowsMetric):
    """`group_accuracy`; add probabilities float (N, K) and the group that was asked for, int64 (N,).

    Args:
        groups: The groups, in the order of the judge's classes.
        settings: See `torchmetrics.Metric`.
    """

    higher_is_better = True
    rows = ("probabilities", "asked")

    def __init__(self, groups: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.groups = tuple(groups)

    def formula(self, *rows: Tensor) -> Estimates:
        """See `group_accuracy`."""
        probabilities, asked = rows
        return dict(group_accuracy(probabilities, asked, self.groups))


class DetectionConfidence(RowsMetric):
    """`detection_confidence`; add scores float (N, K) and how many were expected, int64 (N,)."""

    higher_is_better = True
    rows = ("scores", "expected")

    def formula(self, *rows: Tensor) -> Estimates:
        """See `detection_confidence`."""
        scores, expected = rows
        return dict(detection_confidence(scores.float(), expected))


class FairnessDiscrepancy(RowsMetric):
    """`fairness_discrepancy`; add probabilities float (N, K) and the number of each image's prompt, int64 (N,).

    Args:
        classes: Number of classes K.
        target: Ideal shares; None is uniform.
        repeats: Bootstrap repeats.
        seed: Of the bootstrap; equal for models that are compared.
        settings: See `torchmetrics.Metric`.

    Raises:
        ValueError: ``target`` is not K shares that sum to 1.
    """

    higher_is_better = False
    rows = ("probabilities", "prompts")

    def __init__(
        self,
        classes: int,
        target: tuple[float, ...] | None = None,
        repeats: int = 1000,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}.")
        if target is not None and (len(target) != classes or abs(sum(target) - 1) > 1e-6 or min(target) < 0):
            raise ValueError(f"target must be {classes} shares that sum to 1, got {target}.")
        self.classes, self.target, self.repeats, self.seed = classes, target, repeats, seed

    def update(self, *rows: Tensor) -> None:
        """Add images; see `fairness_discrepancy`."""
        probabilities = rows[0]
        if probabilities.dim() != 2 or probabilities.shape[1] != self.classes:
            raise ValueError(f"probabilities must be (N, {self.classes}), got {tuple(probabilities.shape)}.")
        super().update(*rows)

    def formula(self, *rows: Tensor) -> Estimates:
        """See `fairness_discrepancy`."""
        probabilities, prompts = rows
        return dict(fairness_discrepancy(probabilities, prompts, self.target, self.repeats, self.seed))


class IdentityRetrieval(RowsMetric):
    """`identity_retrieval`, arguments as there; add probes and gallery, float (N, D), and people, int64 (N,).

    Less is better: it is the attacker who finds somebody.
    """

    higher_is_better = False
    rows = ("probes", "gallery", "people")

    def __init__(
        self,
        protocol: Literal["source", "identity"] = "source",
        places: Sequence[int] = (1, 5),
        false_match_rates: Sequence[float] = (1e-3,),
        expected: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.protocol, self.places, self.rates = protocol, tuple(places), tuple(false_match_rates)
        self.expected = expected

    def formula(self, *rows: Tensor) -> Estimates:
        """See `identity_retrieval`."""
        probes, gallery, people = rows
        return identity_retrieval(probes, gallery, people, self.protocol, self.places, self.rates, self.expected)
