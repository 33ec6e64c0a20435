"""Without a network: an answer at once, where the hub's library would ask again and again for half a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fairanon.places import has_no_address

_lock, _inside, _before = threading.Lock(), 0, False


@contextmanager
def without_retries() -> Iterator[None]:
    """Let the hub's library look in its cache alone, for as long as the hub's host has no address here.

    It says so to the whole process, until the last thread has left.
    """
    from huggingface_hub import constants  # takes a while

    global _inside, _before
    offline = has_no_address(constants.ENDPOINT)
    with _lock:
        if not _inside:
            _before = constants.HF_HUB_OFFLINE
        _inside += 1
        constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or offline
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                constants.HF_HUB_OFFLINE = _before
