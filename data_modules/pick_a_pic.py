"""Pick-a-Pic v1 and v2: pairs of generated images that people chose between, streamed from parquet files.

At real size (583,747 pairs, 190 GB) nothing fits into memory: row groups are read one after the other, in an order
that is shuffled anew in every pass and split over ranks and workers.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_modules.base import world
from data_modules.folders import missing_data
from data_modules.preference_rows import (
    CAPTION,
    COLUMNS,
    IMAGES,
    LABEL,
    check_schema,
    decode_image,
    open_parquet,
    outcome,
)
from fairanon.batches import PreferenceBatch, PromptRow
from fairanon.imaging import CorruptImageError, joint_crop, joint_flip
from fairanon.seeding import keyed_generator, keyed_uniform

_log = logging.getLogger(__name__)
_TREE = "  FOLDER/SPLIT-*.parquet or FOLDER/data/SPLIT-*.parquet   columns " + ", ".join(COLUMNS)
_PAGE = 32  # rows read at once

Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class _Group:
    file: int
    number: int
    first: int  # row of the file that the group begins with
    rows: int


class PairStream(IterableDataset[tuple[str, Tensor, Tensor, str]]):
    """Endless pairs (key, winner, loser, caption), images uint8 (3, S, S), or one pass of them.

    Rows without a label or a caption are left out and counted.

    Args:
        files: Parquet files with `COLUMNS`.
        size: Image side: shorter side resized, centre cropped.
        ties: ``drop`` pairs that nobody won, or ``keep`` them with the first image as the winner, as the official
            SimPO code does.
        flip: Mirror half of the pairs, both images together.
        seed: Names order and flips.
        buffer: Rows, still compressed, among which each lane shuffles.
        passes: How many; None is endless. A pair that cannot be read is replaced by the next one, counted and named
            in the log; more than 1 % ends the run.
        shared: Each rank reads its share; False is all of it, as held-out data is read.
        skip: Batches that every rank has had already, and their size: a run that goes on begins behind them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        size: int,
        ties: Literal["drop", "keep"] = "drop",
        flip: bool = False,
        seed: int = 0,
        buffer: int = 256,
        passes: int | None = None,
        shared: bool = True,
        skip: tuple[int, int] = (0, 1),
    ) -> None:
        self.files, self.size, self.ties, self.flip = list(files), size, ties, flip
        self.seed, self.buffer, self.passes, self.skip = seed, buffer, passes, skip
        self.groups: list[_Group] = []
        self.rows = 0
        for number, path in enumerate(self.files):
            metadata = open_parquet(path, "data.folder").metadata
            hint = " (The *_no_images variants of Pick-a-Pic hold no images.)"
            check_schema(metadata.schema.to_arrow_schema(), f"data.folder: {path}", hint)
            first = 0
            for k in range(metadata.num_row_groups):
                self.groups.append(_Group(number, k, first, metadata.row_group(k).num_rows))
                first += metadata.row_group(k).num_rows
            self.rows += first
        self.ties_dropped, self.unlabelled, self.broken = 0, 0, set[str]()
        self._rank = world() if shared else (0, 1)

    def lane(self) -> tuple[int, int]:
        """This process's number among all workers of all ranks, and how many there are."""
        (rank, ranks), (worker, workers) = self._rank, self._turn()
        return rank * workers + worker, ranks * workers

    def _turn(self) -> tuple[int, int]:
        """Which of the workers this one is, and how many there are; a loader begins with the one whose turn it is."""
        info = get_worker_info()
        return (0, 1) if info is None else ((info.id + self.skip[0]) % info.num_workers, info.num_workers)

    def keyed_rows(self, number: int, passed_over: Callable[[], bool] = lambda: False) -> Iterator[Row]:
        """This lane's rows of pass ``number``, images still compressed, in the order of that pass.

        Args:
            number: Of the pass.
            passed_over: Whether the next row is only counted: then its images are not read.
        """
        lane, lanes = self.lane()
        order = torch.randperm(len(self.groups), generator=keyed_generator(self.seed, "groups", number)).tolist()
        generator = keyed_generator(self.seed, "rows", number, lane)
        held: list[Row] = []
        for k in order[lane::lanes]:
            done = 0
            while done < self.groups[k].rows:
                without = passed_over()
                for row in self._read(self.groups[k], done, without):
                    held.append(row)
                    done += 1
                    if len(held) >= self.buffer:
                        place = int(torch.randint(len(held), (1,), generator=generator))
                        held[place], held[-1] = held[-1], held[place]
                        yield held.pop()
                    if without and not passed_over():
                        break
                if not passed_over():
                    held = self._with_images(held)
        for place in torch.randperm(len(held), generator=generator).tolist():
            if IMAGES[0] not in held[place][1] and not passed_over():
                held = self._with_images(held)
            yield held[place]

    def _read(self, group: _Group, first: int = 0, without_images: bool = False) -> Iterator[Row]:
        """The rows of a group from its ``first`` on."""
        columns, start = [name for name in COLUMNS if not (without_images and name in IMAGES)], 0
        with pq.ParquetFile(self.files[group.file]) as file:
            for page in file.iter_batches(_PAGE, row_groups=[group.number], columns=columns):
                if start + len(page) > first:
                    for row, record in enumerate(page.to_pylist(), start):
                        if row >= first:
                            yield f"{group.file}-{group.first + row}", record
                start += len(page)

    def _with_images(self, rows: list[Row]) -> list[Row]:
        """Rows of which some were read without their images, with them; each of their groups is read once."""
        wanted = {name for name, record in rows if IMAGES[0] not in record}
        found: dict[str, dict[str, Any]] = {}
        for group in self.groups if wanted else ():
            here = {f"{group.file}-{row}" for row in range(group.first, group.first + group.rows)} & wanted
            for name, record in self._read(group) if here else ():
                if name in here:
                    found[name] = record
        return [(name, found.get(name, record)) for name, record in rows]

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor, str]]:
        if len(self.groups) < self.lane()[1]:  # the others would wait for this one for ever
            raise ValueError(
                f"data.folder: {len(self.groups)} row groups do not go round {self.lane()[1]} loaders (ranks x workers); "
                "use fewer, or write the files with smaller row groups."
            )
        batches, batch_size = self.skip
        worker, workers = self._turn()
        # Workers take turns, so worker w of n has made every n-th batch, beginning with the w-th.
        had = len(range(worker, batches, workers)) * batch_size
        passes = itertools.count() if self.passes is None else range(self.passes)
        broken: list[str] = []
        for number in passes:
            empty = True
            for name, record in self.keyed_rows(number, lambda: had > 0):  # noqa: B023  (as it is then)
                if not self._decided(name, record):
                    continue
                empty = False
                if had > 0:
                    had -= 1  # its images are not even read: a broken pair counts, its place is taken by the next one
                    continue
                key = f"{name}.{number}"
                sample = self._decode(key, record)
                if sample is None:
                    broken.append(key)
                    continue
                for each in (*broken, key):
                    yield each, *sample
                broken.clear()
            if empty:
                raise ValueError("data.folder: a loader's share of the files holds no pair that somebody won.")

    def _decided(self, name: str, record: dict[str, Any]) -> bool:
        label = record[LABEL]
        if label is None or math.isnan(label) or not record[CAPTION]:  # "has_label" is false in such rows
            self.unlabelled += 1
            return False
        file, _, row = name.partition("-")
        won = outcome(label, f"data.folder: {self.files[int(file)]}, row {row}: column {LABEL}")
        if won == 0.5 and self.ties == "drop":
            self.ties_dropped += 1
            return False
        return True

    def _decode(self, key: str, record: dict[str, Any]) -> tuple[Tensor, Tensor, str] | None:
        try:
            root = self.files[int(key.partition("-")[0])].parent
            images = [decode_image(record[name], root, f"row {key}, {name}") for name in IMAGES]
        except CorruptImageError as error:
            self.broken.add(key.partition(".")[0])
            share = self.rows // self.lane()[1]
            _log.warning("skipped a pair: %s (%d skipped so far)", error, len(self.broken))
            if len(self.broken) > max(1, share // 100):
                raise CorruptImageError(
                    f"data.folder: {len(self.broken)} of about {share} pairs are unreadable, more than 1 %; "
                    f"the last one: {error}"
                ) from None
            return None
        first, second = joint_crop(images, self.size)
        if self.flip:
            first, second = joint_flip([first, second], bool(keyed_uniform([(self.seed, "flip", key)]) < 0.5))
        if record["label_0"] < 0.5:
            first, second = second, first
        return first, second, record["caption"]


class _First(IterableDataset[tuple[str, Tensor, Tensor, str]]):
    """The first pairs of a stream."""

    def __init__(self, stream: PairStream, count: int) -> None:
        self.stream, self.count = stream, count

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor, str]]:
        return itertools.islice(self.stream, self.count)


