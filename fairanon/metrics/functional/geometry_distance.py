"""How far apart the geometry of two faces is."""

from __future__ import annotations

import torch
from torch import Tensor


def geometry_distance(name: str, values: Tensor, others: Tensor) -> Tensor:
    """Distance of one quantity, row by row.

    Args:
        name: ``landmarks``: mean distance of the 68 points, as a share of the distance between the outer corners of the
            eyes in ``others``. Everything else: the Euclidean distance, in the quantity's own unit (pose: degrees).
        values: float (N, ...).
        others: Likewise; the originals.

    Returns:
        float (N,), NaN where either face was not found.

    Examples:
        >>> geometry_distance("pose", torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).item()
        5.0
    """
    if name != "landmarks":
        return (values - others).flatten(1).norm(dim=1)
    eyes = (others[:, 45] - others[:, 36]).norm(dim=1)
    return (values - others).norm(dim=2).mean(1) / torch.where(eyes > 0, eyes, torch.nan)
