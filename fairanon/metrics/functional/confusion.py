"""What a judge gets wrong, taken out of what it counts (Rogan and Gladen 1978, for K classes).

A judge that says class j of a share C[i, j] of the images that show class i turns true shares r into said shares q = r C.
Shapes: P prompts, n images of a prompt, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate

WEAKEST = 0.3
"""Smallest singular value of a confusion that can be taken out: below it a small error of the judge becomes a large one."""
_PRIOR = 0.5
_DRAWS = 400


@dataclass(frozen=True)
class Confusion:
    """How often a judge says each class of images that show each class.

    Attributes:
        said: float64 (K, K), a row for each true class: how many images, or shares that are known exactly.
        exact: The rows are known exactly; otherwise they were counted, and their uncertainty is part of every interval.
    """

    said: Tensor
    exact: bool = False

    @cached_property
    def shares(self) -> Tensor:
        """float64 (K, K), rows sum to 1."""
        rows = self.said.double()
        return rows / rows.sum(1, keepdim=True)

    @cached_property
    def inverse(self) -> Tensor:
        """float64 (K, K): said shares @ inverse are true shares."""
        return torch.linalg.inv(self.shares)

    @property
    def weakest(self) -> float:
        """The smallest singular value; below `WEAKEST` nothing should be taken out."""
        return float(torch.linalg.svdvals(self.shares).min())

    def draws(self, count: int = _DRAWS, seed: int = 0) -> Tensor:
        """Confusions that the counted images leave possible: float64 (R, K, K), Dirichlet by rows; of an exact one itself."""
        if self.exact:
            return self.shares[None]
        generator = np.random.default_rng(seed)
        rows = [generator.dirichlet(row + _PRIOR, count) for row in self.said.double().numpy()]
        return torch.from_numpy(np.stack(rows, 1))


def corrected_shares(counts: Tensor, confusion: Confusion | None, seed: int = 0) -> list[Estimate]:
    """The true share of each class behind what a judge said of n images.

    Args:
        counts: float (K,), how many images it said each class of.
        confusion: The judge's; None: it makes no errors, and the intervals are Wilson's.
        seed: Of the draws of the confusion.

    Returns:
        K estimates. A value may lie outside of [0, 1] where the judge cannot be right about itself; the ends do not. The
        interval is the score's with the judge's own uncertainty beside it.

    Examples:
        >>> right = Confusion(torch.tensor([[95.0, 5.0], [10.0, 90.0]]), exact=True)
        >>> f"{corrected_shares(torch.tensor([30.0, 70.0]), right)[0].value:.3f}"
        '0.235'
    """
    number = float(counts.sum())
    if confusion is None:
        return [Estimate.share(int(hits), int(number)) for hits in counts.tolist()]
    share, z = counts.double() / number, 1.96
    softer = (counts.double() + z**2 / len(counts)) / (number + z**2)
    weights = confusion.inverse
    middle = softer @ weights
    spread = (softer @ weights.square() - middle.square()) / (number + z**2)
    drawn = torch.linalg.inv(confusion.draws(seed=seed))
    if len(drawn) > 1:
        spread = spread + (softer @ drawn).var(0)
    values, half = share @ weights, z * spread.clamp_min(0).sqrt()
    inside = values.clamp(0, 1)
    low, high = (middle - half).clamp(0, 1).minimum(inside), (middle + half).clamp(0, 1).maximum(inside)
    ends = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(value, below, above, int(number)) for value, below, above in ends]


def prediction_powered(said: Tensor, rows: Tensor, labels: Tensor) -> list[Estimate]:
    """Shares by a few people's labels, sharpened by what the judge says of all images (Angelopoulos et al. 2023, PPI++).

    Args:
        said: int64 (N,), the judge's class of each image.
        rows: int64 (m,), which of them were labelled: drawn at random.
        labels: int64 (m,), the class that people say.

    Returns:
        An estimate for each class up to the largest that is said or labelled; at least two labels.
    """
    classes, count = int(torch.cat([said, labels]).max()) + 1, len(labels)
    found = []
    for k in range(classes):
        theirs, ours, all_ours = (labels == k).double(), (said[rows] == k).double(), (said == k).double()
        together = float(((theirs - theirs.mean()) * (ours - ours.mean())).sum()) / (count - 1)
        spread = float(all_ours.var()) * (1 + count / len(said))
        weight = min(1.0, max(0.0, together / spread)) if spread else 0.0
        value = float(theirs.mean()) + weight * float(all_ours.mean() - ours.mean())
        left = theirs - weight * ours
        # a class that no label has yet may still be there: as much as one label of it would say
        variance = max(float(left.var()), 1 / count) / count + weight**2 * float(all_ours.var()) / len(said)
        half = 1.96 * math.sqrt(variance)
        found.append(Estimate(value, max(0.0, value - half), min(1.0, value + half), count))
    return found
