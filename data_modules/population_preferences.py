"""Population preferences: pairs of images for a neutral caption, the winner from a fair set.

Two sources: the folder that ``fairanon prepare`` writes (``pairs.parquet``) and the CSV of the official PopAlign
code (``jpg_0,jpg_1,caption,label``). PopAlign, DPO and SFT all read the same rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.folders import missing_data
from data_modules.preference_rows import (
    CAPTION,
    COLUMNS,
    IMAGES,
    LABEL,
    check_rows,
    check_schema,
    decode_image,
    open_parquet,
    outcome,
)
from data_modules.records import Turns
from data_modules.tars import Tars, in_tars, parts_of, sample_json
from fairanon.batches import PreferenceBatch
from fairanon.files import IMAGES as IMAGE_ENDS
from fairanon.files import TextError, named_path, read_table
from fairanon.imaging import joint_crop, joint_flip
from fairanon.places import place
from fairanon.seeding import keyed_uniform

_log = logging.getLogger(__name__)
_TARS = "  FOLDER/*.tar   KEY.jpg_0.png, KEY.jpg_1.png, KEY.json with caption, label_0 and, if you like, split"
_TREE = "  FOLDER/pairs.parquet   columns jpg_0, jpg_1 (bytes or paths), caption, label_0, split\n  FOLDER/images/..."


Row = tuple[str, Tensor, Tensor, str, str | None]
"""Key, winner, loser, caption and, where it is known, the prompt that the winner was sampled from."""


class PopulationPairs(Dataset[Row]):
    """Rows of a preference table, images uint8 (3, S, S).

    A pair with an image that cannot be read is replaced by another, see `Turns`.

    Args:
        table: Columns jpg_0, jpg_1, caption, label_0 (1: the first wins, 0: the second) and, if known, prompt_0
            and prompt_1.
        root: What relative paths start from.
        size: Image side S: shorter side resized, centre cropped.
        flip: Mirror half of the pairs, both images together.
        seed: Of the flips.
    """

    def __init__(self, table: pa.Table, root: Path | Tars, size: int, flip: bool = False, seed: int = 0) -> None:
        self.table, self.root, self.size, self.flip, self.seed = table, root, size, flip, seed
        self.turns = Turns(range(table.num_rows), None, seed)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, where: tuple[int, int]) -> Row:
        row, number = where
        key = f"{row}.{number}"
        return self.turns.read(row, key, partial(self._read, key))

    def _read(self, key: str, row: int) -> Row:
        record = {name: self.table[name][row].as_py() for name in self.table.column_names}
        images = [decode_image(record[name], self.root, f"row {row}, {name}") for name in IMAGES]
        first, second = joint_crop(images, self.size)
        if self.flip:
            mirror = bool(keyed_uniform([(self.seed, "flip", key)]) < 0.5)
            first, second = joint_flip([first, second], mirror)
        if record["label_0"] > 0.5:
            return key, first, second, record["caption"], record.get("prompt_0")
        return key, second, first, record["caption"], record.get("prompt_1")


def collate_pairs(rows: Sequence[Row]) -> PreferenceBatch:
    """Rows of `PreferencePairs` to a batch."""
    keys, winners, losers, captions, prompts = zip(*rows, strict=True)
    known = None if None in prompts else list(prompts)
    return PreferenceBatch(list(keys), torch.stack(winners), torch.stack(losers), list(captions), known)


def read_preferences(source: Path) -> tuple[pa.Table, Path | Tars]:
    """Read a preference table.

    Args:
        source: The folder that ``fairanon prepare`` wrote, a folder of tars, see `_rows_of`, or an official PopAlign CSV (its ``label`` says which
            image wins: 0 the first, 1 the second; paths in it start beside it or at the working directory).

    Returns:
        Columns jpg_0, jpg_1, caption, label_0 and split ("train" or "val"; ties dropped), and the folder that
        relative paths start from.
    """
    if source.suffix == ".csv":
        if not source.exists():
            raise missing_data(
                source, "data.folder", "  a CSV with columns jpg_0,jpg_1,caption,label", "Give its path."
            )
        rows = []
        for line, cells in read_table(source, "data.folder", (*IMAGES, CAPTION, "label")):
            where = f"data.folder: {source}, line {line}: column "
            images = {name: str(named_path(cells[name], where + name)) for name in IMAGES}
            if not cells[CAPTION].strip():
                raise TextError(f"{where}{CAPTION} is empty.")
            first_wins = 1.0 - outcome(cells["label"].strip(), f"{where}label")
            rows.append({**images, CAPTION: cells[CAPTION], LABEL: first_wins, "split": "train"})
        # The official table's paths start at the directory its scripts were started in, ours beside the table.
        first = str(rows[0][IMAGES[0]])
        here = not (source.parent / first).exists() and Path(first).exists()
        return _decided(pa.Table.from_pylist(rows)), Path() if here else source.parent
    path = source / "pairs.parquet"
    if not path.exists() and isinstance(tars := in_tars(source, "data.folder"), Tars):
        return _decided(pa.Table.from_pylist(_rows_of(tars))), tars
    if not path.exists():
        raise missing_data(
            source, "data.folder", _TREE,
            f"Make it with `fairanon prepare {source.name}` (`make train` does).",
        )  # fmt: skip
    table = open_parquet(path, "data.folder").read()
    check_schema(table.schema, f"data.folder: {path}")
    check_rows(table.select(COLUMNS).to_pylist(), f"data.folder: {path}")
    return _decided(table), source


def _rows_of(tars: Tars) -> list[dict[str, Any]]:
    """Rows of a preference table in tars: ``KEY.jpg_0.png``, ``KEY.jpg_1.png``, and ``KEY.json`` with the other columns."""
    first, second = ({parts_of(tars.name(row))[0]: tars.name(row) for row in tars.samples([f".{name}{end}" for end in IMAGE_ENDS])} for name in IMAGES)  # fmt: skip
    rows = []
    for key in first.keys() & second.keys():
        about = sample_json(tars, key)
        where = f"{tars.key}: {tars.folder}: {key}.json"
        if not str(about.get(CAPTION) or "").strip():
            raise TextError(f"{where}: {CAPTION} is missing.")
        split = about.get("split", "train")
        if split not in ("train", "val"):
            raise TextError(f"{where}: split must be train or val, got {split!r}.")
        label = outcome(about.get(LABEL), f"{where}: {LABEL}")
        rows.append(
            {IMAGES[0]: first[key], IMAGES[1]: second[key], CAPTION: about[CAPTION], LABEL: label, "split": split}
        )
    if not rows:
        raise missing_data(tars.folder, tars.key, _TARS, "Its tars hold no pair.")
    return sorted(rows, key=lambda row: str(row[IMAGES[0]]))


def _decided(table: pa.Table) -> pa.Table:
    """The rows that somebody won."""
    decided = [value != 0.5 for value in table[LABEL].to_pylist()]
    if ties := decided.count(False):
        _log.info("dropped %d ties of %d rows", ties, len(decided))
    return table.filter(pa.array(decided))


class PopulationPreferences(StepDataModule):
    """Pairs of a fair and a biased image for the same neutral caption.

    Args:
        folder: What ``fairanon prepare`` wrote, a folder of tars, or an official PopAlign CSV; a folder may be an address in an
            object store.
        batch_size: Pairs of one rank and micro-step.
        size: Image side in pixels.
        flip: Mirror half of the pairs, both images together.
        num_workers: Loader processes.
        seed: Of the order and the flips.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 2,
        size: int = 64,
        flip: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.folder, self.size, self.flip = place(folder), size, flip

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`; images are not read."""
        read_preferences(self.folder)

    def setup(self, stage: str) -> None:
        """Read the table."""
        table, root = read_preferences(self.folder)
        split = table["split"].to_pylist()
        self.train_pairs, self.val_pairs = (
            PopulationPairs(table.filter(pa.array([s == name for s in split])), root, self.size, flip, self.seed)
            for name, flip in (("train", self.flip), ("val", False))
        )
        if not len(self.train_pairs):
            raise ValueError(f"data.folder: {self.folder} holds no training pair.")

    def captions(self) -> list[str]:
        """Of the training images, all or many of them, once it is set up."""
        captions: list[str] = self.train_pairs.table[CAPTION].to_pylist()
        return captions

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs, see `StepDataModule`."""
        return self.endless_loader(self.train_pairs, collate_pairs)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out pairs in their order."""
        return self.ordered_loader(self.val_pairs, collate_pairs)
