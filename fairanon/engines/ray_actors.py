"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection, Sequence
from itertools import count, islice
from typing import Any

from fairanon.config.experiments import UserError
from fairanon.engines.crew import DEATHS, DeadError
from fairanon.engines.work import Start, Task, Worker

_log = logging.getLogger(__name__)
_PATIENCE = 120
"""Seconds without a worker until that is said."""


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
            if self._failed == DEATHS:
                raise UserError(
                    f"--engine: {DEATHS} of Ray's processes ended while they started ({str(error).strip().splitlines()[-1]}); is "
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