def collate(rows: Sequence[tuple[str, Tensor, Tensor, str]]) -> PreferenceBatch:
    """Samples of `PairStream` to a batch."""
    keys, winners, losers, captions = zip(*rows, strict=True)
    return PreferenceBatch(list(keys), torch.stack(winners), torch.stack(losers), list(captions))


def parquet_files(folder: str, split: str) -> list[Path]:
    """The files of a split, from a folder or from what the hub's cache holds of a data set.

    Args:
        folder: A folder, or a hub id such as ``OWNER/pick-a-pic-v2`` that was downloaded before.
        split: How the file names begin.
    """
    root = Path(folder).expanduser()
    if not root.is_dir() and folder.count("/") == 1 and not folder.startswith((".", "~")):
        try:
            root = Path(snapshot_download(folder, repo_type="dataset", local_files_only=True))
        except LocalEntryNotFoundError:
            raise FileNotFoundError(
                f"data.folder: {folder} is no folder, and no data set of that id is in the cache; download it with "
                f"`hf download --repo-type dataset {folder}` where there is a network."
            ) from None
    files = sorted([*root.glob(f"{split}-*.parquet"), *root.glob(f"data/{split}-*.parquet")])
    if not files:
        raise missing_data(root, "data.folder", _TREE.replace("SPLIT", split), "Download it, or make it.")
    return files


