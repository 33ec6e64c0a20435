"""What is to be done, and what does it in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairanon.progress import progress

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
