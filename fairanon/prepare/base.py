"""What makes data before training: resumable, cached by content, marked when it is done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch

from fairanon.evaluators.judge import place
from fairanon.files import read_json, write_json


class Preparation(ABC):
    """Writes a folder that a data module reads.

    Args:
        folder: Where to; finished pieces in it are kept, missing ones are made.
    """

    result: ClassVar[str]
    """The file in the folder that is written last: with it the folder is finished, whoever made it."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def run(self, device: torch.device | str = "cpu") -> None:
        """Make what is missing.

        Args:
            device: Where models and judges work.
        """
        place(vars(self), torch.device(device))
        self.make()

    @abstractmethod
    def cut(self) -> None:
        """Cut every count to the least, for a rehearsal."""

    def pictures(self) -> int:
        """How many pictures are to be drawn; 0 for a preparation that draws none."""
        return 0

    def looked_at(self) -> int:
        """How many pictures are to be looked at; 0 for a preparation that draws its own."""
        return 0

    @abstractmethod
    def make(self) -> None:
        """What `run` does, once everything is where it works."""


_MARK = "prepared.json"


def recipe_key(settings: dict[str, Any]) -> str:
    """Names a preparation by its settings and by the files and folders that they name, without building anything.

    Args:
        settings: The resolved configuration of a `Preparation`. Where it writes (the first ``folder``) does not count;
            files count by their content, folders by the names, sizes and times of what they hold.
    """
    given = {**settings, "init_args": {k: v for k, v in settings["init_args"].items() if k != "folder"}}
    return content_key(given, _inputs(given))


def _inputs(settings: Any) -> list[str]:
    if isinstance(settings, dict):
        return [found for value in settings.values() for found in _inputs(value)]
    if isinstance(settings, (list, tuple)):
        return [found for value in settings for found in _inputs(value)]
    if not isinstance(settings, str) or not 0 < len(settings) < 250:  # no name of a file is longer
        return []
    path = Path(settings).expanduser()
    if path.is_file():
        state = path.stat()
        large = state.st_size > 64 * 2**20  # weights: reading them takes longer than anything else here
        return [
            content_key(state.st_size, state.st_mtime_ns) if large else hashlib.sha256(path.read_bytes()).hexdigest()
        ]
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.is_file())
        stamps = [(str(found.relative_to(path)), found.stat().st_size, found.stat().st_mtime_ns) for found in files]
        return [content_key(stamps)]
    return []


def mark_prepared(folder: Path, recipe: str | None, images: str | None) -> None:
    """Note how a folder is made: before it is, without a recipe, and when everything else is there.

    Args:
        folder: The preparation's.
        recipe: See `recipe_key`.
        images: Where the pictures are that it is made of, see `origin`.
    """
    write_json(folder / _MARK, {"recipe": recipe, "images": images})


def mark_of(folder: Path) -> dict[str, str | None] | None:
    """What `mark_prepared` noted; None of a folder that nobody noted anything of."""
    path = folder / _MARK
    return read_json(path, "prepare.folder") if path.exists() else None


def drop_empty(folder: Path) -> None:
    """Remove the folder of a preparation that failed before it made anything."""
    if all(path.is_dir() or path.name in (_MARK, ".lock") for path in folder.rglob("*")):
        shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()  # made for it, if it is empty


def origin(folder: Path, images: str | None) -> str | None:
    """Where pictures are as seen from a preparation's folder: both may move together. None for one that draws its own."""
    return None if images is None else os.path.relpath(Path(images).resolve(), folder.resolve())


def content_key(*parts: Any) -> str:
    """Names a piece by everything it depends on: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
