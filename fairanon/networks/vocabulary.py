"""A text encoder's vocabulary with new tokens that train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Vocabulary(nn.Module):
    """An embedding of tokens that stays, and one of new tokens that trains.

    Args:
        known: Stays.
        count: New tokens; they begin at 0.
    """

    def __init__(self, known: nn.Embedding, count: int) -> None:
        super().__init__()
        self.known = known
        self.new = nn.Parameter(torch.zeros(count, known.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids (...); the first new id is the one behind the known ones."""
        first = self.known.num_embeddings
        old = self.known(ids.clamp(max=first - 1))
        new = self.new[(ids - first).clamp(min=0)].to(old.dtype)
        return torch.where((ids < first)[..., None], old, new)
