"""What data sets on disk hold: images with masks, whatever the data set, and which of them training may see."""

from __future__ import annotations

import bisect
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, overload

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data_modules import folders
from data_modules.folders import file_stamp
from fairanon.files import write_text
from fairanon.imaging import CorruptImageError, image_size, read_labels, read_mask, resize_masks
from fairanon.places import exists
from fairanon.progress import progress_bar
from fairanon.seeding import keyed_generator, keyed_randint

_log = logging.getLogger(__name__)
T = TypeVar("T")

Polygon = list[tuple[float, float]]


@dataclass(frozen=True)
class Mask:
    """Where a region is: polygons in pixels, or the pixels of an image file that have certain values.

    Attributes:
        polygons: Corners of each part.
        path: An image of the image's size, see `read_mask`; None if there is none.
        values: Of a parsing map, its values that belong to the region; empty for a mask.
        scaled: The files may be of another size than the image: then they are resized.
        minus: Images whose pixels, anything but black, do not belong to the region.
    """

    polygons: list[Polygon] = field(default_factory=list)
    path: Path | None = None
    values: tuple[int, ...] = ()
    scaled: bool = False
    minus: tuple[Path, ...] = ()

    def read(self, name: str, width: int, height: int) -> Tensor:
        """The mask: uint8 (1, height, width), 0 or 255.

        Args:
            name: The image that it belongs to, for the error message.
            width: Of that image.
            height: Likewise.

        Raises:
            CorruptImageError: The file is missing, unreadable or of another size.
        """
        canvas = Image.new("L", (width, height))
        for polygon in self.polygons:
            ImageDraw.Draw(canvas).polygon(polygon, fill=255)
        mask = torch.from_numpy(np.asarray(canvas) > 0)
        if self.path is not None:
            if self.values:
                here = torch.isin(read_labels(self.path, str(self.path)), torch.tensor(self.values))
            else:
                here = read_mask(self.path, str(self.path))
            mask |= self._fitted(here, self.path, name, width, height)
        for path in self.minus:
            mask &= ~self._fitted(read_mask(path, str(path)), path, name, width, height)
        return mask[None].to(torch.uint8) * 255

    def _fitted(self, mask: Tensor, path: Path, name: str, width: int, height: int) -> Tensor:
        if self.scaled:
            mask = resize_masks(mask[None, None], (height, width))[0, 0]
        if mask.shape != (height, width):
            raise CorruptImageError(f"{path} is {mask.shape[1]}x{mask.shape[0]}, its image {name} is {width}x{height}")
        return mask


@dataclass(frozen=True)
class Record:
    """An image with what is known of it.

    Attributes:
        image: Its file.
        caption: Its caption.
        masks: One per region, in the order of `REGIONS`; for inpainting the parts of the one mask, or none.
        control: A condition image (pose, depth); None without.
    """

    image: Path
    caption: str
    masks: tuple[Mask, ...] = ()
    control: Path | None = None


class RegionSource(Protocol):
    """A data set on disk."""

    def records(self) -> Sequence[Record]:
        """Its images; for millions a sequence that reads a record when it is asked for."""
        ...


class Rows(Sequence[Record]):
    """Some rows of several data sets, without holding their records.

    Args:
        parts: The data sets' records.
        rows: int64, which of all of them in a row; None is all.
    """

    def __init__(self, parts: Sequence[Sequence[Record]], rows: Tensor | None = None) -> None:
        self.parts = list(parts)
        self.ends = list(itertools.accumulate(len(part) for part in self.parts))
        self.rows = torch.arange(self.ends[-1] if self.ends else 0) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> Rows: ...
    def __getitem__(self, row: int | slice) -> Record | Rows:
        if isinstance(row, slice):
            return self.of(self.rows[row])
        place = int(self.rows[row])
        part = bisect.bisect_right(self.ends, place)
        return self.parts[part][place - (self.ends[part - 1] if part else 0)]

    def of(self, rows: Tensor) -> Rows:
        """The same data sets, other rows."""
        return Rows(self.parts, rows)


def fault(record: Record, minimum: int) -> str:
    """Why training should not see an image, as the paper's filters (FairHuman, supplement, section 2.1); "" for no reason.

    Args:
        record: The image.
        minimum: Smallest side that an image may have.
    """
    try:
        width, height = image_size(record.image, str(record.image))
        if min(width, height) < minimum:
            return f"smaller than {minimum} pixels"
        masks = [mask.read(str(record.image), width, height) for mask in record.masks]
        if masks and not any(mask.any() for mask in masks):
            return "with an empty mask"
        if record.control is not None and not exists(record.control):
            raise CorruptImageError(f"{record.control} is missing")
    except OSError as error:
        _log.warning("left out %s: %s", record.image, error)
        return "unreadable"
    return ""


