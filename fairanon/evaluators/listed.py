"""What somebody else's judge said, as a judge: a table of images and classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge
from fairanon.files import TextError, named_path, read_table
from fairanon.imaging import read_image


class ListedAttributes(Judge):
    """Says of an image what a table says of it; nothing where the table has an empty cell, or does not know the image.

    Args:
        table: CSV with a column ``file`` and one for each attribute.
        folder: What the files' names are relative to; None is the table's own folder.
        classes: For each attribute its classes, in their order; one that never appears counts, too.

    Raises:
        TextError: A file is missing, a class is none, or the same picture is there twice with different classes.
    """

    def __init__(self, table: str, classes: Mapping[str, Sequence[str]], folder: str | None = None) -> None:
        place = Path(table)
        root = place.parent if folder is None else Path(folder)
        self.classes = {name: tuple(values) for name, values in classes.items()}
        self._said: dict[str, tuple[int, ...]] = {}
        for number, row in read_table(place, "judge", ("file", *self.classes)):
            where = f"judge: {place}, line {number}"
            path = root / named_path(row["file"], where)
            if not path.exists():
                raise TextError(f"{where}: {path} is missing.")
            labels = tuple(self._number(name, row[name].strip(), where) for name in self.classes)
            if self._said.setdefault(_digest(read_image(path, str(path))), labels) != labels:
                raise TextError(f"{where}: {path} shows the same picture as a line above, with other classes.")
        self.name = name_of(place)

    def _number(self, name: str, value: str, where: str) -> int:
        if value and value not in self.classes[name]:
            raise TextError(f"{where}: {name} has no class {value!r}; it has {', '.join(self.classes[name])}.")
        return self.classes[name].index(value) if value else -1

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`: 1 for what the table says."""
        nothing = (-1,) * len(self.classes)
        labels = torch.tensor([self._said.get(_digest(image), nothing) for image in pixels]).view(-1, len(self.classes))
        probabilities = {}
        for k, (name, values) in enumerate(self.classes.items()):
            rows = torch.arange(len(values)).eq(labels[:, k, None]).float()
            probabilities[name] = rows.masked_fill((labels[:, k] < 0)[:, None], torch.nan)
        return probabilities


def name_of(table: Path) -> str:
    """What the judge of a table calls itself."""
    return f"listed-{hashlib.sha256(table.read_bytes()).hexdigest()[:8]}"


def _digest(image: Tensor) -> str:
    shape = ",".join(map(str, image.shape))
    return hashlib.sha256(shape.encode() + image.contiguous().numpy().tobytes()).hexdigest()
