"""A model as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.methods.base import DiffusionMethod


class BaseModel(DiffusionMethod):
    """A model that is measured and never trained: the baseline of a table.

    Args:
        backbone: The model, frozen.
    """

    trains = False

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """There is none."""
        raise ValueError("model: BaseModel is measured as it is; name a method to train.")
