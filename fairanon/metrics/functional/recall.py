"""Does an image show what its prompt asked for?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate


def judged_right(probabilities: Tensor, asked: Tensor) -> Tensor:
    """Whether each image is judged as it was asked to be: class numbers, never substrings.

    Args:
        probabilities: float (N, K), a row of NaN where no face was found.
        asked: int64 (N,), the class that each prompt named.

    Returns:
        bool (N,), False where no face was found: what cannot be judged is a miss, not left out.
    """
    return (probabilities.nan_to_num(-1.0).argmax(1) == asked) & ~probabilities.isnan().any(1)


def attribute_recall(probabilities: Tensor, asked: Tensor, people: Tensor | None = None) -> Estimate:
    """Share of images that are judged as asked, see `judged_right`, with Wilson's interval.

    Args:
        probabilities: See `judged_right`, as ``asked``.
        asked: Likewise.
        people: int64 (N,), who is shown, where several images are of one person; None is somebody else in each.

    Examples:
        >>> rows = torch.tensor([[0.9, 0.1], [0.2, 0.8], [torch.nan, torch.nan], [0.6, 0.4]])
        >>> found = attribute_recall(rows, torch.tensor([0, 1, 0, 1]))
        >>> found.value, found.n, found.missing
        (0.5, 4, 1)
    """
    if not len(asked):
        raise ValueError("no image was added.")
    missing, right = int(probabilities.isnan().any(1).sum()), judged_right(probabilities, asked)
    if people is not None:
        return Estimate.share_of(right, people, missing)
    return Estimate.share(int(right.sum()), len(asked), missing)


def group_accuracy(
    probabilities: Tensor, asked: Tensor, groups: Sequence[str], people: Tensor | None = None
) -> dict[str, Estimate]:
    """`attribute_recall` for each group that was asked for, and ``overall``.

    Args:
        probabilities: float (N, K), a row of NaN where no face was found.
        asked: int64 (N,), the group that each prompt named.
        groups: The K groups.
        people: See `attribute_recall`.

    Examples:
        >>> rows = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        >>> {name: found.value for name, found in group_accuracy(rows, torch.tensor([0, 0, 1]), ("a", "b")).items()}
        {'a': 0.5, 'b': 1.0, 'overall': 0.6666666666666666}
    """
    chosen = {name: asked == k for k, name in enumerate(groups)} | {"overall": torch.ones_like(asked, dtype=torch.bool)}
    return {
        name: attribute_recall(probabilities[rows], asked[rows], None if people is None else people[rows])
        for name, rows in chosen.items()
        if rows.any()
    }
