"""What sources share: finding images, and saying what is missing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fairanon.files import IMAGES, walk

_log = logging.getLogger(__name__)

CACHE = Path("runs") / ".cache"
"""What data modules remember about files that are not theirs."""


def file_stamp(*paths: Path | None, said: str = "") -> str:
    """Names the content of files by their paths, sizes and times of change, without reading them, and what is said of them."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path and path.exists()]
    return hashlib.sha256(f"{states} {said}".encode()).hexdigest()[:16]


def images_in(folder: Path, suffixes: Sequence[str] = IMAGES, deep: bool = True) -> list[Path]:
    """A folder's images by name, see `fairanon.files.walk`; what was passed over is in the log. None of a missing folder."""
    if not folder.is_dir():
        return []
    walked = walk(folder, suffixes, deep)
    if report := walked.report():
        _log.info("%s: %d images; %s", folder, len(walked.files), report)
    return walked.files


def missing_data(folder: Path, key: str, tree: str, remedy: str) -> FileNotFoundError:
    """The error of a data set that is not there: names the key, the expected tree and what to do."""
    return FileNotFoundError(f"{key}: {folder} is missing or incomplete; expected\n{tree}\n{remedy}")


@contextmanager
def given_as(key: str) -> Iterator[None]:
    """Errors of sources inside are of the key under which the user gave them: a source does not know it."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from None
