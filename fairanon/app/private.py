"""A folder that nobody else can read and that is gone afterwards: in memory where there is room, removed also after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "fairanon-app-"
_LOCK = ".lock"
_ROOM = 2**30
"""Bytes that memory must have for it; a container's 64 MB are soon full."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Inside, there is a new folder (mode 0700), and all temporary files of this process lie in it.

    What a kill left of an earlier one is removed first.
    """
    root = _root()
    for left in root.glob(f"{_PREFIX}*"):
        if not left.is_symlink() and left.stat().st_uid == os.getuid() and not _is_used(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
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
    """Remove everything in a private folder, whoever brought it."""
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _root() -> Path:
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM:
        return memory
    return Path(tempfile.gettempdir())


def _is_used(folder: Path) -> bool:
    """Whether a living process has it; the lock of a killed one is free."""
    try:
        with FileLock(folder / _LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True