class PickAPic(LightningDataModule):
    """Pick-a-Pic, or anything in its schema.

    For a given number of ranks and workers the order is fixed by ``seed``, and a run that goes on sees what an
    uninterrupted one would. It is another order with another number of them: a stream cannot be cut up otherwise.

    Args:
        folder: A folder of parquet files, or the hub id of a downloaded data set.
        batch_size: Pairs of one rank and micro-step.
        size: Image side in pixels.
        ties: See `PairStream`.
        flip: Mirror half of the pairs, both images together.
        split: Training files begin with this; the published SimPO script silently takes ``validation``.
        val_split: Validation files begin with this.
        val_pairs: As many of them at most, the same in every run.
        num_workers: Loader processes.
        buffer: See `PairStream`.
        seed: Names order and flips.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 4,
        size: int = 512,
        ties: Literal["drop", "keep"] = "drop",
        flip: bool = False,
        split: str = "train",
        val_split: str = "validation",
        val_pairs: int = 1000,
        num_workers: int = 0,
        buffer: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}.")
        self.folder, self.batch_size, self.size, self.ties, self.flip = folder, batch_size, size, ties, flip
        self.split, self.val_split, self.val_pairs = split, val_split, val_pairs
        self.num_workers, self.buffer, self.seed = num_workers, buffer, seed

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`; images are not read."""
        for split in (self.split, self.val_split):
            parquet_files(self.folder, split)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs; begins where the trainer stands."""
        done = 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches
        stream = PairStream(
            parquet_files(self.folder, self.split), self.size, self.ties, self.flip, self.seed, self.buffer,
            skip=(done, self.batch_size),
        )  # fmt: skip
        return self._loader(stream, self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """The same validation pairs on every rank, see `StepDataModule.ordered_loader`."""
        files = parquet_files(self.folder, self.val_split)
        stream = PairStream(files, self.size, self.ties, buffer=self.buffer, passes=1, shared=False)
        return self._loader(_First(stream, self.val_pairs), 0)

    def _loader(self, stream: PairStream | _First, workers: int) -> DataLoader[Any]:
        return DataLoader(
            stream,
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=isinstance(stream, PairStream),  # endless
        )


class PickAPicPrompts:
    """Captions of held-out pairs, each once: prompts for evaluation.

    Args:
        folder: See `PickAPic`.
        split: Files begin with this.
        count: Prompts, drawn by ``seed``; all if there are fewer.
        seed: Of the draw.
    """

    def __init__(self, folder: str, split: str = "validation", count: int = 500, seed: int = 0) -> None:
        self.folder, self.split, self.count, self.seed = folder, split, count, seed

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`; the captions are not read."""
        parquet_files(self.folder, self.split)

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`."""
        files = parquet_files(self.folder, self.split)
        captions = sorted(
            {text for file in files for text in pq.read_table(file, columns=["caption"])["caption"].to_pylist() if text}
        )
        order = torch.randperm(len(captions), generator=keyed_generator(self.seed, "draw")).tolist()
        return [PromptRow(captions[k], "people", {}) for k in sorted(order[: self.count])]
