"""What is to be anonymized: files, a folder, a zip, or a table of files with boxes of the user's own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fairanon.anonymize.photos import PHOTOS
from fairanon.files import TextError, named_path, read_json_lines, read_table, walk
from fairanon.imaging import CorruptImageError

_RESERVED = ("review", "no-face")
"""Folders of the result that hold something else than what is finished."""
_LARGEST = 2**30
"""Bytes of an entry of a zip; a larger one is a bomb or no photograph."""
_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Item:
    """A file to be anonymized.

    Attributes:
        name: Relative to whatever was given, with /: its name in the result, too.
        path: Where it lies; a zip, if it lies in one.
        entry: Its name in the zip.
        boxes: float (K, 4), the user's own; None: they are looked for.
    """

    name: str
    path: Path
    entry: str | None = None
    boxes: Tensor | None = None

    def pixels(self) -> int:
        """How many its header announces; 0 if it has none that can be read."""
        try:
            if self.entry is None:
                with Image.open(self.path) as image:
                    return image.width * image.height
            with zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as file, Image.open(file) as image:
                return image.width * image.height
        except Exception:  # noqa: BLE001  (whatever it is, `read_photo` says it)
            return 0

    def read(self) -> bytes:
        """What is in it.

        Raises:
            CorruptImageError: It cannot be read.
        """
        try:
            if self.entry is None:
                return self.path.read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                if archive.getinfo(self.entry).file_size > _LARGEST:
                    raise CorruptImageError(f"{self.name} is larger than {_LARGEST} bytes")
                return archive.read(self.entry)
        except CorruptImageError:
            raise
        except Exception as error:  # noqa: BLE001  (zipfile and its decoders raise whatever they like)
            raise CorruptImageError(f"{self.name} cannot be read ({error})") from None


@dataclass
class Source:
    """All that is to be anonymized.

    Attributes:
        items: By name.
        root: What was given, for messages.
        passed_over: What else there is, as half a sentence; "" for nothing.
    """

    items: list[Item] = field(default_factory=list)
    root: Path = Path()
    passed_over: str = ""


def collect(given: Sequence[Path]) -> Source:
    """Find the files.

    Args:
        given: Files; or one folder, one zip, one CSV (columns file, x0, y0, x1, y1, a line for each face) or one JSON lines
            file (``{"file": ..., "boxes": [[x0, y0, x1, y1], ...]}``).

    Raises:
        FileNotFoundError: Something is missing, or there is no photograph in it.
        ValueError: Names collide, or a zip wants to write outside.
        TextError: A table is none.
    """
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"anonymize: {path} is missing.")
    first, suffix = given[0], given[0].suffix.lower()
    if len(given) > 1:
        if folders := [path for path in given if path.is_dir() or path.suffix.lower() not in PHOTOS]:
            raise ValueError(
                f"anonymize: {folders[0]} is no photograph; give files, or one folder, zip, CSV or .jsonl."
            )
        source = Source([Item(path.name, path) for path in given], first.parent)
    elif first.is_dir():
        found = walk(first, PHOTOS)
        items = [Item(path.relative_to(first).as_posix(), path) for path in found.files]
        source = Source(items, first, found.report())
    elif suffix == ".zip":
        source = _from_zip(first)
    elif suffix in (".csv", ".jsonl"):
        source = _from_table(first, suffix == ".csv")
    else:
        source = Source([Item(first.name, first)], first)
    if not source.items:
        raise FileNotFoundError(f"anonymize: {first} holds no photograph. {source.passed_over}".strip())
    _check_names(source)
    source.items.sort(key=lambda item: item.name)
    return source


def _check_names(source: Source) -> None:
    seen: dict[str, Item] = {}
    for item in source.items:
        if item.name in seen:
            raise ValueError(f"anonymize: {seen[item.name].path} and {item.path} would both become {item.name}.")
        seen[item.name] = item
        if item.name.split("/")[0] in _RESERVED:
            raise ValueError(
                f"anonymize: {source.root} has a folder {item.name.split('/')[0]!r}, where the result keeps what is not "
                "finished; rename it."
            )


def _from_zip(path: Path) -> Source:
    items, others = [], 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                place = PurePosixPath(entry.filename.replace("\\", "/"))
                if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
                    raise ValueError(
                        f"anonymize: {path} holds {entry.filename!r}, a name that leads outside; it is not opened."
                    )
                hidden = any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
                if entry.is_dir():
                    continue
                if not hidden and place.suffix.lower() in PHOTOS:
                    items.append(Item(place.as_posix(), path, entry.filename))
                else:
                    others += 1
    except zipfile.BadZipFile as error:
        raise CorruptImageError(f"anonymize: {path} is no zip ({error}).") from None
    return Source(items, path, f"passed over: {others} other files" if others else "")


def _from_table(path: Path, is_csv: bool) -> Source:
    boxes: dict[Path, list[list[float]]] = {}
    looked_for: set[Path] = set()
    if is_csv:
        for number, line in read_table(path, "anonymize", ("file",)):
            file = path.parent / named_path(line["file"], f"{path}, line {number}")
            corners = [line.get(name, "").strip() for name in _CORNERS]
            if any(corners):
                boxes.setdefault(file, []).append(_box(corners, f"{path}, line {number}"))
            else:
                boxes.setdefault(file, [])
                looked_for.add(file)
    else:
        for number, row in read_json_lines(path, "anonymize", ("file",)):
            where = f"{path}, line {number}"
            file = path.parent / named_path(row["file"], where)
            given: list[Any] | None = row.get("boxes")
            if given is None:
                looked_for.add(file)
            elif not isinstance(given, list):
                raise TextError(f"{where}: boxes must be a list of [x0, y0, x1, y1], got {given!r}.")
            boxes.setdefault(file, []).extend(_box(box, where) for box in given or [])
    if missing := [file for file in boxes if not file.is_file()]:
        raise FileNotFoundError(f"anonymize: {path} names {missing[0]}, which is missing.")
    places = {file: Path(os.path.abspath(file)) for file in boxes}
    root = Path(os.path.commonpath([place.parent for place in places.values()]))
    items = [
        Item(
            places[file].relative_to(root).as_posix(),
            file,
            boxes=None if file in looked_for else torch.tensor(found).view(-1, 4),
        )
        for file, found in boxes.items()
    ]
    return Source(items, path)


def _box(corners: Sequence[object], where: str) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError):
        raise TextError(f"{where}: a box is x0, y0, x1, y1 in pixels, got {corners!r}.") from None
    if not (x0 < x1 and y0 < y1):
        raise TextError(f"{where}: a box is x0 < x1 and y0 < y1 in pixels, got {corners!r}.")
    return [x0, y0, x1, y1]
