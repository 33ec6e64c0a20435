"""Samples images, has them judged, keeps what was said: for anything that draws, on any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.config.runs import code_version
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.samplers import Sampler
from fairanon.files import atomic_write, content_key
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.mirror import kept
from fairanon.progress import progress_bar
from fairanon.prompts import SETS
from fairanon.seeding import Key

THUMBNAILS = 8
"""Images of each prompt that are kept for the grids."""
_THUMBNAIL_SIDE = 128


@dataclass(frozen=True)
class Ranks:
    """Which part of the work is this process's.

    Attributes:
        rank: Its number.
        count: Of all processes.
        barrier: Waits for the others; its argument says where. None: they do not wait for one another.
    """

    rank: int = 0
    count: int = 1
    barrier: Callable[[str], object] | None = None

    @contextmanager
    def kept(self, folder: Path) -> Iterator[None]:
        """Inside, all work on a folder that the first one keeps in the store, if there is one; all have ended afterwards."""
        with kept(folder) if self.rank == 0 or self.barrier is None else nullcontext():
            if self.barrier is not None:
                self.barrier(f"{folder} is there")
            yield
            if self.barrier is not None:
                self.barrier(f"{folder} is done")


@dataclass
class Samples:
    """Judged images of one model.

    Attributes:
        judged: What each measure observed; None of one that looks at none of them.
        count: Images of all of it.
        thumbnails: uint8 (T, 3, S, S), the first images of each prompt.
        thumbnail_prompt: int64 (T,).
    """

    judged: list[Judged[Any] | None]
    count: int
    thumbnails: Tensor
    thumbnail_prompt: Tensor


@dataclass(frozen=True)
class Drawn:
    """Where the judged images of a model are.

    Attributes:
        place: A folder of chunks.
        chunks: How many.
        count: Images of all.
    """

    place: Path
    chunks: int
    count: int


@dataclass
class Engine:
    """Has images of prompts judged, each once.

    Every image is judged as soon as it is sampled; judged chunks are files named by everything they depend on, so the
    base model is measured once for all experiments and a killed evaluation goes on where it was.

    Args:
        rows: The prompt table.
        measures: What is observed.
        images: Images per prompt.
        specific_images: Images per prompt of the set "specific".
        batch_size: Images sampled at once.
        seed: Of the starting noise.
        ranks: Which part of the chunks is this process's.
        thumbnail_side: Pixels of what the grids show, where images have several sizes; None: those of up to 128 stay.
    """

    rows: list[PromptRow]
    measures: list[Measure[Any]]
    images: int = 1
    specific_images: int = 1
    batch_size: int = 32
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    thumbnail_side: int | None = None

    def sets(self, of: Callable[[Measure[Any]], Sequence[str]] = lambda measure: measure.sets) -> tuple[str, ...]:
        """Sets of prompts that are there and that a measure looks at."""
        there, wanted = {row.set for row in self.rows}, {name for measure in self.measures for name in of(measure)}
        return tuple(name for name in SETS if name in there & wanted)

    def plan(self, sets: Sequence[str]) -> list[tuple[int, int]]:
        """(row of the table, number of the image) of every image to sample."""
        return [
            (row, number)
            for row, line in enumerate(self.rows)
            if line.set in sets
            for number in range(self._count(line))
        ]

    def _count(self, row: PromptRow) -> int:
        if row.images is not None:
            return row.images
        return self.specific_images if row.set == "specific" else self.images

    def judge(
        self, sampler: Sampler, folder: Path, sets: Sequence[str], label: str, other_noise: bool = False
    ) -> Samples:
        """Sample and judge every image of some sets, each rank its share of the chunks.

        Args:
            sampler: Draws them.
            folder: Holds the folders of judged chunks.
            sets: Which prompts.
            label: Of the progress bar.
            other_noise: Another seed.
        """
        return self._joined(self.draw(sampler, folder, sets, label, other_noise))

    def draw(self, sampler: Sampler, folder: Path, sets: Sequence[str], label: str, other_noise: bool = False) -> Drawn:
        """Sample and judge what no file has yet of this process's chunks, and wait for the others; arguments as `judge`."""
        plan, seed = self.plan(sets), self.seed + other_noise
        digests = {row: self.rows[row].digest() for row, _ in plan}
        place = folder / content_key(
            code_version(), [measure.recipe() for measure in self.measures], self.batch_size, seed, sampler.origin(),
            [(row, self.rows[row].set, self.rows[row].prompt, digests[row], number) for row, number in plan],
        )  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        chunks = [plan[k : k + self.batch_size] for k in range(0, len(plan), self.batch_size)]
        mine = range(self.ranks.rank, len(chunks), self.ranks.count)
        for measure in self.measures:
            measure.to(sampler.device)
        with self.ranks.kept(place):
            todo = [k for k in mine if not (place / f"{k}.safetensors").exists()]
            for k in progress_bar(todo, desc=label, unit="batch", disable=not todo or self.ranks.rank > 0):
                self._judge_chunk(sampler, chunks[k], seed, place / f"{k}.safetensors")
        return Drawn(place, len(chunks), len(plan))

    def timed(self, sampler: Sampler) -> Estimate:
        """Seconds that an image of the first batch takes; drawn for that alone, after one of its images."""
        plan = self.plan(self.sets()[:1])[: self.batch_size]
        rows = [self.rows[row].loaded() for row, _ in plan]
        sampler.sample(rows[:1], self._keys(plan[:1], self.seed))
        start = time.perf_counter()
        sampler.sample(rows, self._keys(plan, self.seed))
        return Estimate((time.perf_counter() - start) / len(plan), None, None, len(plan))

    def numbers(self, samples: Samples, noise: Samples | None = None) -> list[Estimates]:
        """The numbers of each measure.

        Args:
            samples: Of the model.
            noise: Of the base model from other noise, see `Measure.numbers`.

        Raises:
            ValueError: Two measures call two numbers the same.
        """
        numbers: list[Estimates] = []
        others = [None] * len(self.measures) if noise is None else noise.judged
        for measure, judged, other in zip(self.measures, samples.judged, others, strict=True):
            numbers.append({} if judged is None else measure.numbers(judged, other))
        keys = [key for estimates in numbers for key in estimates]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"evaluate.measures: two of them measure {min(twice)}; take one of them out.")
        return numbers

    def look(self, sampler: Sampler, plan: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Judged[Any] | None]]:
        """Draw some images of one set and have them judged by whoever has a quick word on them, keeping nothing.

        Args:
            sampler: Draws them.
            plan: Which, see `plan`.

        Returns:
            uint8 (N, 3, H, W), and what each measure observed; None of those that have none.
        """
        rows, parts = [self.rows[row].loaded() for row, _ in plan], []
        for first in range(0, len(plan), self.batch_size):
            part = slice(first, first + self.batch_size)
            parts.append(sampler.sample(rows[part], self._keys(plan[part], self.seed)))
        pixels, numbers = torch.cat(parts), torch.tensor([row for row, _ in plan])
        judged: list[Judged[Any] | None] = []
        for measure in self.measures:
            wanted = type(measure).quick is not Measure.quick and rows[0].set in measure.sets
            measure.to(sampler.device)
            judged.append(Judged(self.rows, numbers, measure.observe(pixels, rows)) if wanted else None)
        return pixels, judged

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> list[Judged[Any] | None]:
        """What each measure says of images uint8 (N, 3, H, W) of N prompts; those that it looks at, numbered as they come."""
        rows = [row.loaded() for row in rows]
        judged: list[Judged[Any] | None] = []
        for measure in self.measures:
            here = torch.tensor([k for k, row in enumerate(rows) if row.set in measure.sets], dtype=torch.long)
            judged.append(None)
            if len(here):
                looked_at = pixels if len(here) == len(rows) else pixels[here]
                judged[-1] = Judged(rows, here, measure.observe(looked_at, [rows[k] for k in here.tolist()]))
        return judged

    # --- chunks ------------------------------------------------------------------------------------------

    def _judge_chunk(self, sampler: Sampler, chunk: list[tuple[int, int]], seed: int, path: Path) -> None:
        held = {row: self.rows[row].loaded() for row, _ in chunk}
        rows = [held[row] for row, _ in chunk]
        pixels = sampler.sample(rows, self._keys(chunk, seed))
        keep = torch.tensor([number < THUMBNAILS for _, number in chunk])
        prompt = torch.tensor([row for row, _ in chunk])
        tensors = {"thumbnails": thumbnails(pixels[keep], self.thumbnail_side), "thumbnail_prompt": prompt[keep]}
        for k, judged in enumerate(self.observe(pixels, rows)):
            if judged is not None:
                tensors[f"{k}/prompt"] = prompt[judged.prompt]
                tensors |= {f"{k}/values/{name}": value for name, value in judged.values.flat().items()}
        with atomic_write(path) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial)

    def _keys(self, chunk: Sequence[tuple[int, int]], seed: int) -> list[tuple[Key, ...]]:
        """What the noise of each image depends on; where many images share a prompt, the row's number."""
        by_row = self.rows[chunk[0][0]].holds("image")
        return [(seed, "evaluate", row if by_row else self.rows[row].prompt, number) for row, number in chunk]

    def parts(self, drawn: Drawn) -> Iterator[Samples]:
        """The judged images, chunk by chunk.

        Raises:
            OSError: A file is damaged; the message names it.
        """
        for k in range(drawn.chunks):
            tensors = _tensors(drawn.place / f"{k}.safetensors")
            yield Samples(self._judged(tensors), 0, tensors["thumbnails"], tensors["thumbnail_prompt"])

    def _joined(self, drawn: Drawn) -> Samples:
        parts: dict[str, list[Tensor]] = {}
        for k in range(drawn.chunks):
            for name, value in _tensors(drawn.place / f"{k}.safetensors").items():
                parts.setdefault(name, []).append(value)
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        return Samples(self._judged(tensors), drawn.count, tensors["thumbnails"], tensors["thumbnail_prompt"])

    def _judged(self, tensors: Mapping[str, Tensor]) -> list[Judged[Any] | None]:
        judged: list[Judged[Any] | None] = []
        for k, measure in enumerate(self.measures):
            judged.append(None)
            if f"{k}/prompt" in tensors:
                head = f"{k}/values/"
                flat = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
                judged[-1] = Judged(self.rows, tensors[f"{k}/prompt"], measure.record.of(flat))
        return judged


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path} is damaged ({error}); delete it and run the same command again.") from None


def thumbnails(pixels: Tensor, side: int | None = None) -> Tensor:
    """Images no larger than the grids show them, and square; of a side that is asked for in any case."""
    small = pixels.shape[-1] == pixels.shape[-2] <= _THUMBNAIL_SIDE
    if side is None and small:
        return pixels
    side = side or _THUMBNAIL_SIDE
    if not len(pixels):  # of a chunk that has none for the grids: it is joined with those that have
        return pixels.new_empty(0, 3, side, side)
    return F.interpolate(pixels.float(), side, mode="area").round().to(torch.uint8)
