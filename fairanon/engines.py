"""Gives tasks to worker processes: of this machine, or of a Ray cluster.

`Crew` hands out tasks; `Hands` are the workers that take them, `Processes` or `RayActors`. A worker that dies is replaced, and
another one does its task again: a task that is done twice writes the same files.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from fairanon.config.experiments import UserError
from fairanon.config.runs import BusyError
from fairanon.progress import progress, progress_bar

_log = logging.getLogger(__name__)
_DEATHS = 3
"""So often a unit may end the process that works on it."""
_GRACE = 30
"""Seconds until a process that goes on with its unit is ended."""
_PATIENCE = 120
"""Seconds without a worker until that is said."""
Tell = Callable[[str, bool], None]
"""Is told of each thing that is done what became of it, one of `Start.kinds`, and whether it took several attempts."""


@dataclass(frozen=True)
class Task:
    """One piece of work, done by one worker at a time.

    Attributes:
        number: Tells it from the others.
        name: For messages, "block 3 of the collection".
        about: What the worker needs to know; it is pickled.
    """

    number: int
    name: str
    about: Any


Work = Callable[[Task, Tell], None]
"""Does a task. It returns nothing: its results are files."""


@dataclass(frozen=True)
class Start:
    """What a process that works for us is told when it starts.

    Attributes:
        make: A function of a module. It loads models and returns a `Work`. It is called with ``arguments``, the device, and an
            `ExitStack` for what has to be undone.
        arguments: For ``make``; they are pickled.
        kinds: The words that `Tell` may be called with.
        folder: Where the command was given, from which relative paths count.
    """

    make: Callable[..., Work]
    arguments: tuple[Any, ...]
    kinds: tuple[str, ...] = ("done",)
    folder: Path = field(default_factory=Path.cwd)


class Worker:
    """Does tasks in this process; its models are loaded with the first one.

    Args:
        start: How it begins.
        device: Where its models work.
    """

    def __init__(self, start: Start, device: str) -> None:
        self.start, self.device, self._stack = start, device, ExitStack()
        self._work: Work | None = None

    def work(self, task: Task, tell: Tell) -> None:
        """Do a unit."""
        with progress(False):
            if self._work is None:
                self._work = self.start.make(*self.start.arguments, self.device, self._stack)
            self._work(task, tell)


class DeadError(Exception):
    """What worked on a unit is gone."""


class Hands(Protocol):
    """Workers somewhere, each known by a number."""

    def ready(self, wanted: int) -> list[int]:
        """Start what is missing; the workers that have become ready since this was asked last.

        Args:
            wanted: So many are of use.
        """
        ...

    def give(self, worker: int, task: Task) -> Any:
        """Let a worker begin; a ticket."""
        ...

    def done(self, tickets: Collection[Any]) -> Collection[Any]:
        """Wait a little; the tickets of what has ended."""
        ...

    def result(self, ticket: Any) -> None:
        """Raise what went wrong.

        Raises:
            DeadError: The worker is gone.
        """
        ...

    def seen(self) -> Sequence[tuple[str, bool]]:
        """What `Tell` is to be told since this was asked last."""
        ...

    def end(self) -> None:
        """Send all away; those that still work stop at the next thing that they tell of."""
        ...


class Crew:
    """Hands out tasks, one at a time to each worker.

    Args:
        hands: Whose.
    """

    def __init__(self, hands: Hands) -> None:
        self.hands, self._idle = hands, list[int]()

    def __call__(self, tasks: Sequence[Task], tell: Tell) -> list[Task]:
        """Do units of work.

        Returns:
            Those on which other processes work; the rest is done.

        Raises:
            UserError: A unit ends whatever works on it.
        """
        hands, waiting, idle = self.hands, deque(tasks), self._idle
        busy: dict[Any, tuple[int, Task]] = {}
        deaths: Counter[int] = Counter()
        held: list[Task] = []
        while waiting or busy:
            idle += hands.ready(len(waiting) + len(busy))
            while waiting and idle:
                worker, task = idle.pop(), waiting.popleft()
                busy[hands.give(worker, task)] = (worker, task)
            for ticket in hands.done(busy):
                worker, task = busy.pop(ticket)
                try:
                    hands.result(ticket)
                    idle.append(worker)
                except BusyError:
                    idle.append(worker)
                    held.append(task)
                except DeadError:
                    deaths[task.number] += 1
                    if deaths[task.number] == _DEATHS:
                        raise UserError(
                            f"{task.name} ended {_DEATHS} processes (killed from outside, or no memory left?); let fewer work at once, "
                            "the same command goes on."
                        ) from None
                    _log.warning("a process died; another one goes on with its files")
                    waiting.appendleft(task)
            for kind, again in hands.seen():
                tell(kind, again)
        return held


def hands_of(start: Start, engine: str, devices: Sequence[str], device: str, cpus: int | None = None) -> Hands:
    """Who works.

    Args:
        start: What each is told.
        engine: What ``--engine`` says: here, ray or ray:HOST:PORT.
        devices: Of this machine, a process each.
        device: What ``--device`` says.
        cpus: Of each of Ray's actors; None: as many as the smallest node has, and this machine must have the same kind of devices.
    """
    if engine == "here":
        return Processes(start, devices)
    return RayActors(start, engine.partition(":")[2], device, cpus)


def devices_of(names: str, on_the_cpu: bool = False) -> list[str]:
    """Where models work: one process each.

    Args:
        names: What ``--device`` says.
        on_the_cpu: ``auto`` is the CPU.

    Raises:
        UserError: A device is none, or not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    if names == "auto":
        return ["cpu"] if on_the_cpu or not gpus else [f"cuda:{k}" for k in range(gpus)]
    devices = [re.sub(r"^gpu", "cuda", name.strip()) for name in names.split(",")]
    for name in devices:
        number = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
        if number is None:
            raise UserError(f"--device: {name!r} is no device; take auto, cpu, cuda, cuda:0, cuda:1, ...")
        if name != "cpu" and int(number[1] or 0) >= gpus:
            raise UserError(
                f"--device {names}: this machine has {gpus or 'no'} CUDA devices; take cpu, or leave it out."
            )
    return devices


