"""Records of images of people with masks of faces and hands, whatever data set they come from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.folders import given_as
from data_modules.records import CHECKED_AT_ONCE, Record, RegionSource, Rows, Turns, captions_of, fault, usable
from fairanon.batches import REGIONS, RegionBatch
from fairanon.imaging import crop_corner, dilate, joint_crop, joint_flip, read_image
from fairanon.seeding import keyed_generator, keyed_uniform

_log = logging.getLogger(__name__)


class RegionImages(Dataset[RegionBatch]):
    """Images with masks and condition images, cropped and mirrored together; ``data[row, pass]`` is one sample.

    Args:
        records: The images.
        size: Side: shorter side resized, centre cropped.
        flip: Mirror half of the images, each with everything that belongs to it.
        grow: Pixels, after resizing, by which masks are dilated.
        seed: Of the flips.
        reason: See `Turns`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        size: int,
        flip: bool = False,
        grow: int = 0,
        seed: int = 0,
        reason: Callable[[Record], str] | None = None,
    ) -> None:
        self.records, self.size, self.flip, self.grow, self.seed = records, size, flip, grow, seed
        self.turns = Turns(records, reason, seed)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, where: tuple[int, int]) -> RegionBatch:
        row, number = where
        key = f"{row}.{number}"
        return self.turns.read(row, key, lambda record: self._sample(record, key))

    def _sample(self, record: Record, key: str) -> RegionBatch:
        image = read_image(record.image, str(record.image))
        height, width = image.shape[-2:]
        images = [image, *(mask.read(str(record.image), width, height) for mask in record.masks)]
        if record.control is not None:
            images.append(read_image(record.control, str(record.control)))
        images = joint_crop(images, self.size)
        if self.flip:
            images = joint_flip(images, bool(keyed_uniform([(self.seed, "flip", key)]) < 0.5))
        image, *masks = images[: 1 + len(REGIONS)]
        return RegionBatch(
            [key],
            image[None],
            [record.caption],
            dilate(torch.cat(masks)[None] > 127, self.grow),
            images[-1][None] if record.control is not None else None,
            torch.tensor([[height, width, *crop_corner(height, width, self.size)]]),
        )


def join(samples: Iterable[RegionBatch]) -> RegionBatch:
    """Batches to one."""
    samples = list(samples)
    controls = [sample.controls for sample in samples if sample.controls is not None]
    frames = [sample.frames for sample in samples if sample.frames is not None]
    return RegionBatch(
        [key for sample in samples for key in sample.keys],
        torch.cat([sample.images for sample in samples]),
        [caption for sample in samples for caption in sample.captions],
        torch.cat([sample.masks for sample in samples]),
        torch.cat(controls) if len(controls) == len(samples) else None,
        torch.cat(frames) if len(frames) == len(samples) else None,
    )


class HumanRegions(StepDataModule):
    """Images of people from one or more data sets.

    Args:
        sources: The data sets.
        batch_size: Samples of one rank and step.
        size: Image side in pixels.
        minimum: Images with a smaller side are left out and counted, as those with empty masks.
        val_count: Images held out for validation, drawn by ``seed``.
        flip: Mirror half of the images, each with its masks.
        grow: Pixels, at ``size``, by which masks are dilated; 0 for masks that are dilated already.
        num_workers: Loader processes.
        seed: Of the order, the flips and the held-out images.
    """

    def __init__(
        self,
        sources: list[RegionSource],
        batch_size: int = 1,
        size: int = 1024,
        minimum: int = 1024,
        val_count: int = 256,
        flip: bool = True,
        grow: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.sources, self.size, self.minimum, self.val_count = sources, size, minimum, val_count
        self.flip, self.grow = flip, grow
        self._records: Rows | None = None

    def setup(self, stage: str) -> None:
        """Read the sources and leave out what is not usable; once."""
        if self._records is None:
            with given_as("data.sources"):
                everything = Rows([source.records() for source in self.sources])
            self._records, self.left_out = usable(everything, self.minimum)
            reasons = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
            _log.info("%d images of %d; left out: %s", len(self._records), len(everything), reasons or "none")
            if len(self._records) <= self.val_count:
                raise ValueError(
                    f"data: {len(self._records)} usable images of {len(everything)} (left out: {reasons or 'none'}), "
                    f"not more than data.val_count ({self.val_count}); give more, or lower data.minimum or data.val_count."
                )
        order = torch.randperm(len(self._records), generator=keyed_generator(self.seed, "held out"))
        held, rest = (self._records.of(self._records.rows[rows.sort().values])
                      for rows in (order[: self.val_count], order[self.val_count :]))  # fmt: skip
        unseen = partial(fault, minimum=self.minimum) if len(self._records) > CHECKED_AT_ONCE else None
        self.val_images = RegionImages(held, self.size, False, self.grow, self.seed, unseen)
        self.train_images = RegionImages(rest, self.size, self.flip, self.grow, self.seed, unseen)

    def captions(self) -> list[str]:
        """Of the training images, all or many of them, once it is set up."""
        return captions_of(self.train_images.records)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless images, see `StepDataModule`."""
        return self.endless_loader(self.train_images, join)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out images in their order."""
        return self.ordered_loader(self.val_images, join)
