"""What makes data before training: resumable, cached by content, marked when it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from fairanon.config.experiments import locate
from fairanon.evaluators.judge import to_device


class Preparation(ABC):
    """Writes a folder that a data module reads.

    Args:
        folder: Where to; finished pieces in it are kept, missing ones are made.
    """

    result: ClassVar[str]
    """The file in the folder that is written last: with it the folder is finished, whoever made it."""
    reads: ClassVar[tuple[str, ...]] = ()
    """The settings that name a file or a folder that is read."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def run(self, device: torch.device | str = "cpu", share: tuple[int, int] | None = None) -> None:
        """Make what is missing.

        Args:
            device: Where models and judges work.
            share: Make the pieces of one share alone, from 0 on, and of how many; None: everything.
        """
        to_device(vars(self), torch.device(device))
        if share is None:
            self.make()
        else:
            self.make_pieces(*share)

    @classmethod
    def missing(cls, **settings: Any) -> list[str]:
        """Files and folders that are to be read and that are not there, a sentence each; settings as a configuration has them."""
        return [
            f"prepare.{name}: {value} is missing; `fairanon prepare` reads it."
            for name in cls.reads
            if isinstance(value := settings.get(name), str) and not locate(value).exists()
        ]

    @abstractmethod
    def shorten(self) -> None:
        """Cut every count to its minimum, for a rehearsal."""

    def drawn(self) -> int:
        """How many images are to be drawn; 0 for a preparation that draws none."""
        return 0

    def looked_at(self) -> int:
        """How many images are to be looked at; 0 for a preparation that draws its own."""
        return 0

    @abstractmethod
    def make(self) -> None:
        """What `run` does, once everything is where it works."""

    @abstractmethod
    def make_pieces(self, share: int = 0, of: int = 1) -> None:
        """Make those pieces of one share that are missing; `make` puts all of them together.

        Args:
            share: Its number, from 0 on.
            of: How many shares there are.
        """
