"""Without a network: an answer at once, where the hub's library would ask again and again for half a minute."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def without_retries() -> Iterator[None]:
    """Let the hub's library look in its cache alone, for as long as the hub's host has no address here."""
    from huggingface_hub import constants  # takes a while

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or _has_no_address(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _has_no_address(url: str) -> bool:
    if urllib.request.getproxies():
        return False  # a proxy knows it
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return True
    return False
