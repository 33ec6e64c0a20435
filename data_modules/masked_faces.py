"""Images to inpaint: a group's own, images of its class, images of the classes to be told apart from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.folders import file_stamp, given_as
from data_modules.records import (
    CHECKED_AT_ONCE,
    Record,
    RegionSource,
    Rows,
    Turns,
    captions_of,
    fault,
    random_subset,
    usable,
)
from fairanon.batches import InpaintBatch, PromptRow
from fairanon.imaging import dilate, joint_crop, joint_flip, read_image
from fairanon.seeding import keyed_generator, keyed_uniform

_log = logging.getLogger(__name__)


def random_masks(generator: torch.Generator, count: int, size: int) -> Tensor:
    """Rectangles and ellipses of a tenth to half of the image.

    (The official training draws them of any size, from nothing to the whole image; nothing would be no task.)

    Args:
        generator: Where the random numbers come from.
        count: B.
        size: Side of the masks.

    Returns:
        bool (B, 1, size, size), none of them empty.
    """
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = axis.view(1, 1, size), axis.view(1, size, 1)
    middle = 1.2 * torch.rand(count, 2, generator=generator) - 0.6
    half = 0.3 + 0.5 * torch.rand(count, 2, generator=generator)
    dx, dy = (x - middle[:, 0, None, None]).abs(), (y - middle[:, 1, None, None]).abs()
    hx, hy = half[:, 0, None, None], half[:, 1, None, None]
    box = torch.maximum(dx - hx, dy - hy) < 0
    round_ones = (dx / hx).square() + (dy / hy).square() < 1
    return torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, box, round_ones)[:, None]


class MaskedImages(Dataset[InpaintBatch]):
    """Instance images, each with an image of the other roles where there are any; ``data[row, pass]`` is a batch.

    Args:
        records: The images of each role; "instance" must be there.
        size: Side: shorter side resized, centre cropped.
        masks: ``random`` shapes, ``given`` ones, or ``both``, half and half; an image without a given mask, or whose
            crop leaves nothing of it, has a random one.
        grow: Pixels, after resizing, by which given masks are dilated.
        flip: Mirror half of the images, each with its mask.
        seed: Names masks and flips.
        reasons: For each role, see `Turns`; what is not named has been checked.
    """

    def __init__(
        self,
        records: Mapping[str, Sequence[Record]],
        size: int,
        masks: Literal["random", "given", "both"] = "random",
        grow: int = 0,
        flip: bool = False,
        seed: int = 0,
        reasons: Mapping[str, Callable[[Record], str]] | None = None,
    ) -> None:
        self.records, self.size, self.masks = records, size, masks
        self.grow, self.flip, self.seed = grow, flip, seed
        self.turns = {role: Turns(rows, (reasons or {}).get(role), seed) for role, rows in records.items()}

    def __len__(self) -> int:
        return len(self.records["instance"])

    def __getitem__(self, where: tuple[int, int]) -> InpaintBatch:
        row, number = where
        position = row + number * len(self)  # the other roles go round by themselves
        return join(
            self.turns[role].read(position % len(records), key, partial(self._one, role, key))
            for role, records in self.records.items()
            for key in [f"{role}.{row}.{number}"]
        )

    def _one(self, role: str, key: str, record: Record) -> InpaintBatch:
        image = read_image(record.image, str(record.image))
        use_given = self.masks == "given" or (
            self.masks == "both" and bool(keyed_uniform([(self.seed, "given", key)]) < 0.5)
        )
        parts = [mask.read(str(record.image), image.shape[-1], image.shape[-2]) for mask in record.masks if use_given]
        mirror = self.flip and bool(keyed_uniform([(self.seed, "flip", key)]) < 0.5)
        image, *parts = joint_flip(joint_crop([image, *parts], self.size), mirror)
        mask = dilate(torch.stack(parts).amax(0) > 127, self.grow) if parts else torch.zeros(0)
        if not mask.any():  # none given, or none left by the crop
            mask = random_masks(keyed_generator(self.seed, "mask", key), 1, self.size)[0]
        return InpaintBatch([key], image[None], [record.caption], mask[None], [role])


def join(samples: Iterable[InpaintBatch]) -> InpaintBatch:
    """Batches to one."""
    samples = list(samples)
    return InpaintBatch(
        [key for sample in samples for key in sample.keys],
        torch.cat([sample.images for sample in samples]),
        [caption for sample in samples for caption in sample.captions],
        torch.cat([sample.masks for sample in samples]),
        [role for sample in samples for role in sample.roles],
    )


class MaskedFaces(StepDataModule):
    """DreamBooth's images for inpainting.

    Args:
        instance: The group that the model is to learn.
        prior: Images that the starting model drew for the class (``fairanon prepare``); None leaves them out.
        difference: Likewise for the classes to be told apart from the group.
        batch_size: Instance images of one rank and step; each brings one image of the other roles along.
        size: Image side in pixels.
        minimum: Images with a smaller side are left out and counted.
        masks: See `MaskedImages`.
        grow: Likewise.
        flip: Likewise.
        num_workers: Loader processes.
        seed: Of the order, masks and flips.
    """

    def __init__(
        self,
        instance: RegionSource,
        prior: RegionSource | None = None,
        difference: RegionSource | None = None,
        batch_size: int = 1,
        size: int = 512,
        minimum: int = 1,
        masks: Literal["random", "given", "both"] = "random",
        grow: int = 0,
        flip: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.sources = {"instance": instance, "prior": prior, "difference": difference}
        self.size, self.minimum, self.masks, self.grow, self.flip = size, minimum, masks, grow, flip
        self._records: dict[str, Rows] | None = None

    def setup(self, stage: str) -> None:
        """Read the sources and leave out what is not usable; once."""
        if self._records is not None:
            return
        self._records = {}
        for role, source in self.sources.items():
            if source is None:
                continue
            with given_as(f"data.{role}"):
                everything = Rows([source.records()])
            records, left_out = usable(everything, self.minimum)
            reasons = ", ".join(f"{count} {name}" for name, count in left_out.items()) or "none"
            _log.info("%s: %d images of %d; left out: %s", role, len(records), len(everything), reasons)
            if not records:
                raise ValueError(f"data.{role}: no usable image of {len(everything)} (left out: {reasons}).")
            self._records[role] = records

    def captions(self) -> list[str]:
        """Of the training images, all or many of them, once it is set up."""
        return [text for rows in (self._records or {}).values() for text in captions_of(rows)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless images, see `StepDataModule`."""
        assert self._records is not None
        check = partial(fault, minimum=self.minimum)
        unseen = {role: check for role, rows in self._records.items() if len(rows) > CHECKED_AT_ONCE}
        data = MaskedImages(self._records, self.size, self.masks, self.grow, self.flip, self.seed, unseen)
        return self.endless_loader(data, join)