_EACH = 4
"""Tasks for each process of this machine: a slow process then does fewer of them."""
_OF_A_CLUSTER = 64
"""Tasks for a Ray cluster, whose number of workers may change."""


def in_shares(
    start: Start, engine: str, devices: Sequence[str], device: str, part: tuple[int, int] | None, desc: str
) -> None:
    """Have work done that can be divided by numbers: `Task.about` is (share, from 0 on, and of how many).

    Args:
        start: How workers begin.
        engine: What ``--engine`` says.
        devices: Of this machine, a process each.
        device: What ``--device`` says.
        part: Which part of the whole is done, from 1 on, and of how many; None: all of it.
        desc: Of the bar.
    """
    number, parts = part or (1, 1)
    shares = _EACH * len(devices) if engine == "here" else _OF_A_CLUSTER
    tasks = [Task(k, f"share {k + 1} of {shares}", (number - 1 + parts * k, parts * shares)) for k in range(shares)]
    hands = hands_of(start, engine, devices, device)
    try:
        with progress_bar(total=shares, desc=desc, unit="share") as bar:
            held = Crew(hands)(tasks, lambda _, __: bar.update())
        if held:
            raise BusyError(f"other processes work on {len(held)} shares; give the command again when they have ended.")
    finally:
        hands.end()


# --- processes of this machine ---------------------------------------------------------------------------


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


# --- a cluster of Ray's ----------------------------------------------------------------------------------


