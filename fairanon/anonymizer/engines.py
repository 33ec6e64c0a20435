"""Who works on the blocks of a collection: one process for each device. What dies is replaced, and its block done again."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fairanon.anonymizer.block import Block, Tell, Unit
from fairanon.anonymizer.folder import Job
from fairanon.anonymizer.job import job_of
from fairanon.anonymizer.manifest import FOLDERS
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.anonymizer.sources import Item, Source
from fairanon.config.experiments import UserError
from fairanon.progress import progress

_log = logging.getLogger(__name__)
_DEATHS = 3
"""So often a block may end the process that works on it."""
_PLACES = (*FOLDERS, "retried")


class Processes:
    """Does units of work in one process for each device.

    Args:
        request: What is wanted.
        devices: Where each process works.
        job: Of the process that asks.
    """

    def __init__(self, request: AnonymizeRequest, devices: Sequence[str], job: Job) -> None:
        self.request, self.devices, self.job = request, devices, job

    def __call__(self, work: Sequence[tuple[Block, Unit]], tell: Tell) -> None:
        """Do units of work; the largest wait is one block.

        Raises:
            UserError: A block ends whatever process works on it.
        """
        waiting, idle = deque(work), list(range(min(len(self.devices), len(work))))
        context = multiprocessing.get_context("spawn")
        board = [context.RawArray("q", len(_PLACES) + 1) for _ in self.devices]
        told = [[0] * len(_PLACES) for _ in self.devices]
        pools: dict[int, ProcessPoolExecutor] = {}
        busy: dict[Future[None], tuple[int, Block, Unit]] = {}
        deaths: Counter[int] = Counter()
        people = getattr(self.job.treatment.hider, "people", None)
        try:
            while waiting or busy:
                while waiting and idle:
                    k, (block, unit) = idle.pop(), waiting.popleft()
                    if k not in pools:
                        first = (self.request, self.job.source.roots, self.devices[k], people, board[k])
                        pools[k] = ProcessPoolExecutor(1, context, _begin, first)
                    future = pools[k].submit(_work, block.number, list(block.items.values()), unit)
                    busy[future] = (k, block, unit)
                done, _ = wait(busy, timeout=0.5, return_when=FIRST_COMPLETED)
                self._tell(board, told, tell)
                for future in done:
                    k, block, unit = busy.pop(future)
                    idle.append(k)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        deaths[block.number] += 1
                        if deaths[block.number] == _DEATHS:
                            raise UserError(
                                f"block {block.number} of the collection ended {_DEATHS} processes (killed from outside, or no memory "
                                "left?); give fewer --workers or fewer --device, the same command goes on."
                            ) from None
                        _log.warning("a process died; another one goes on with its files")
                        pools.pop(k).shutdown(wait=False)
                        waiting.append((block, unit))
        except BaseException:
            for one in board:
                one[-1] = 1  # the others stop at their next picture
            raise
        finally:
            for pool in pools.values():
                pool.shutdown()

    @staticmethod
    def _tell(board: Sequence[Any], told: Sequence[list[int]], tell: Tell) -> None:
        for seen, now in zip(told, board, strict=True):
            retried = now[len(FOLDERS)] - seen[-1]
            seen[-1] += retried
            for k, place in enumerate(FOLDERS):
                while seen[k] < now[k]:
                    tell(place, retried > 0)
                    seen[k], retried = seen[k] + 1, retried - 1


class _StoppedError(Exception):
    """Another process has failed."""


_first: tuple[Any, ...] = ()
_stack = ExitStack()
_job: Job | None = None


def _begin(*first: Any) -> None:
    """In a process of ours; models are loaded with the first unit, so that what is wrong with them can be told."""
    global _first
    _first = first


def _work(number: int, items: list[Item], unit: Unit) -> None:
    """Do a unit in a process of ours."""
    global _job
    request, roots, device, people, board = _first

    def tell(place: str, retried: bool) -> None:
        board[_PLACES.index("retried")] += retried
        board[_PLACES.index(place)] += 1
        if board[-1]:
            raise _StoppedError

    with progress(False):
        if _job is None:
            _job = _started(request, roots, device)
        if people is not None:
            _job.treatment.hider.people = people  # type: ignore[attr-defined]  # with a key it draws
        _job.block(number, items).run(unit, tell)


def _started(request: AnonymizeRequest, roots: tuple[Path, ...], device: str) -> Job:
    job = job_of(request, Source(roots=roots), device, _stack)
    job.join()  # named people are those of the first process, too
    return job
