"""Progress bars and plans, which a program that calls fairanon can switch off."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

HIDDEN = "FAIRANON_NO_PROGRESS"
"""In the environment of programs that are started where no bars are shown."""
_SHOWN: ContextVar[bool] = ContextVar("shown", default=HIDDEN not in os.environ)


def progress_bar(*arguments: Any, disable: bool | None = False, **settings: Any) -> Any:
    """A bar; arguments as `tqdm.tqdm`, but there is none inside of ``progress(False)``."""
    return tqdm(*arguments, disable=disable if _SHOWN.get() else True, **settings)


def end_bars() -> None:
    """Close the bars that an error left open, so that its message begins on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def shown() -> bool:
    """Whether bars are shown."""
    return _SHOWN.get()


@contextmanager
def progress(show: bool) -> Iterator[None]:
    """Inside, bars are shown or not."""
    token = _SHOWN.set(show)
    try:
        yield
    finally:
        _SHOWN.reset(token)


class Plan:
    """What a long command does, part by part: printed at once, and each part again with its time when it is over.

    Args:
        parts: What each part is called, in order, by a word for the program.
    """

    def __init__(self, parts: Mapping[str, str]) -> None:
        self._parts = dict(parts) if len(parts) > 1 else {}  # of one part there is nothing to say
        self._now, self._since = "", 0.0
        for number, text in enumerate(self._parts.values(), 1):
            self._print(f"  {number}/{len(self._parts)} {text}")

    def begin(self, part: str) -> None:
        """A part begins, and the one before it is over; "" ends the last one. Parts that are not in the plan go unsaid."""
        if self._now:
            took = time.monotonic() - self._since
            self._print(f"{self._named(self._now)}: {minutes(took)}")
        self._now, self._since = part if part in self._parts else "", time.monotonic()
        if self._now:
            self._print(f"{self._named(self._now)} ...")

    def _named(self, part: str) -> str:
        return f"{list(self._parts).index(part) + 1}/{len(self._parts)} {self._parts[part]}"

    @staticmethod
    def _print(text: str) -> None:
        if shown():
            print(text, flush=True)


def minutes(seconds: float) -> str:
    """Minutes and seconds.

    Examples:
        >>> minutes(292.4), minutes(3725)
        ('4:52', '1:02:05')
    """
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