class RayActors:
    """Actors of a Ray cluster, whose nodes all see the same folders. The request, names, boxes and what is told travel.

    Args:
        start: What each is told.
        address: Of the cluster; "" begins one on this machine.
        device: "auto" takes a GPU for each actor where the cluster has GPUs.
        cpus: Of each actor, and its threads; beside a GPU at most the GPU's share of them. None: as many as the smallest node has.
    """

    def __init__(self, start: Start, address: str, device: str, cpus: int | None) -> None:
        ray = _ray()
        if not ray.is_initialized():
            if not address:
                _log.warning("starting Ray on this machine")
            where = {"address": address} if address else {"include_dashboard": False}
            host, _, port = address.rpartition(":")
            try:
                if host and port.isdecimal():  # Ray itself tries for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"--engine: no Ray cluster answers at {address} ({str(error).splitlines()[0]}); begin one with `ray start --head` "
                    "and give its HOST:PORT."
                ) from None
        there = ray.cluster_resources()
        self.start, self.gpus = start, device != "cpu" and there.get("GPU", 0) >= 1
        each = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        most = max(each, default=0)
        if cpus is None:
            if device != "cpu" and self.gpus != _has_gpus():
                raise UserError(
                    f"--engine: the cluster has {'GPUs' if self.gpus else 'no GPUs'} and this machine has {'none' if self.gpus else 'some'}, "
                    "which compute in another precision; give the command on a machine of the cluster, or --device cpu."
                )
            cpus = max(1, int(min((count for count in each if count >= 1), default=1)))
        elif cpus > most:
            raise UserError(f"--workers: no node of the cluster has {cpus} CPUs; give at most {most:g}.")
        self.cpus = min(cpus, max(1, int(there["CPU"] // there["GPU"]))) if self.gpus else cpus
        self._kind = ray.remote(num_cpus=self.cpus, num_gpus=int(self.gpus), max_restarts=0)(_Actor)
        self._actors: dict[int, Any] = {}
        self._coming: dict[Any, int] = {}
        self._numbers, self._failed, self._since = count(), 0, time.monotonic()
        self._at: dict[Any, int] = {}
        self._seen: list[tuple[str, bool]] = []

    def ready(self, wanted: int) -> list[int]:
        """See `Hands`. Actors wait until the cluster has a place for them; nobody waits for one that has none."""
        ray, there = _ray(), _ray().cluster_resources()
        places = there.get("GPU", 0) if self.gpus else there.get("CPU", 0) // self.cpus
        for worker in islice(self._numbers, max(0, min(wanted, max(1, int(places))) - len(self._actors))):
            self._actors[worker] = self._kind.remote(self.start, "cuda" if self.gpus else "cpu")
            self._coming[self._actors[worker].ready.remote()] = worker
        if not self._coming:
            return []
        ready_tickets, _ = ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)
        come = [self._coming.pop(ticket) for ticket in ready_tickets if self._alive(ticket)]
        if come or len(self._coming) < len(self._actors):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE:
            _log.warning(
                "the cluster has had no place for %d minutes (%d CPUs each); still waiting", _PATIENCE // 60, self.cpus
            )
            self._since = time.monotonic()
        return come

    def _alive(self, ticket: Any) -> bool:
        """Whether an actor has come; one that died on its way is forgotten."""
        ray = _ray()
        try:
            ray.get(ticket)
        except ray.exceptions.RayError as error:
            self._actors.pop(self._coming.pop(ticket))
            self._failed += 1
            if self._failed == _DEATHS:
                raise UserError(
                    f"--engine: {_DEATHS} of Ray's processes ended while they started ({str(error).strip().splitlines()[-1]}); is "
                    "fairanon installed on all nodes, and the folder that the command was given in there?"
                ) from None
            return False
        self._failed = 0
        return True

    def give(self, worker: int, task: Task) -> Any:
        """See `Hands`."""
        ticket = self._actors[worker].work.remote(task)
        self._at[ticket] = worker
        return ticket

    def done(self, tickets: Collection[Any]) -> Collection[Any]:
        """See `Hands`."""
        if not tickets:
            time.sleep(0.5)
            return []
        ended, _ = _ray().wait(list(tickets), num_returns=1, timeout=0.5)
        return list(ended)

    def result(self, ticket: Any) -> None:
        """See `Hands`."""
        ray, worker = _ray(), self._at.pop(ticket)
        try:
            self._seen += ray.get(ticket)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError:  # its process, its node or its memory
            ray.kill(self._actors.pop(worker))
            raise DeadError from None

    def seen(self) -> Sequence[tuple[str, bool]]:
        """See `Hands`."""
        outcomes, self._seen = self._seen, []
        return outcomes

    def end(self) -> None:
        """See `Hands`."""
        for actor in self._actors.values():
            _ray().kill(actor)


class _Actor:
    """A `Worker` in a process of Ray's."""

    def __init__(self, start: Start, device: str) -> None:
        os.chdir(start.folder)
        self._worker = Worker(start, device)

    def ready(self) -> None:
        """Answers when there is a place for it."""

    def work(self, task: Task) -> list[tuple[str, bool]]:
        """Do a unit; what was told meanwhile."""
        seen: list[tuple[str, bool]] = []
        self._worker.work(task, lambda kind, again: seen.append((kind, again)))
        return seen


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: a seventh of a share beside other work
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError('--engine ray needs Ray: pip install "fairanon[cluster]".') from None
    return ray
