"""A folder that nobody else can read and that is gone afterwards: in memory where there is room, removed also after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "fairanon-app-"
_LOCK = ".lock"
_YOUNG = 60
"""Seconds within which a folder without a lock belongs to a process that has just begun."""
_ROOM = 2**30
"""Bytes that memory must have for it; a container's 64 MB are soon full."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Inside, there is a new folder (mode 0700), and all temporary files of this process lie in it.

    What a kill left of an earlier one is removed first, wherever such folders can be.
    """
    folder = _new_folder()
    before, names = tempfile.tempdir, {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder)}
    environment = {name: os.environ.get(name) for name in names}
    try:
        with FileLock(folder / _LOCK):
            os.environ.update(names)
            tempfile.tempdir = str(folder)
            yield folder
    finally:
        tempfile.tempdir = before
        for name, value in environment.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


def forget(folder: Path) -> None:
    """Remove everything in a private folder, whoever brought it.

    Raises:
        OSError: Something is still there.
    """
    for _ in range(20):  # what is worked on is written once more
        rest = [path for path in folder.iterdir() if path.name != _LOCK]
        if not rest:
            return
        for path in rest:
            with suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        time.sleep(0.05)
    raise OSError(f"{rest[0].name} cannot be removed; end the page, which removes all of it.")


def _new_folder() -> Path:
    """A new folder, once what was left is gone: whoever has one holds its lock before others look for leftovers."""
    roots = _roots()
    for left in (path for root in roots for path in root.glob(f"{_PREFIX}*")):
        with suppress(FileNotFoundError):  # another one that begins removes it, too
            if not left.is_symlink() and left.stat().st_uid == os.getuid() and not _is_used(left):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=roots[0]))


def _roots() -> list[Path]:
    """Where such folders can be, the best place first: in memory, if it has room."""
    memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        return [disk]
    return [memory, disk] if shutil.disk_usage(memory).free >= _ROOM else [disk, memory]


def _is_used(folder: Path) -> bool:
    """Whether a living process has it: the lock of a killed one is free, and one that has just begun takes it in a moment."""
    if time.time() - folder.stat().st_mtime < _YOUNG and not (folder / _LOCK).exists():
        return True
    try:
        with FileLock(folder / _LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True
