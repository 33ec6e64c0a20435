"""What makes data before training: resumable, cached by content."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Preparation(ABC):
    """Writes a folder that a data module reads.

    Args:
        folder: Where to; finished pieces in it are kept, missing ones are made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @abstractmethod
    def run(self) -> None:
        """Make what is missing; returns at once when nothing is."""


def content_key(*parts: Any) -> str:
    """Names a piece by everything it depends on: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
