"""What the page says when something went wrong, and what it does one after the other."""

from __future__ import annotations

import functools
import logging
import re
import tempfile
from collections.abc import Callable
from html import escape
from typing import Any

from fairanon.config.failures import expected, sentence

_log = logging.getLogger(__name__)
WORK = "work"
"""What takes long: one at a time, for models share the processor."""


def failed(error: Exception) -> str:
    """A sentence about a mistake; of what nobody foresaw the terminal says more.

    Args:
        error: What was raised.
    """
    return f'<p class="answer"><b class="worse">NOT DONE</b> {escape(said_of(error), False)}</p>'


def said_of(error: Exception) -> str:
    """A mistake in a sentence, a bug by its name."""
    message = " ".join(sentence(str(error)).split())
    message = re.sub(
        rf"{re.escape(tempfile.gettempdir())}/\S*/", "", message
    )  # where things lie here is nobody's business
    if isinstance(error, expected()):
        return message
    _log.error("the page failed", exc_info=error)
    return f"This is a bug of fairanon's ({type(error).__name__}: {message}); the terminal says more."


def in_a_toast(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of the page whose mistakes are said in a corner of it."""

    @functools.wraps(handler)
    def handled(*arguments: Any) -> Any:
        import gradio as gr

        try:
            return handler(*arguments)
        except Exception as error:  # noqa: BLE001  (whatever it is)
            raise gr.Error(escape(said_of(error), False), print_exception=False) from None

    return handled
