"""Was a face anonymized, and does it still look like its group?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.intervals import Estimate, mean_interval, wilson


class AnonymizationAccuracy(Metric):
    """Share of pictures farther from their source than a verification threshold, and the distances themselves.

    A picture in which no face was found (NaN) is never called anonymized: nobody can say that it is.

    Args:
        threshold: Cosine distance above which two pictures are different people. The default, 0.6, is a convention
            (cosine similarity 0.4); calibrate it for the recognizer with `threshold_at`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    distances: list[Tensor]
    far: list[Tensor]

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("distances", [], dist_reduce_fx="cat")
        self.add_state("far", [], dist_reduce_fx="cat")

    def update(self, distances: Tensor, thresholds: Tensor | None = None) -> None:
        """Add pictures.

        Args:
            distances: To their sources, float (N,), NaN without a face.
            thresholds: Of each picture's group, float (N,); None is the one of the constructor.
        """
        self.distances.append(distances)
        self.far.append(distances > (self.threshold if thresholds is None else thresholds))

    def compute(self) -> dict[str, Estimate]:
        """``accuracy`` with Wilson's interval, ``mean`` with its interval, ``min`` and ``max``."""
        values = dim_zero_cat(self.distances) if len(self.distances) else torch.empty(0)
        found = values[~values.isnan()]
        n, missing = len(values), float(len(values) - len(found))
        if not n:
            raise ValueError("no picture was added.")
        hits = int(dim_zero_cat(self.far).sum())
        low, high = wilson(hits, n)
        result = {"accuracy": {"value": hits / n, "low": low, "high": high, "n": float(n), "missing": missing}}
        if len(found):
            result["mean"] = mean_interval(found, int(missing))
            for name, value in (("min", float(found.min())), ("max", float(found.max()))):
                result[name] = {"value": value, "low": value, "high": value, "n": float(n), "missing": missing}
        return result


class GroupAccuracy(Metric):
    """Share of each group's pictures that are judged as the group that was asked for, with Wilson's intervals.

    A picture that the judge could not judge is wrong, not left out.

    Args:
        groups: The groups, in the order of the judge's classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    total: Tensor
    missing: Tensor

    def __init__(self, groups: Sequence[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        for name in ("hits", "total", "missing"):
            self.add_state(name, torch.zeros(len(self.groups), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, asked: Tensor) -> None:
        """Add pictures.

        Args:
            probabilities: float (N, K), a row of NaN where no face was found.
            asked: int64 (N,), the group that each prompt named.
        """
        right = judged_right(probabilities, asked)
        self.hits += torch.bincount(asked[right], minlength=len(self.groups))
        self.total += torch.bincount(asked, minlength=len(self.groups))
        self.missing += torch.bincount(asked[probabilities.isnan().any(1)], minlength=len(self.groups))

    def compute(self) -> dict[str, Estimate]:
        """An estimate for each group that was asked for, and ``overall``."""
        result = {}
        rows = zip(self.groups, self.hits.tolist(), self.total.tolist(), self.missing.tolist(), strict=True)
        everything = ("overall", int(self.hits.sum()), int(self.total.sum()), int(self.missing.sum()))
        for name, hits, total, missing in [*rows, everything]:
            if total:
                low, high = wilson(hits, total)
                result[name] = {
                    "value": hits / total, "low": low, "high": high, "n": float(total), "missing": float(missing)
                }  # fmt: skip
        return result


def judged_right(probabilities: Tensor, asked: Tensor) -> Tensor:
    """Whether each picture is judged as it was asked to be: bool (N,), False where no face was found."""
    return (probabilities.nan_to_num(-1.0).argmax(1) == asked) & ~probabilities.isnan().any(1)
