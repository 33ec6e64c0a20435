"""How cross-attention reads a prompt otherwise, in closed form (UCE, Gandikota et al. 2024, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def concept_edit(rows: Tensor, shifts: Tensor, keep: Tensor, preserve: float, keep_weight: float) -> Tensor:
    """The matrix M by which every key and value projection W becomes W M.

    W M is the W' with the least sum of |W' c - W (c + d)|^2 over the rows c and their shifts d, plus ``keep_weight`` times that of
    |W' p - W p|^2 over the rows p to keep, plus ``preserve`` times |W' - W|^2. It depends on no W, so one M serves all layers.

    Args:
        rows: float (N, D), embeddings of tokens that are edited.
        shifts: float (N, D), by which each should be read otherwise.
        keep: float (K, D), embeddings that should be read as before.
        preserve: How much everything else should be read as before; above 0.
        keep_weight: How much the rows to keep count.

    Returns:
        float64 (D, D); the identity where no shift is asked for.

    Examples:
        >>> one, nothing = torch.tensor([[1.0, 0.0]]), torch.empty(0, 2)
        >>> concept_edit(one, torch.tensor([[0.0, 2.0]]), nothing, 1.0, 1.0).tolist()  # halfway: the row counts as much as the rest
        [[1.0, 0.0], [1.0, 1.0]]
    """
    rows, shifts, keep = rows.double(), shifts.double(), keep.double()
    unit = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    gram = preserve * unit + rows.T @ rows + keep_weight * keep.T @ keep
    return unit + torch.linalg.solve(gram, rows.T @ shifts).T
