"""Progress bars, which a program that calls fairanon can switch off."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
