"""Hands out tasks to workers, wherever these are."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from fairanon.config.experiments import UserError
from fairanon.config.runs import BusyError
from fairanon.engines.work import Task, Tell

_log = logging.getLogger(__name__)
DEATHS = 3
"""So often a unit may end the process that works on it."""


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
                    if deaths[task.number] == DEATHS:
                        raise UserError(
                            f"{task.name} ended {DEATHS} processes (killed from outside, or no memory left?); let fewer work at once, "
                            "the same command goes on."
                        ) from None
                    _log.warning("a process died; another one goes on with its files")
                    waiting.appendleft(task)
            for kind, again in hands.seen():
                tell(kind, again)
        return held
