"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from fairanon.engines.crew import DeadError
from fairanon.engines.work import Start, Task, Worker

_GRACE = 30
"""Seconds until a process that goes on with its unit is ended."""


class Processes:
    """One process for each device.

    Args:
        start: What each is told.
        devices: Where each works.
    """

    def __init__(self, start: Start, devices: Sequence[str]) -> None:
        self.start, self.devices = start, devices
        self._context = multiprocessing.get_context("spawn")
        self._boards = [
            self._context.RawArray("q", len(start.kinds) + 2) for _ in devices
        ]  # things by kind, again; stop
        self._told = [[0] * (len(start.kinds) + 1) for _ in devices]
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._at: dict[Future[None], int] = {}

    def ready(self, wanted: int) -> list[int]:
        """See `Hands`."""
        fresh = [k for k in range(min(wanted, len(self.devices))) if k not in self._pools]
        for worker in fresh:
            self._start(worker)
        return fresh

    def _start(self, worker: int) -> None:
        first = (self.start, self.devices[worker], self._boards[worker], len(self.devices))
        self._pools[worker] = ProcessPoolExecutor(1, self._context, _begin, first)

    def give(self, worker: int, task: Task) -> Future[None]:
        """See `Hands`."""
        try:
            future = self._pools[worker].submit(_work, task)
        except BrokenProcessPool:  # it died while it waited
            self._start(worker)
            future = self._pools[worker].submit(_work, task)
        self._at[future] = worker
        return future

    def done(self, tickets: Collection[Future[None]]) -> Collection[Future[None]]:
        """See `Hands`."""
        return wait(tickets, timeout=0.5, return_when=FIRST_COMPLETED).done

    def result(self, ticket: Future[None]) -> None:
        """See `Hands`."""
        worker = self._at.pop(ticket)
        try:
            ticket.result()
        except BrokenProcessPool:
            self._pools.pop(worker).shutdown(wait=False)
            raise DeadError from None

    def seen(self) -> Sequence[tuple[str, bool]]:
        """See `Hands`."""
        outcomes: list[tuple[str, bool]] = []
        kinds = self.start.kinds
        for reported, board in zip(self._told, self._boards, strict=True):
            now = list(board)
            here = [kind for k, kind in enumerate(kinds) for _ in range(now[k] - reported[k])]
            again = min(len(here), now[len(kinds)] - reported[-1])
            reported[:] = [*now[: len(kinds)], reported[-1] + again]
            outcomes += [(kind, k < again) for k, kind in enumerate(here)]
        return outcomes

    def end(self) -> None:
        """See `Hands`."""
        for board in self._boards:
            board[-1] = 1
        workers = [worker for pool in self._pools.values() for worker in pool._processes.values()]
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + _GRACE
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
            if worker.is_alive():  # in the midst of a long unit; what it wrote is whole
                worker.terminate()


class _StoppedError(Exception):
    """Another process has failed."""


_worker: Worker | None = None
_board: Any = None


def _begin(start: Start, device: str, board: Any, processes: int) -> None:
    """A process of ours starts; those that work on the CPU share it."""
    global _worker, _board
    _worker, _board = Worker(start, device), board
    end_with(os.getppid())
    if device == "cpu":
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def end_with(parent: int) -> None:
    """From now on, end this process when the one that began it is gone, however it ended.

    Args:
        parent: Its process number.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: Task) -> None:
    """Do a unit in a process of ours."""
    assert _worker is not None
    kinds = _worker.start.kinds

    def tell(kind: str, again: bool) -> None:
        _board[len(kinds)] += again
        _board[kinds.index(kind)] += 1
        if _board[-1]:
            raise _StoppedError

    _worker.work(task, tell)