def captions_of(records: Sequence[Record], most: int = 10_000) -> list[str]:
    """Captions of a data set; of a larger one so many, evenly spread."""
    return [records[row].caption for row in range(0, len(records), -(-len(records) // most) or 1)]


_TRIES = 1000
CHECKED_AT_ONCE = 100_000
"""Larger data sets are checked image by image, when an image's turn comes."""


def usable(records: Sequence[Record], minimum: int) -> tuple[Rows, Counter[str]]:
    """Leave out what training should not see; what was found is remembered by the files' paths, sizes and times.

    Args:
        records: All images.
        minimum: Smallest side that an image may have.

    Returns:
        The rest, in the same order, and how many were left out for which reason. Of more than `CHECKED_AT_ONCE`
        images all, unseen.

    Raises:
        CorruptImageError: More than 1 % of the files are missing or unreadable.
    """
    records = records if isinstance(records, Rows) else Rows([records])
    if len(records) > CHECKED_AT_ONCE:
        _log.info("%d images are checked when their turn comes", len(records))
        return records, Counter()

    def stamp(record: Record) -> str:
        paths = [path for mask in record.masks for path in (mask.path, *mask.minus)]
        return f"decoded {minimum} {file_stamp(record.image, *paths, record.control, said=repr(record))}"

    with ThreadPoolExecutor(8) as pool:
        stamps = list(pool.map(stamp, records))
        name = file_stamp(records[0].image, records[len(records) - 1].image) if records else "nothing"
        memory = folders.CACHE / f"checked-{name}.json"
        known: dict[str, str] = {}
        with suppress(OSError, ValueError):  # none yet, or a damaged one
            known = json.loads(memory.read_text())
        new = [row for row, name in enumerate(stamps) if name not in known]
        if new:
            looked = pool.map(lambda row: fault(records[row], minimum), new)
            bar = progress_bar(looked, total=len(new), desc="checking images", unit="img")
            known = {name: known[name] for name in stamps if name in known}
            known |= {stamps[row]: reason for row, reason in zip(new, bar, strict=True)}
            write_text(memory, json.dumps(known))
    reasons = [known[name] for name in stamps]
    counts = Counter(reason for reason in reasons if reason)
    if counts["unreadable"] > max(1, len(records) // 100):
        raise CorruptImageError(
            f"data: {counts['unreadable']} of {len(records)} images or their masks are missing, unreadable or of "
            "another size, more than 1 %; the log names them."
        )
    kept = torch.tensor([row for row, reason in enumerate(reasons) if not reason], dtype=torch.long)
    return records.of(records.rows[kept]), counts


def random_subset(records: Sequence[Record], count: int, seed: int, minimum: int = 1) -> list[Record]:
    """Some records that can be used, in their order; one that cannot gives its place to another.

    Args:
        records: All of them.
        count: How many; all if there are fewer.
        seed: Of the draw.
        minimum: Smallest side that an image may have.
    """
    order = torch.randperm(len(records), generator=keyed_generator(seed, "draw")).tolist()
    good = itertools.islice((k for k in order if not fault(records[k], minimum)), count)
    return [
        records[k] for k in sorted(progress_bar(good, desc="checking images", total=min(count, len(order)), unit="img"))
    ]


R = TypeVar("R")


class Turns(Generic[R]):
    """Reads records in their turn; one that cannot be used gives its place to another, chosen by the turn's key.

    So a file that went bad does not end a training, and a run that goes on sees what an uninterrupted one would.

    Args:
        records: The images, or pairs of them.
        reason: Why a record that nobody has checked yet cannot be used, see `fault`; None where `usable` has.
        seed: Of the choice.
    """

    def __init__(self, records: Sequence[R], reason: Callable[[R], str] | None, seed: int) -> None:
        self.records, self.reason, self.seed = records, reason, seed
        self.taken, self.broken = 0, set[int]()

    def read(self, row: int, key: str, read: Callable[[R], T]) -> T:
        """What ``read`` makes of the row's record, or of another's.

        Raises:
            CorruptImageError: More than 1 % of the images so far cannot be used.
        """
        self.taken += 1
        reason = ""
        for attempt in range(_TRIES):
            record = self.records[row]
            try:
                if self.reason is None or not (reason := self.reason(record)):
                    return read(record)
                if reason == "unreadable":
                    raise CorruptImageError(f"{getattr(record, 'image', record)} or its mask cannot be read")
            except CorruptImageError as error:
                if row not in self.broken:
                    _log.warning("skipped %s (%d skipped so far)", error, len(self.broken) + 1)
                self.broken.add(row)
                if len(self.broken) > max(1, self.taken // 100, len(self.records) // 100):
                    raise CorruptImageError(
                        f"data: {len(self.broken)} images cannot be read, more than 1 %; the last one: {error}"
                    ) from None
            row = int(keyed_randint([(self.seed, "replacement", key, attempt)], len(self.records)))
        raise CorruptImageError(
            f"data: {_TRIES} images in a row are of no use, the last one {reason}; data.minimum says how small one may be."
        )
