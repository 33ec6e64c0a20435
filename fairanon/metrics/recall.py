"""Identity-specific recall: does the picture show what the prompt asked for?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from fairanon.metrics.functional.intervals import wilson


class AttributeRecall(Metric):
    """Share of pictures whose judged class is exactly the asked one (class numbers, never substrings).

    A picture that the judge could not judge (NaN row) is a miss, not left out. The interval is Wilson's.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    total: Tensor
    missing: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "total", "missing"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, asked: Tensor) -> None:
        """Add pictures.

        Args:
            probabilities: float (N, K), a row of NaN where no face was found.
            asked: int64 (N,), the class each prompt named.
        """
        judged = ~probabilities.isnan().any(1)
        self.hits += (probabilities.nan_to_num(-1.0).argmax(1) == asked)[judged].sum()
        self.total += len(asked)
        self.missing += (~judged).sum()

    def compute(self) -> dict[str, float]:
        """value, low, high, n and missing."""
        n, hits = int(self.total), int(self.hits)
        if not n:
            raise ValueError("no picture was added.")
        low, high = wilson(hits, n)
        return {"value": hits / n, "low": low, "high": high, "n": float(n), "missing": float(self.missing)}
