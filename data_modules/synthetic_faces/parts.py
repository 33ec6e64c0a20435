"""People of the embedded world with a label for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import PARTS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.batches import SegmentationBatch


class _Parts(Dataset[Any]):
    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, where: Sequence[tuple[int, int]]) -> SegmentationBatch:
        """Draw a batch at once: the renderer is vectorised."""
        drawn = render(draw_scenes(self.seed, [row for row, _ in where], "balanced"), masks=True)
        assert drawn.masks is not None
        covered = drawn.masks[:, : len(PARTS)].long()
        labels = torch.cat([1 - covered.sum(1, keepdim=True), covered], 1).argmax(1)
        return SegmentationBatch([f"{row}.{number}" for row, number in where], drawn.image, labels)


def _whole(batch: Any) -> Any:
    return batch


class SyntheticParts(StepDataModule):
    """People drawn on the fly, with the renderer's own regions as labels.

    Args:
        batch_size: Images of one rank and step.
        count: Training images.
        val_count: Validation images.
        num_workers: Loader processes.
        seed: Of the order.
    """

    def __init__(
        self, batch_size: int = 32, count: int = 16384, val_count: int = 512, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.train_parts, self.val_parts = _Parts(count, 4500), _Parts(val_count, 4501)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless people, see `StepDataModule`."""
        return self.endless_loader(self.train_parts, _whole)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out people in their order."""
        return self.ordered_loader(self.val_parts, _whole)
