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
_DRAWS, _Z = 400, 1.96
_SINGULAR = 0.02


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

    @cached_property
    def inverses(self) -> Tensor:
        """float64 (R, K, K), of `draws` that can be inverted."""
        drawn = self.draws()
        return torch.linalg.inv(drawn[torch.linalg.svdvals(drawn).amin(1) > _SINGULAR])

    def draws(self, count: int = _DRAWS, seed: int = 0) -> Tensor:
        """Confusions that the counted images leave possible: float64 (R, K, K), Dirichlet by rows; of an exact one itself."""
        if self.exact:
            return self.shares[None]
        generator = np.random.default_rng(seed)
        rows = [generator.dirichlet(row + _PRIOR, count) for row in self.said.double().numpy()]
        return torch.from_numpy(np.stack(rows, 1))


def corrected_shares(counts: Tensor, confusion: Confusion | None) -> list[Estimate]:
    """The true share of each class behind what a judge said of n images.

    The share of class k is r = sum q_i A_ik of said shares q. Its interval holds every rho with (r - rho)^2 <= z^2 (v(rho) / n + u):
    v is the variance of A_ik over what the judge says where rho of the images show class k and the others are as estimated, u
    that of the confusion itself. For a judge without errors it is Wilson's.

    Args:
        counts: float (K,), how many images it said each class of.
        confusion: The judge's; None: it makes no errors.

    Returns:
        K estimates in [0, 1]: what an inverse takes out of it is brought back to its end.

    Examples:
        >>> right = Confusion(torch.tensor([[95.0, 5.0], [10.0, 90.0]]), exact=True)
        >>> f"{corrected_shares(torch.tensor([30.0, 70.0]), right)[0].value:.3f}"
        '0.235'
    """
    number = float(counts.sum())
    if confusion is None:
        return [Estimate.share(int(hits), int(number)) for hits in counts.tolist()]
    share, weights, classes = counts.double() / number, confusion.inverse, len(counts)
    values = share @ weights
    squares = confusion.shares @ weights.square()  # (true class, k): mean of A_ik^2 over what is said of it
    own = (share @ confusion.inverses).var(0).tolist() if len(confusion.inverses) > 1 else [0.0] * classes
    estimates = []
    for k, value in enumerate(values.tolist()):
        others = values.clamp_min(0)
        others = torch.where(torch.arange(classes) == k, 0.0, others)
        others = others / others.sum() if others.sum() > 0 else (torch.arange(classes) != k).double() / (classes - 1)
        within, without = float(squares[k, k]), float((others * squares[:, k]).sum())
        z = _Z**2 / number
        half, product = value + z * (within - without) / 2, value**2 - z * without - _Z**2 * own[k]
        root = math.sqrt(max(0.0, half**2 - (1 + z) * product))
        low, high = (half - root) / (1 + z), (half + root) / (1 + z)
        inside = min(1.0, max(0.0, value))
        estimates.append(Estimate(inside, min(inside, max(0.0, low)), max(inside, min(1.0, high)), int(number)))
    return estimates


def prediction_powered(total: Tensor, predictions: Tensor, labels: Tensor) -> list[Estimate]:
    """Shares by a few people's labels, sharpened by what the judge says of the other images (Angelopoulos et al. 2023, PPI++).

    Args:
        total: float64 (K,), of how many images the judge says each class, the labelled ones too.
        predictions: int64 (m,), what it says of the labelled ones, which were drawn at random.
        labels: int64 (m,), the class that people say; at least two.

    Returns:
        K estimates.
    """
    count, images, estimates = len(labels), float(total.sum()), []
    unlabelled = images - count
    for k in range(len(total)):
        theirs, ours = (labels == k).double(), (predictions == k).double()
        together = float(((theirs - theirs.mean()) * (ours - ours.mean())).sum()) / (count - 1)
        spread = _variance(float(total[k]), images)
        weight = min(1.0, max(0.0, together / spread)) * unlabelled / images if spread and unlabelled > 1 else 0.0
        left, others = theirs - weight * ours, float(total[k]) - float(ours.sum())
        value = float(left.mean()) + (weight * others / unlabelled if weight else 0.0)
        # a class of which there is hardly a label may still be there: as much as two labels of it would say
        variance = max(float(left.var()), 2 / count) / count
        variance += weight**2 * _variance(others, unlabelled) / unlabelled if weight else 0.0
        half = _Z * math.sqrt(variance)
        estimates.append(Estimate(value, max(0.0, value - half), min(1.0, value + half), count))
    return estimates


def _variance(hits: float, images: float) -> float:
    """Of hits and misses, unbiased."""
    return hits * (images - hits) / (images * (images - 1))
