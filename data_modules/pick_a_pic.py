"""Pick-a-Pic v1 and v2: pairs of generated images that people chose between, streamed from parquet files.

At real size (583,747 pairs, 190 GB) nothing fits into memory: row groups are dealt to streams, in an order that is shuffled
anew in every pass, and the streams to ranks and workers. Samples are taken from the streams in turns, so that their order does
not depend on who reads which stream.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_modules.base import world
from data_modules.folders import given_as, missing_data
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
from fairanon.places import files_below, is_stored, place, reach
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
        buffer: Rows, still compressed, among which each stream shuffles.
        streams: Into how many streams row groups are dealt: a multiple of ranks x workers. None is as many as those; then it is
            another order with another number of them.
        passes: How many; None is endless. A pair that cannot be read is replaced by the next one, counted and named
            in the log; more than 1 % ends the run.
        shared: Each rank reads its share; False is all of it, as held-out data is read.
        skip: Samples that this rank has read already; they are passed over.
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
        skip: int = 0,
        streams: int | None = None,
    ) -> None:
        self.streams = streams
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

    def dealt(self, workers: int) -> int:
        """How many streams there are, for so many loader processes of each rank; 0 is this process alone.

        Raises:
            ValueError: They cannot be dealt to so many.
        """
        ranks, workers = self._rank[1], max(1, workers)
        streams = self.streams or ranks * workers
        if streams % (ranks * workers):
            raise ValueError(
                f"data.streams: {streams} streams cannot be divided among {ranks * workers} loaders ({ranks} ranks x {workers} loader "
                "processes); take fewer --data.num_workers, and leave the streams of a run as they are."
            )
        if len(self.groups) < streams:  # the others would wait for an empty one for ever
            raise ValueError(
                f"data.streams: {streams} streams need as many row groups, and the files have {len(self.groups)} (without data.streams "
                "there are ranks x loader processes); take fewer, or write the files with smaller row groups."
            )
        return streams

    def share(self) -> tuple[list[int], int]:
        """The streams that this process reads, in the order of their first samples, and how many there are.

        Raises:
            ValueError: See `dealt`.
        """
        (rank, ranks), info = self._rank, get_worker_info()
        first, workers = (0, 1) if info is None else (info.id, info.num_workers)
        streams = self.dealt(workers)
        each = streams // ranks  # of this rank; its samples come from them in turns, and from its workers in turns, too
        return [(self.skip + k) % each * ranks + rank for k in range(first, each, workers)], streams

    def keyed_rows(self, number: int, stream: int, streams: int, passed_over: Callable[[], bool]) -> Iterator[Row]:
        """A stream's rows of pass ``number``, images still compressed, in the order of that pass.

        Args:
            number: Of the pass.
            stream: Which.
            streams: How many there are.
            passed_over: Whether the next row is only counted: then its images are not read.
        """
        order = torch.randperm(len(self.groups), generator=keyed_generator(self.seed, "groups", number)).tolist()
        generator = keyed_generator(self.seed, "rows", number, stream)
        held: list[Row] = []
        for k in order[stream::streams]:
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
        with open_parquet(self.files[group.file], "data.folder") as file:
            for page in file.iter_batches(_PAGE, row_groups=[group.number], columns=columns):
                if start + len(page) > first:
                    for row, record in enumerate(page.to_pylist(), start):
                        if row >= first:
                            yield f"{group.file}-{group.first + row}", record
                start += len(page)

    def _with_images(self, rows: list[Row]) -> list[Row]:
        """Rows of which some were read without their images, with them; each of their groups is read once."""
        wanted = {name for name, record in rows if IMAGES[0] not in record}
        records: dict[str, dict[str, Any]] = {}
        for group in self.groups if wanted else ():
            here = {f"{group.file}-{row}" for row in range(group.first, group.first + group.rows)} & wanted
            for name, record in self._read(group) if here else ():
                if name in here:
                    records[name] = record
        return [(name, records.get(name, record)) for name, record in rows]

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor, str]]:
        mine, streams = self.share()
        (rank, ranks), each = self._rank, streams // self._rank[1]
        open_ones = deque(
            self._samples(stream, streams, len(range((stream - rank) // ranks, self.skip, each))) for stream in mine
        )
        while open_ones:
            with suppress(StopIteration):
                yield next(open_ones[0])
                open_ones.append(open_ones[0])
            open_ones.popleft()

    def _samples(self, stream: int, streams: int, had: int) -> Iterator[tuple[str, Tensor, Tensor, str]]:
        """The samples of a stream, but for those that were had already."""
        passes = itertools.count() if self.passes is None else range(self.passes)
        broken: list[str] = []
        for number in passes:
            empty = True
            for name, record in self.keyed_rows(number, stream, streams, lambda: had > 0):  # noqa: B023  (as it is then)
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
                for sample_key in (*broken, key):
                    yield sample_key, *sample
                broken.clear()
            if empty:
                raise ValueError("data.folder: a stream of the files holds no pair that somebody won.")

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
            info = get_worker_info()
            share = self.rows // (self._rank[1] * (1 if info is None else info.num_workers))
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


class Batches:
    """Batches of a stream, to which its workers contribute in turns: the same for any number of them.

    Each worker makes its part of a batch where their number divides the batch size, otherwise one sample at a time.

    Args:
        stream: Of pairs.
        batch_size: Pairs of a batch.
        workers: Loader processes.
        drop_last: Leave out what does not fill a batch.
    """

    def __init__(self, stream: IterableDataset[Any], batch_size: int, workers: int, drop_last: bool) -> None:
        if isinstance(stream, PairStream):
            stream.dealt(workers)
        self.batch_size, self.drop_last = batch_size, drop_last
        self._part = batch_size if not workers else batch_size // workers if batch_size % workers == 0 else 1
        ahead: dict[str, Any] = {}
        if workers:
            ahead = {"persistent_workers": True, "prefetch_factor": max(2, 2 * batch_size // self._part // workers)}
        self._loader = DataLoader(
            stream, self._part, collate_fn=collate, num_workers=workers, pin_memory=torch.cuda.is_available(), **ahead
        )

    @property
    def _iterator(self) -> Any:
        """Lightning ends a loader's processes through it."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._loader._iterator = value

    def __iter__(self) -> Iterator[PreferenceBatch]:
        parts, count = iter(self._loader), self.batch_size // self._part
        while pieces := list(itertools.islice(parts, count)):
            batch = pieces[0] if count == 1 else _in_turns(pieces)
            if len(batch.keys) == self.batch_size or not self.drop_last:
                yield batch


