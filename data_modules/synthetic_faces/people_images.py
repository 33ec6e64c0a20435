"""People of the embedded world with masks of their faces and hands, and with pose or depth images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.synthetic_faces.captions import captions
from data_modules.synthetic_faces.conditions import depth_images, pose_images
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS
from data_modules.synthetic_faces.world import Scenes, draw_scenes
from fairanon.batches import PromptRow, RegionBatch
from fairanon.imaging import dilate

Condition = Literal["none", "pose", "depth"]
_FACE = [MASKS.index(name) for name in ("face", "eyes", "brows", "nose", "lips")]
_HAND = [MASKS.index(name) for name in ("left_hand", "right_hand")]


def condition_images(scenes: Scenes, masks: Tensor, condition: Condition) -> Tensor | None:
    """Pose or depth images, uint8 (B, 3, 64, 64); None for "none"."""
    if condition == "none":
        return None
    return pose_images(scenes) if condition == "pose" else depth_images(scenes, masks)


class PeopleImages(Dataset[Any]):
    """Balanced people; ``data[rows]`` (a list of (row, pass)) is a `RegionBatch`.

    Args:
        count: Number of images.
        condition: Which condition images come along.
        grow: Pixels by which masks are dilated.
        seed: Of the people.
    """

    def __init__(self, count: int, condition: Condition = "none", grow: int = 1, seed: int = 0) -> None:
        self.count, self.condition, self.grow, self.seed = count, condition, grow, seed

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, where: Sequence[tuple[int, int]]) -> RegionBatch:
        """Draw a batch at once: the renderer is vectorised."""
        scenes = draw_scenes(self.seed, [row for row, _ in where], "balanced")
        drawn = render(scenes, masks=True)
        assert drawn.masks is not None
        masks = torch.stack([drawn.masks[:, part].bool().any(1) for part in (_FACE, _HAND)], 1)
        return RegionBatch(
            [f"{row}.{number}" for row, number in where],
            drawn.image,
            captions(scenes),
            dilate(masks, self.grow),
            condition_images(scenes, drawn.masks, self.condition),
        )


def _whole(batch: Any) -> Any:
    """`PeopleImages` draws whole batches: there is nothing to collate."""
    return batch


class SyntheticPeople(StepDataModule):
    """People of the embedded world, drawn on the fly.

    Args:
        batch_size: Samples of one rank and step.
        count: Training images.
        val_count: Validation images.
        condition: ``pose`` or ``depth`` images for a control network.
        grow: Pixels by which masks are dilated; the paper's 16 of 1,024 are one here.
        num_workers: Loader processes.
        seed: Of the order.
    """

    def __init__(
        self,
        batch_size: int = 16,
        count: int = 8192,
        val_count: int = 512,
        condition: Condition = "none",
        grow: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.train_people = PeopleImages(count, condition, grow, seed=4100)
        self.val_people = PeopleImages(val_count, condition, grow, seed=4101)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless people, see `StepDataModule`."""
        return self.endless_loader(self.train_people, _whole)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out people in their order."""
        return self.ordered_loader(self.val_people, _whole)


class PeoplePrompts:
    """Prompts of unseen people, with their condition images, for evaluation.

    Args:
        count: Number of prompts.
        condition: ``pose`` or ``depth``.
        seed: Of the people.
    """

    def __init__(self, count: int, condition: Condition = "none", seed: int = 4102) -> None:
        self.count, self.condition, self.seed = count, condition, seed

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`; says how many hands are shown."""
        scenes = draw_scenes(self.seed, range(self.count), "balanced")
        # The caption must say what the image shows, or a missing hand is not the model's fault.
        named = scenes.named.clone()
        named[:, 5] = scenes.hands
        scenes = scenes.replace(named=named)
        drawn = render(scenes, masks=True)
        assert drawn.masks is not None
        images = condition_images(scenes, drawn.masks, self.condition)
        return [
            PromptRow(text, "people", {"face": "1", "hand": str(2 * int(scenes.hands[k]))},
                      None if images is None else images[k])
            for k, text in enumerate(captions(scenes))
        ]  # fmt: skip

    def images(self) -> Iterator[Tensor]:
        """The people themselves: uint8 (count, 3, 64, 64); the reference of Fréchet distances."""
        parts = [range(first, min(first + 64, self.count)) for first in range(0, self.count, 64)]
        for part in parts:
            yield render(draw_scenes(self.seed, part, "balanced")).image
