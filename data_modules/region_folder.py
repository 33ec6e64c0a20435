"""The layout that FairHuman's code reads and that ``fairanon prepare regions`` writes, and prompts from a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_modules.base import file_stamp, missing_data
from data_modules.records import Mask, Record
from fairanon.batches import PromptRow, StoredRow
from fairanon.imaging import joint_crop, read_image
from fairanon.seeding import keyed_generator

_TREE = (
    "  FOLDER/metadata.jsonl   one object a line: image, text_english, mask_face, mask_hand, conditioning_image\n"
    "  FOLDER/...              the files that it names"
)


def read_lines(path: Path, key: str, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON lines file with their line numbers, checked for the fields that must be there."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{key}: {path}, line {number} is no JSON ({error}).") from None
            if missing := [name for name in wanted if name not in row]:
                raise ValueError(f"{key}: {path}, line {number} lacks {', '.join(missing)}.")
            yield number, row


class RegionFolder:
    """A folder with ``metadata.jsonl``; paths in it are relative to the folder.

    Args:
        folder: The folder.
        masks: The fields that name masks; none for pictures without.
    """

    def __init__(self, folder: str, masks: tuple[str, ...] = ("mask_face", "mask_hand")) -> None:
        self.folder, self.masks = Path(folder), masks

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; a mask that is null is none."""
        path = self.folder / "metadata.jsonl"
        if not path.exists():
            raise missing_data(
                self.folder,
                "data.sources",
                _TREE,
                "Make it with `fairanon prepare regions IMAGES` from plain pictures.",
            )
        records = []
        for _, row in read_lines(path, "data.sources", ("image", "text_english")):
            masks = tuple(Mask(path=self._file(row.get(name))) for name in self.masks)
            control = self._file(row.get("conditioning_image"))
            records.append(Record(self.folder / row["image"], row["text_english"], masks, control))
        return records

    def _file(self, name: str | None) -> Path | None:
        return None if name is None else self.folder / name


class CaptionedPictures:
    """Prompts, and real pictures to compare with, from a JSON lines file: a fixed draw for evaluation.

    The validation set of FairHuman is 5,000 of the human-in-the-scene pictures of MoLE (supplement, section 2.2).

    Args:
        path: One object a line: image (relative to the file), text and, for control networks, conditioning_image.
        count: Rows to draw; all if there are fewer.
        size: Side of the pictures.
        seed: Names the draw.
    """

    def __init__(self, path: str, count: int = 5000, size: int = 1024, seed: int = 0) -> None:
        self.path, self.count, self.size, self.seed = Path(path), count, size, seed

    def _drawn(self) -> list[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            raise FileNotFoundError(
                f"evaluate.prompts: {self.path} is missing; give a file with one object a line: image, text."
            )
        rows = list(read_lines(self.path, "evaluate.prompts", ("image", "text")))
        order = torch.randperm(len(rows), generator=keyed_generator(self.seed, "draw"))
        return [rows[k] for k in sorted(order[: self.count].tolist())]

    def rows(self) -> list[PromptRow]:
        """See `fairanon.evaluators.protocols.PromptSource`."""
        return [self._row(number, row) for number, row in self._drawn()]

    def _row(self, number: int, row: dict[str, Any]) -> PromptRow:
        name = row.get("conditioning_image")
        if name is None:
            return PromptRow(row["text"], "people", {})
        path = self.path.parent / name
        if not path.exists():
            raise FileNotFoundError(f"evaluate.prompts: {path} is missing ({self.path}, line {number}).")
        read = partial(self._control, number, name)
        return StoredRow(row["text"], "people", {}, read, ("control",), f"{file_stamp(path)} {self.size}")

    def _control(self, number: int, name: str) -> dict[str, Tensor]:
        return {"control": self._picture(number, name)}

    def pictures(self) -> Iterator[Tensor]:
        """The real pictures, one after the other: uint8 (1, 3, size, size)."""
        for number, row in self._drawn():
            yield self._picture(number, row["image"])[None]

    def _picture(self, number: int, name: str) -> Tensor:
        path = self.path.parent / name
        (picture,) = joint_crop([read_image(path, f"{path} ({self.path}, line {number})")], self.size)
        return picture
