"""Locks in object stores, which know none: an object that one process alone can create, and that it renews while it works."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairanon.places import StoreError, create_object, read_bytes, remove_file, write_bytes

_log = logging.getLogger(__name__)
_BEAT = 20.0
"""Seconds after which who holds a lock says so again."""
_DEAD = 4 * _BEAT
"""Seconds of silence after which nobody holds it any more."""


class StoreLock:
    """Says that a process works on a folder of a store: an object that one process alone can create, and that it renews.

    A killed process loses its lock: at once on its own machine, elsewhere after 80 seconds without a sign of life, and 40 in which
    it is watched.

    Args:
        path: Where the lock lies.

    Attributes:
        lost: Another process has taken it since.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lost = path, False
        self._mine, self._stop = "", threading.Event()
        self._beats: threading.Thread | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this process holds it."""
        return self._beats is not None and not self.lost

    def acquire(self) -> bool:
        """Take it, if nobody holds it.

        Raises:
            StoreError: The store does not answer.
        """
        self._mine, self.lost = secrets.token_hex(8), False
        for _ in range(_TRIES):
            if self._create():
                self._stop = threading.Event()
                self._beats = threading.Thread(target=self._renew, args=(self._stop,), daemon=True)
                self._beats.start()
                _held.add(self._mine)
                return True
            record = self._read(self.path)
            if record is not None and _may_live(record) and not self._is_silent(record):
                return False
            self._take_away(record)
        return False

    def release(self) -> None:
        """Let others take it."""
        if self._beats is None:
            return
        self._stop.set()
        self._beats.join()
        self._beats = None
        _held.discard(self._mine)
        try:
            if self._is_mine():
                remove_file(self.path)
        except StoreError as error:
            _log.warning("%s could not be removed (%s); this machine takes it all the same", self.path, error.strerror)

    def holder(self) -> str:
        """Who holds it, in words; "" if nobody knows."""
        record = self._read(self.path) or {}
        if not isinstance(record.get("time"), (int, float)):
            return ""
        return f"{record.get('host')} (process {record.get('process')}), heard of {max(0.0, time.time() - record['time']):.0f} s ago"

    def _create(self) -> bool:
        create_object(self.path, _sign(self._mine))
        return self._is_mine()  # a repeated request is refused by its own first try; and some stores know no conditions

    def _is_mine(self) -> bool:
        return (self._read(self.path) or {}).get("who") == self._mine

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        """What an object says; None if it is gone."""
        try:
            record = json.loads(read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    def _is_silent(self, record: dict[str, Any]) -> bool:
        """Whether who holds it has said nothing for long; clocks of machines differ, so that it is watched, too."""
        if _is_young(record):
            return False
        end = time.monotonic() + 2 * _BEAT
        while time.monotonic() < end:
            if self._read(self.path) != record:
                return False
            time.sleep(min(1.0, _BEAT / 4))
        return True

    def _take_away(self, record: dict[str, Any] | None) -> None:
        """Remove the lock of a process that is gone; of several that want to, one does."""
        if record is None:
            return
        mark = self.path.with_name(f"{self.path.name}-{record.get('who', 'damaged')}")
        if not create_object(mark, _sign(self._mine)):
            other = self._read(mark)
            if other is not None and not (_may_live(other) and _is_young(other)):
                remove_file(mark)  # who wanted to was killed meanwhile
            time.sleep(min(1.0, _BEAT / 4))
            return
        try:
            if self._read(self.path) == record:
                remove_file(self.path)
        finally:
            remove_file(mark)

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(_BEAT):
            try:
                if self._is_mine():
                    write_bytes(self.path, _sign(self._mine))
                else:
                    self.lost = True
                    return
            except OSError as error:  # the network may be back at the next beat
                _log.warning("%s could not be renewed (%s)", self.path, error)


_held: set[str] = set()
"""What this process signs the locks with that it holds."""
_TRIES = 20
"""So often it is tried to take a lock that nobody holds."""


def _sign(who: str) -> bytes:
    """What a lock says of its process."""
    about = {"who": who, "host": socket.gethostname(), "space": _space(), "process": os.getpid(), "time": time.time()}
    return json.dumps(about).encode()


def _space() -> str:
    """In which a process number means one process: this machine as it was started, or a container of it; "" where nobody says."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_young(record: dict[str, Any]) -> bool:
    timestamp = record.get("time")
    return isinstance(timestamp, (int, float)) and abs(time.time() - timestamp) < _DEAD


def _may_live(record: dict[str, Any]) -> bool:
    """Whether who wrote a lock may be alive; of a process of this machine it is known."""
    if not record.get("space") or record["space"] != _space() or not isinstance(record.get("process"), int):
        return bool(record)
    if record["process"] == os.getpid():
        return record.get("who") in _held  # otherwise it could not remove it
    try:
        os.kill(record["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
