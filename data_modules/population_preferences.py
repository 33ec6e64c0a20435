"""Population preferences: pairs of pictures for a neutral caption, the winner from a fair set.

Two sources: the folder that ``fairanon prepare`` writes (``pairs.parquet``) and the CSV of the official PopAlign
code (``jpg_0,jpg_1,caption,label``). PopAlign, DPO and SFT all read the same rows.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule, missing_data
from fairanon.batches import PreferenceBatch
from fairanon.imaging import CorruptImageError, joint_crop, joint_flip, read_image
from fairanon.seeding import keyed_uniform

_log = logging.getLogger(__name__)
_TREE = "  FOLDER/pairs.parquet   columns jpg_0, jpg_1 (bytes or paths), caption, label_0, split\n  FOLDER/images/..."


Row = tuple[str, Tensor, Tensor, str, str | None]
"""Key, winner, loser, caption and, where it is known, the prompt that the winner was sampled from."""


class PreferencePairs(Dataset[Row]):
    """Rows of a preference table, pictures uint8 (3, S, S).

    A picture that cannot be read is replaced by the next row's pair, counted and named in the log; more than
    1 % of unreadable rows ends the run.

    Args:
        table: Columns jpg_0, jpg_1, caption, label_0 (1: the first wins, 0: the second) and, if known, prompt_0
            and prompt_1.
        root: What relative paths start from.
        size: Picture side S: shorter side resized, centre cropped.
        flip: Mirror half of the pairs, both pictures together.
        seed: Names the flips.
    """

    def __init__(self, table: pa.Table, root: Path, size: int, flip: bool = False, seed: int = 0) -> None:
        self.table, self.root, self.size, self.flip, self.seed = table, root, size, flip, seed
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, where: tuple[int, int]) -> Row:
        row, number = where
        for candidate in (*range(row, len(self)), *range(row)):
            if candidate in self._bad:
                continue
            try:
                return self._read(candidate, number)
            except CorruptImageError as error:
                self._bad.add(candidate)
                _log.warning("skipped pair %d: %s (%d skipped so far)", candidate, error, len(self._bad))
                if len(self._bad) > max(1, len(self) // 100):
                    raise CorruptImageError(
                        f"data.folder: {len(self._bad)} of {len(self)} pairs are unreadable, more than 1 %; "
                        f"the last one: {error}"
                    ) from None
        raise CorruptImageError("data.folder: no pair is readable.")

    def _read(self, row: int, number: int) -> Row:
        record = {name: self.table[name][row].as_py() for name in self.table.column_names}
        pictures = []
        for name in ("jpg_0", "jpg_1"):
            source = record[name]
            path = f"row {row}, {name}" if isinstance(source, bytes) else str(self.root / source)
            pictures.append(read_image(io.BytesIO(source) if isinstance(source, bytes) else path, path))
        key = f"{row}.{number}"
        first, second = joint_crop(pictures, self.size)
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


def read_preferences(source: Path) -> tuple[pa.Table, Path]:
    """Read a preference table.

    Args:
        source: The folder that ``fairanon prepare`` wrote, or an official PopAlign CSV (its ``label`` says which
            picture wins: 0 the first, 1 the second; paths in it start beside it or at the working directory).

    Returns:
        Columns jpg_0, jpg_1, caption, label_0 and split ("train" or "val"; ties dropped), and the folder that
        relative paths start from.
    """
    if source.suffix == ".csv":
        if not source.exists():
            raise missing_data(
                source, "data.folder", "  a CSV with columns jpg_0,jpg_1,caption,label", "Give its path."
            )
        table = pyarrow.csv.read_csv(source)
        wanted = ["jpg_0", "jpg_1", "caption", "label"]
        if missing := [name for name in wanted if name not in table.column_names]:
            raise ValueError(f"data.folder: {source} has no column {', '.join(missing)}; expected {', '.join(wanted)}.")
        first_wins = [1.0 - float(value) for value in table["label"].to_pylist()]
        table = table.select(wanted[:3]).append_column("label_0", pa.array(first_wins))
        table = table.append_column("split", pa.array(["train"] * table.num_rows))
        # The official table's paths start at the directory its scripts were started in, ours beside the table.
        first = table["jpg_0"][0].as_py() if table.num_rows else ""
        here = not (source.parent / first).exists() and Path(first).exists()
        return table, Path() if here else source.parent
    path = source / "pairs.parquet"
    if not path.exists():
        raise missing_data(
            source, "data.folder", _TREE,
            f"Make it with `fairanon prepare {source.name}` (`make train` does).",
        )  # fmt: skip
    table = pq.read_table(path)
    decided = [value != 0.5 for value in table["label_0"].to_pylist()]
    if ties := decided.count(False):
        _log.info("dropped %d ties of %d rows", ties, len(decided))
    return table.filter(pa.array(decided)), source


class PopulationPreferences(StepDataModule):
    """Pairs of a fair and a biased picture for the same neutral caption.

    Args:
        folder: What ``fairanon prepare`` wrote, or an official PopAlign CSV.
        batch_size: Pairs of one rank and micro-step.
        size: Picture side in pixels.
        flip: Mirror half of the pairs, both pictures together.
        num_workers: Loader processes.
        seed: Names the order and the flips.
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
        self.folder, self.size, self.flip = Path(folder), size, flip

    def look(self) -> None:
        """Raise what is missing, without reading pictures."""
        read_preferences(self.folder)

    def setup(self, stage: str) -> None:
        """Read the table."""
        table, root = read_preferences(self.folder)
        split = table["split"].to_pylist()
        self.train_pairs, self.val_pairs = (
            PreferencePairs(table.filter(pa.array([s == name for s in split])), root, self.size, flip, self.seed)
            for name, flip in (("train", self.flip), ("val", False))
        )
        if not len(self.train_pairs):
            raise ValueError(f"data.folder: {self.folder} holds no training pair.")

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs, see `StepDataModule`."""
        return self.endless_loader(self.train_pairs, collate_pairs)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out pairs in their order."""
        return self.ordered_loader(self.val_pairs, collate_pairs)