def _in_turns(parts: Sequence[PreferenceBatch]) -> PreferenceBatch:
    """One batch: the first sample of each part, then the second, and so on."""
    order = sorted((k, part) for part, batch in enumerate(parts) for k in range(len(batch.keys)))
    starts = list(itertools.accumulate((len(batch.keys) for batch in parts), initial=0))
    rows = torch.tensor([starts[part] + k for k, part in order])

    def joined(name: str) -> list[str]:
        every = [word for batch in parts for word in getattr(batch, name)]
        return [every[row] for row in rows.tolist()]

    winners, losers = (torch.cat([getattr(batch, name) for batch in parts])[rows] for name in ("winners", "losers"))
    return PreferenceBatch(joined("keys"), winners, losers, joined("captions"))


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


def parquet_files(folder: str, split: str, key: str = "data.folder") -> list[Path]:
    """The files of a split, from a folder or from what the hub's cache holds of a data set.

    Args:
        folder: A folder, its address in an object store, or a hub id such as ``OWNER/pick-a-pic-v2`` that was downloaded before.
        split: How the file names begin.
        key: The setting that named it, for error messages.
    """
    with given_as(key):
        root = place(folder)
    if is_stored(root):
        reach(root, key)
    else:
        root = root.expanduser()
    if not is_stored(root) and not root.is_dir() and folder.count("/") == 1 and not folder.startswith((".", "~")):
        try:
            root = Path(snapshot_download(folder, repo_type="dataset", local_files_only=True))
        except LocalEntryNotFoundError:
            raise FileNotFoundError(
                f"{key}: {folder} is no folder, and no data set of that id is in the cache; download it with "
                f"`hf download --repo-type dataset {folder}` where there is a network."
            ) from None
    there = files_below(root) if is_stored(root) else [*root.glob("*.parquet"), *root.glob("data/*.parquet")]
    wanted = re.compile(rf"(data/)?{re.escape(split)}-[^/]*\.parquet")
    files = sorted(path for path in there if wanted.fullmatch(path.relative_to(root).as_posix()))
    if not files:
        raise missing_data(root, key, _TREE.replace("SPLIT", split), "Download it, or make it.")
    return files


class PickAPic(LightningDataModule):
    """Pick-a-Pic, or anything in its schema.

    The order is fixed by ``seed`` and the number of streams, and a run that goes on sees what an uninterrupted one would, with
    another number of ranks and workers too if ``streams`` is given and the global batch stays the same.

    Args:
        folder: A folder of parquet files, its address in an object store, or the hub id of a downloaded data set.
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
        streams: See `PairStream`. Each keeps a row group and its buffer in memory.
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
        streams: int | None = None,
    ) -> None:
        super().__init__()
        if streams is not None and streams < 1:
            raise ValueError(f"data.streams must be at least 1, got {streams}.")
        self.streams = streams
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}.")
        self.folder, self.batch_size, self.size, self.ties, self.flip = folder, batch_size, size, ties, flip
        self.split, self.val_split, self.val_pairs = split, val_split, val_pairs
        self.num_workers, self.buffer, self.seed = num_workers, buffer, seed

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`; images are not read."""
        for split in (self.split, self.val_split):
            parquet_files(self.folder, split)
        if self.streams is not None:  # otherwise nobody knows yet how many loaders there will be
            PairStream(parquet_files(self.folder, self.split), self.size, streams=self.streams).dealt(self.num_workers)

    def train_dataloader(self) -> Batches:
        """Endless pairs; begins where the trainer stands."""
        done = 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches
        stream = PairStream(
            parquet_files(self.folder, self.split), self.size, self.ties, self.flip, self.seed, self.buffer,
            skip=done * self.batch_size, streams=self.streams,
        )  # fmt: skip
        return Batches(stream, self.batch_size, self.num_workers, drop_last=True)

    def val_dataloader(self) -> Batches:
        """The same validation pairs on every rank, see `StepDataModule.ordered_loader`."""
        files = parquet_files(self.folder, self.val_split)
        stream = PairStream(files, self.size, self.ties, buffer=self.buffer, passes=1, shared=False)
        return Batches(_First(stream, self.val_pairs), self.batch_size, 0, drop_last=False)


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
        parquet_files(self.folder, self.split, "evaluate.prompts.folder")

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`."""
        files = parquet_files(self.folder, self.split, "evaluate.prompts.folder")
        captions = sorted(
            {
                text
                for file in files
                for text in open_parquet(file, "evaluate.prompts.folder").read(["caption"])["caption"].to_pylist()
                if text
            }
        )
        order = torch.randperm(len(captions), generator=keyed_generator(self.seed, "draw")).tolist()
        return [PromptRow(captions[k], "people", {}) for k in sorted(order[: self.count])]