class FacesToAnonymize:
    """Images to anonymize as each group in turn, with the paper's prompts ("He is an Asian man.").

    Args:
        source: Images with masks of what is inpainted.
        groups: For each of the judge's groups the words that ask for it, for example ``{asian: an Asian}``.
        prompts: For each gender the prompt, with ``{group}``.
        count: Images, the same for every group and gender; drawn by ``seed``.
        size: Image side in pixels.
        grow: Pixels, at ``size``, by which masks are dilated.
        group: Name of the judge's attribute whose classes the groups are.
        seed: Of the draw.
    """

    def __init__(
        self,
        source: RegionSource,
        groups: dict[str, str],
        prompts: dict[str, str],
        count: int = 50,
        size: int = 512,
        grow: int = 16,
        group: str = "race",
        seed: int = 0,
    ) -> None:
        self.source, self.groups, self.prompts, self.group = source, groups, prompts, group
        self.count, self.size, self.grow, self.seed = count, size, grow, seed

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.rows()

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`; ``asked`` names group and gender."""
        with given_as("evaluate.prompts.source"):
            chosen = random_subset(self.source.records(), self.count, self.seed)
        if bare := [record for record in chosen if not record.masks]:
            raise ValueError(f"evaluate.prompts: {bare[0].image} has no mask; choose a source with masks.")
        drawn = [
            (
                record,
                file_stamp(
                    record.image, *(m for mask in record.masks for m in (mask.path, *mask.minus)), said=repr(record)
                ),
            )
            for record in chosen
        ]
        return [
            PromptRow(
                prompt.format(group=words), "people", {self.group: name, "gender": gender},
                read=partial(self._read, record), stored=("image", "mask"), stamp=f"{stamp} {self.size} {self.grow}",
            )
            for name, words in self.groups.items()
            for gender, prompt in self.prompts.items()
            for record, stamp in drawn
        ]  # fmt: skip

    def _read(self, record: Record) -> dict[str, Tensor]:
        image = read_image(record.image, str(record.image))
        parts = [mask.read(str(record.image), image.shape[-1], image.shape[-2]) for mask in record.masks]
        image, *parts = joint_crop([image, *parts], self.size)
        if not parts or not (mask := torch.stack(parts).amax(0) > 127).any():
            raise ValueError(f"evaluate.prompts: nothing is left of the mask of {record.image}; choose another source.")
        return {"image": image, "mask": dilate(mask, self.grow)}


class Images:
    """Plain images of a source, for example strangers from whom a threshold is calibrated.

    Args:
        source: The data set.
        count: Images, drawn by ``seed``.
        size: Side in pixels.
        seed: Of the draw.
    """

    def __init__(self, source: RegionSource, count: int = 1000, size: int = 512, seed: int = 0) -> None:
        self.source, self.count, self.size, self.seed = source, count, size, seed

    def images(self) -> Iterator[Tensor]:
        """One after the other: uint8 (1, 3, size, size)."""
        for record in random_subset(self.source.records(), self.count, self.seed):
            yield torch.stack(joint_crop([read_image(record.image, str(record.image))], self.size))
