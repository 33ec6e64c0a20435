"""The layout that FairHuman's code reads and that ``fairanon prepare regions`` writes, and prompts from a JSON file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_modules.folders import file_stamp, missing_data
from data_modules.records import Mask, Record
from fairanon.batches import PromptRow
from fairanon.files import TextError, named_path, read_json_lines
from fairanon.imaging import CorruptImageError, joint_crop, read_image
from fairanon.places import place
from fairanon.seeding import keyed_generator

_log = logging.getLogger(__name__)
_TREE = (
    "  FOLDER/metadata.jsonl   one object a line: image, text_english, mask_face, mask_hand, conditioning_image\n"
    "  FOLDER/...              the files that it names"
)


class RegionFolder:
    """A folder with ``metadata.jsonl``; paths in it are relative to the folder.

    Args:
        folder: The folder, or its address in an object store.
        masks: The fields that name masks; none for images without.
    """

    def __init__(self, folder: str, masks: tuple[str, ...] = ("mask_face", "mask_hand")) -> None:
        self.folder, self.masks = place(folder), masks

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; a mask that is null is none."""
        path = self.folder / "metadata.jsonl"
        if not path.exists():
            raise missing_data(
                self.folder,
                "RegionFolder",
                _TREE,
                "Make it with `fairanon prepare regions IMAGES` from plain images.",
            )
        records = []
        for number, row in read_json_lines(path, "RegionFolder", ("image", "text_english")):

            def file(name: str) -> Path | None:
                where = f"RegionFolder: {path}, line {number}: {name}"  # noqa: B023  (called in this round)
                return None if row.get(name) is None else self.folder / named_path(row[name], where).as_posix()  # noqa: B023

            image, caption = file("image"), row["text_english"]
            if image is None or not isinstance(caption, str):
                raise TextError(f"RegionFolder: {path}, line {number}: image and text_english must be text.")
            masks = tuple(Mask(path=file(name)) for name in self.masks)
            records.append(Record(image, caption, masks, file("conditioning_image")))
        if records and not records[0].image.parent.exists():
            raise FileNotFoundError(
                f"RegionFolder: {path} names images in {records[0].image.parent}, which is not there; move them along, or "
                "make it again with `fairanon prepare`."
            )
        return records


class CaptionedImages:
    """Prompts, and real images to compare with, from a JSON lines file: a fixed draw for evaluation.

    The validation set of FairHuman is 5,000 of the human-in-the-scene images of MoLE (supplement, section 2.2).

    Args:
        path: One object a line: image (relative to the file), text and, for control networks, conditioning_image.
        count: Rows to draw; all if there are fewer.
        size: Side of the images.
        seed: Of the draw.
    """

    def __init__(self, path: str, count: int = 5000, size: int = 1024, seed: int = 0) -> None:
        self.path, self.count, self.size, self.seed = Path(path), count, size, seed

    def _drawn(self) -> list[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            raise FileNotFoundError(
                f"evaluate.prompts: {self.path} is missing; give a file with one object a line: image, text."
            )
        rows = list(read_json_lines(self.path, "evaluate.prompts", ("image", "text")))
        order = torch.randperm(len(rows), generator=keyed_generator(self.seed, "draw"))
        return [rows[k] for k in sorted(order[: self.count].tolist())]

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.rows()

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`."""
        return [self._row(number, row) for number, row in self._drawn()]

    def _row(self, number: int, row: dict[str, Any]) -> PromptRow:
        name = row.get("conditioning_image")
        if name is None:
            return PromptRow(row["text"], "people", {})
        path = self.path.parent / name
        if not path.exists():
            raise FileNotFoundError(f"evaluate.prompts: {path} is missing ({self.path}, line {number}).")
        read = partial(self._control, number, name)
        stamp = f"{file_stamp(path)} {self.size}"
        return PromptRow(row["text"], "people", {}, read=read, stored=("control",), stamp=stamp)

    def _control(self, number: int, name: str) -> dict[str, Tensor]:
        return {"control": self._image(number, name)}

    def images(self) -> Iterator[Tensor]:
        """The real images, one after the other: uint8 (1, 3, size, size)."""
        for number, row in self._drawn():
            try:
                yield self._image(number, row["image"])[None]
            except CorruptImageError as error:
                _log.warning("left out %s", error)

    def _image(self, number: int, name: str) -> Tensor:
        path = self.path.parent / name
        (image,) = joint_crop([read_image(path, f"{path} ({self.path}, line {number})")], self.size)
        return image
