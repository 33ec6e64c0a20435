"""What the page says when something went wrong."""

from __future__ import annotations

import logging

from fairanon.config.failures import expected, sentence

_log = logging.getLogger(__name__)


def failed(error: Exception) -> str:
    """A sentence about a mistake; of what nobody foresaw the terminal says more.

    Args:
        error: What was raised.
    """
    said = sentence(str(error))
    if not isinstance(error, expected()):
        _log.error("the page failed", exc_info=error)
        said = f"This is a bug of fairanon's ({type(error).__name__}: {said}); the terminal says more."
    return f'<p class="answer"><b class="worse">NOT DONE</b> {said}</p>'
