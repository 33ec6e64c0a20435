"""Records of pictures of people with masks of faces and hands, whatever data set they come from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data_modules.base import StepDataModule
from fairanon.batches import REGIONS, RegionBatch
from fairanon.imaging import CorruptImageError, dilate, joint_crop, joint_flip, read_image
from fairanon.seeding import keyed_generator, keyed_uniform

_log = logging.getLogger(__name__)

Polygon = list[tuple[float, float]]


@dataclass(frozen=True)
class Mask:
    """Where a region is: polygons in pixels, or the pixels of a picture file that have certain values.

    Attributes:
        polygons: Corners of each part.
        path: A picture of the image's size; None if there is none.
        values: Its values that belong to the region; empty for "anything but black".
        scaled: The files may be of another size than the image: then they are resized.
        minus: Pictures whose pixels, anything but black, do not belong to the region.
    """

    polygons: list[Polygon] = field(default_factory=list)
    path: Path | None = None
    values: tuple[int, ...] = ()
    scaled: bool = False
    minus: tuple[Path, ...] = ()

    def read(self, name: str, width: int, height: int) -> Tensor:
        """The mask: uint8 (1, height, width), 0 or 255.

        Args:
            name: The picture that it belongs to, for the error message.
            width: Of that picture.
            height: Likewise.

        Raises:
            CorruptImageError: The file is missing, unreadable or of another size.
        """
        canvas = Image.new("L", (width, height))
        for polygon in self.polygons:
            ImageDraw.Draw(canvas).polygon(polygon, fill=255)
        pixels = np.asarray(canvas)
        if self.path is not None:
            found = self._file(self.path, name, width, height)
            here = np.isin(found, self.values) if self.values else found > 0
            pixels = np.maximum(pixels, here.astype(np.uint8) * 255)
        for path in self.minus:
            pixels = np.where(self._file(path, name, width, height) > 0, np.uint8(0), pixels)
        return torch.from_numpy(pixels.copy())[None]

    def _file(self, path: Path, name: str, width: int, height: int) -> np.ndarray[Any, Any]:
        try:
            with Image.open(path) as file:
                picture = file if self.values and path == self.path else file.convert("L")
                found = np.asarray(
                    picture.resize((width, height), Image.Resampling.NEAREST) if self.scaled else picture
                )
        except OSError as error:
            raise CorruptImageError(f"{path} cannot be read ({error})") from None
        if found.shape != (height, width):
            raise CorruptImageError(
                f"{path} is {found.shape[1]}x{found.shape[0]}, its picture {name} is {width}x{height}"
            )
        return found


@dataclass(frozen=True)
class Record:
    """A picture with what is known of it.

    Attributes:
        image: Its file.
        caption: Its caption.
        masks: One per region, in the order of `REGIONS`; for inpainting the parts of the one mask, or none.
        control: A condition picture (pose, depth); None without.
    """

    image: Path
    caption: str
    masks: tuple[Mask, ...] = ()
    control: Path | None = None


class RegionSource(Protocol):
    """A data set on disk."""

    def records(self) -> list[Record]:
        """Its pictures."""
        ...


def usable(records: Sequence[Record], least: int) -> tuple[list[Record], Counter[str]]:
    """Leave out what training should not see, as the paper does (supplement, section 2.1).

    Args:
        records: All pictures.
        least: Smallest side that a picture may have.

    Returns:
        The rest, in the same order, and how many were left out for which reason.

    Raises:
        CorruptImageError: More than 1 % of the files are missing or unreadable.
    """

    def reason(record: Record) -> str:
        try:
            with Image.open(record.image) as file:
                width, height = file.size
                if file.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it lies on its side; masks do not
                    width, height = height, width
            if min(width, height) < least:
                return f"smaller than {least} pixels"
            masks = [mask.read(str(record.image), width, height) for mask in record.masks]
            if masks and not any(mask.any() for mask in masks):
                return "with an empty mask"
            if record.control is not None and not record.control.exists():
                raise CorruptImageError(f"{record.control} is missing")
        except OSError as error:
            _log.warning("left out %s: %s", record.image, error)
            return "unreadable"
        return ""

    with ThreadPoolExecutor(8) as pool:
        found = list(tqdm(pool.map(reason, records), total=len(records), desc="checking pictures", unit="img"))
    counts = Counter(name for name in found if name)
    if counts["unreadable"] > max(1, len(records) // 100):
        raise CorruptImageError(
            f"data: {counts['unreadable']} of {len(records)} pictures or their masks are missing, unreadable or of "
            "another size, more than 1 %; the log names them."
        )
    return [record for record, name in zip(records, found, strict=True) if not name], counts


class RegionPictures(Dataset[RegionBatch]):
    """Pictures with masks and condition pictures, cropped and mirrored together; ``data[rows]`` is one sample.

    Args:
        records: The pictures.
        size: Side: shorter side resized, centre cropped.
        flip: Mirror half of the pictures, each with everything that belongs to it.
        grow: Pixels, after resizing, by which masks are dilated.
        seed: Names the flips.
    """

    def __init__(self, records: list[Record], size: int, flip: bool = False, grow: int = 0, seed: int = 0) -> None:
        self.records, self.size, self.flip, self.grow, self.seed = records, size, flip, grow, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, where: tuple[int, int]) -> RegionBatch:
        row, number = where
        record, key = self.records[row], f"{row}.{number}"
        image = read_image(record.image, str(record.image))
        height, width = image.shape[-2:]
        pictures = [image, *(mask.read(str(record.image), width, height) for mask in record.masks)]
        if record.control is not None:
            pictures.append(read_image(record.control, str(record.control)))
        pictures = joint_crop(pictures, self.size)
        if self.flip:
            pictures = joint_flip(pictures, bool(keyed_uniform([(self.seed, "flip", key)]) < 0.5))
        image, *masks = pictures[: 1 + len(REGIONS)]
        return RegionBatch(
            [key],
            image[None],
            [record.caption],
            dilate(torch.cat(masks)[None] > 127, self.grow),
            pictures[-1][None] if record.control is not None else None,
        )


def join(samples: Iterable[RegionBatch]) -> RegionBatch:
    """Batches to one."""
    samples = list(samples)
    controls = [sample.controls for sample in samples if sample.controls is not None]
    return RegionBatch(
        [key for sample in samples for key in sample.keys],
        torch.cat([sample.images for sample in samples]),
        [caption for sample in samples for caption in sample.captions],
        torch.cat([sample.masks for sample in samples]),
        torch.cat(controls) if len(controls) == len(samples) else None,
    )


class HumanRegions(StepDataModule):
    """Pictures of people from one or more data sets.

    Args:
        sources: The data sets.
        batch_size: Samples of one rank and step.
        size: Picture side in pixels.
        least: Pictures with a smaller side are left out and counted, as those with empty masks.
        val_count: Pictures held out for validation, drawn by ``seed``.
        flip: Mirror half of the pictures, each with its masks.
        grow: Pixels, at ``size``, by which masks are dilated; 0 for masks that are dilated already.
        num_workers: Loader processes.
        seed: Names the order, the flips and the held-out pictures.
    """

    def __init__(
        self,
        sources: list[RegionSource],
        batch_size: int = 1,
        size: int = 1024,
        least: int = 1024,
        val_count: int = 256,
        flip: bool = True,
        grow: int = 0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.sources, self.size, self.least, self.val_count = sources, size, least, val_count
        self.flip, self.grow = flip, grow
        self._records: list[Record] | None = None

    def setup(self, stage: str) -> None:
        """Read the sources and leave out what is not usable; once."""
        if self._records is None:
            everything = [record for source in self.sources for record in source.records()]
            self._records, self.left_out = usable(everything, self.least)
            reasons = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
            _log.info("%d pictures of %d; left out: %s", len(self._records), len(everything), reasons or "none")
            if len(self._records) <= self.val_count:
                raise ValueError(
                    f"data: {len(self._records)} usable pictures of {len(everything)} (left out: {reasons or 'none'}), "
                    f"not more than data.val_count ({self.val_count}); give more, or lower data.least or data.val_count."
                )
        order = torch.randperm(len(self._records), generator=keyed_generator(self.seed, "held out")).tolist()
        held, rest = sorted(order[: self.val_count]), sorted(order[self.val_count :])
        self.val_pictures = RegionPictures([self._records[k] for k in held], self.size, False, self.grow, self.seed)
        self.train_pictures = RegionPictures(
            [self._records[k] for k in rest], self.size, self.flip, self.grow, self.seed
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pictures, see `StepDataModule`."""
        return self.endless_loader(self.train_pictures, join)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out pictures in their order."""
        return self.ordered_loader(self.val_pictures, join)
