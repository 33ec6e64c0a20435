"""What the data modules share: the order of samples, and the loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from fairanon.seeding import KeyedOrder, keyed_generator

_STORED = 10_000_000
"""Rows up to which the order of a pass is stored, 80 MB in every loader process at most; of more each place is computed."""


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (row, pass), a function of the step number alone.

    The passes over the data set follow each other without a break, each in its own order; global batch ``s`` is
    the s-th run of ``world * batch_size`` rows, and rank r takes its r-th part. Two ranks with half the batch
    therefore see what one rank sees, and a run that goes on at step s sees what an uninterrupted one would.

    Args:
        rows: Size of the data set.
        batch_size: Of one rank.
        seed: Of the order.
        first: The step (micro-batch) to begin with.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, first: int = 0, rank: int = 0, world: int = 1) -> None:
        self.rows, self.batch_size, self.seed, self.first = rows, batch_size, seed, first
        self.rank, self.world = rank, world
        self._order: tuple[int, Sequence[int] | torch.Tensor] = (-1, [])

    def _row(self, position: int) -> tuple[int, int]:
        number, offset = divmod(position, self.rows)
        if self._order[0] != number:
            if self.rows > _STORED:
                self._order = (number, KeyedOrder(self.rows, self.seed, "order", number))
            else:
                order = torch.randperm(self.rows, generator=keyed_generator(self.seed, "order", number))
                self._order = (number, order)
        return int(self._order[1][offset]), number

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The rows of one step on this rank."""
        start = (step * self.world + self.rank) * self.batch_size
        return [self._row(position) for position in range(start, start + self.batch_size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first
        while True:
            yield self.batch(step)
            step += 1


def world() -> tuple[int, int]:
    """Rank and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class StepDataModule(LightningDataModule):
    """Training data ordered by `StepSampler`, whole batches, resumable at any step.

    Args:
        batch_size: Samples of one rank and micro-step.
        num_workers: Loader processes.
        seed: Of the order of the samples.
    """

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}.")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def endless_loader(self, data: Dataset[Any], collate: Callable[[Sequence[Any]], Any]) -> DataLoader[Any]:
        """The training loader; begins where the trainer stands. ``data[row, pass]`` is a sample."""
        rank, count = world()
        first = 0
        if self.trainer is not None:
            first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        sampler = StepSampler(len(data), self.batch_size, self.seed, first, rank, count)  # type: ignore[arg-type]
        return DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def ordered_loader(self, data: Dataset[Any], collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """The loader of held-out data: every row once, in order, as pass 0."""
        rows = [(row, 0) for row in range(len(data))]  # type: ignore[arg-type]  # every data set here has a length
        batches = [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
        return DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=self.num_workers)
