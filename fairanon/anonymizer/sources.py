"""What is to be anonymized: files, a folder, a zip, or a table of files with boxes of the user's own."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from fairanon.anonymizer.photos import PHOTOS
from fairanon.files import HIDDEN, TextError, content_key, named_path, read_json_lines, read_table, walk
from fairanon.imaging import CorruptImageError, open_image
from fairanon.places import StoreError, contains, is_stored, opened_for_reading, reach, read_bytes

_LARGEST = 2**30
"""Bytes of an entry of a zip; a larger one is a bomb or no photograph."""
_LONGEST = 255
"""Bytes of a part of a name, as file systems take it."""
_DEEPEST = 2000
"""Bytes of a whole name; with the folder of the result before it a path may have 4,096."""
_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, slots=True)
class Item:
    """A file to be anonymized.

    Attributes:
        name: Relative to whatever was given, with /: its name in the result, too.
        root: Folder that its name is relative to; the zip, if it lies in one.
        entry: Its name in the zip.
        boxes: float (K, 4), the user's own; None: there are none.
        keep: float (K, 4), of faces that may stay.
        size: Width and height of the picture that the boxes were made for; None: nobody says it.
    """

    name: str
    root: Path
    entry: str | None = None
    boxes: Tensor | None = None
    keep: Tensor | None = None
    size: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """The file; the zip, if it lies in one."""
        return self.root / self.name if self.entry is None else self.root

    def pixels(self) -> int:
        """How many its header announces; 0 if it has none that can be read."""
        try:
            if self.entry is None:
                with open_image(opened_for_reading(self.path) if is_stored(self.path) else self.path) as image:
                    return image.width * image.height
            with _archive(self.path).open(self.entry) as file, open_image(file) as image:
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
                self._refuse_huge(0 if is_stored(self.path) else self.path.stat().st_size)
                return read_bytes(self.path)
            archive = _archive(self.path)
            self._refuse_huge(archive.getinfo(self.entry).file_size)
            return archive.read(self.entry)
        except (CorruptImageError, StoreError):
            raise
        except Exception as error:  # noqa: BLE001  (zipfile and its decoders raise whatever they like)
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # without the path
            raise CorruptImageError(f"{self.name} cannot be read ({why})") from None

    def _refuse_huge(self, size: int) -> None:
        if size > _LARGEST:
            raise CorruptImageError(f"{self.name} is larger than {_LARGEST} bytes")

    def key(self) -> str | None:
        """Names the user's own boxes, so that others are noticed; None without any."""
        if self.boxes is None:
            return None
        keep = [] if self.keep is None else [self.keep.tolist()]
        return content_key(self.boxes.tolist(), *keep, *([] if self.size is None else [self.size]))

    def day(self) -> datetime | None:
        """The day of its last change, at noon; None if nobody knows."""
        try:
            if self.entry is None:
                day = datetime.fromtimestamp(self.path.stat().st_mtime)
            else:
                day = datetime(*_archive(self.path).getinfo(self.entry).date_time)
        except Exception:  # noqa: BLE001  (dates of 1601, archives that are gone)
            return None
        return day.replace(hour=12, minute=0, second=0, microsecond=0)


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip whose index was read once; threads may read from it together."""
    state = path.stat()
    return _indexed(path, state.st_size, state.st_mtime)


@lru_cache(maxsize=2)
def _indexed(path: Path, size: int, changed: float) -> zipfile.ZipFile:
    return zipfile.ZipFile(opened_for_reading(path) if is_stored(path) else path)


@dataclass
class Source:
    """All that is to be anonymized.

    Attributes:
        items: By name.
        roots: Where it lies: what was given, or the folders of several files.
        left: What lies there and is not handled: its name, and why.
        passed_over: The same as half a sentence; "" for nothing.
    """

    items: list[Item] = field(default_factory=list)
    roots: tuple[Path, ...] = ()
    left: list[tuple[str, str]] = field(default_factory=list)
    passed_over: str = ""

    def pass_over(self, out: Path) -> None:
        """Leave out what lies in the result's own folder, where a link led to it."""
        place = out.resolve()
        if is_stored(out) or any(map(is_stored, self.roots)):
            inside = [item for item in self.items if contains(out, item.path)]
        else:
            inside = [item for item in self.items if item.path.resolve().is_relative_to(place)]
        self.left += [(item.name, "it lies in OUT") for item in inside]
        names = {item.name for item in inside}
        self.items = [item for item in self.items if item.name not in names]


def collect(paths: Sequence[Path]) -> Source:
    """Find the files. One that cannot be handled, or whose name cannot be written, costs itself alone.

    Args:
        paths: Files; or one folder, one zip, one CSV (columns file, x0, y0, x1, y1, a line for each face) or one JSON lines
            file (``{"file": ..., "boxes": [[x0, y0, x1, y1], ...]}``, with ``"keep"`` the boxes of faces that may stay,
            with ``"size"`` the width and height of the picture that they were made for).

    Raises:
        FileNotFoundError: Something is missing, or there is no photograph in it.
        ValueError: Several things were given that are no photographs.
        TextError: A table is none, or has a box that cannot be right.
    """
    for path in paths:
        reach(path, "IN")
        if not path.exists():
            raise FileNotFoundError(f"IN: {path} is missing; name files, a folder, a zip, a CSV or a .jsonl.")
    first, suffix = paths[0], paths[0].suffix.lower()
    if len(paths) > 1:
        if folders := [path for path in paths if path.is_dir() or path.suffix.lower() not in PHOTOS]:
            raise ValueError(
                f"anonymize: {folders[0]} is no photograph; give files, or one folder, zip, CSV or .jsonl."
            )
        source = Source(
            [Item(path.name, path.parent) for path in paths], tuple({path.resolve().parent for path in paths})
        )
    elif first.is_dir():
        source = _from_folder(first)
    elif suffix == ".zip":
        source = _from_zip(first)
    elif suffix in (".csv", ".jsonl"):
        source = _from_table(first, suffix == ".csv")
    else:
        source = Source([Item(first.name, first.parent)], (first,))
    if not source.items:
        why = "; ".join(f"{name}: {reason}" for name, reason in source.left[:3]) or source.passed_over
        raise FileNotFoundError(f"IN: {first} holds no photograph. {why}".strip())
    _leave_what_cannot_be_written(source)  # where nothing remains, the manifest and the list for review say why
    source.items.sort(key=lambda item: item.name)
    return source


def _leave_what_cannot_be_written(source: Source) -> None:
    """Names that no result can have, and all but the first of those that would be one file."""
    kept: dict[str, Item] = {}
    for item in sorted(source.items, key=lambda item: item.name):
        place = PurePosixPath(item.name)
        inside = next((parent for parent in map(str, place.parents) if parent in kept), None)
        if (why := _unwritable(item.name)) is None and item.name in kept:
            why = "another file of this name is handled"
        if why is None and inside is not None:
            why = f"{inside} is a file, so that nothing can lie in it"
        on_a_disk = item.entry is None and not is_stored(item.path)
        if why is None and on_a_disk and item.path.exists() and not stat.S_ISREG(item.path.stat().st_mode):
            why = "pipe, socket or device"
        if why is None:
            kept[item.name] = item
        else:
            source.left.append((item.name, why))
    source.items = list(kept.values())


def _unwritable(name: str) -> str | None:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or parts[0][1:] == ":":
        return "its name leads outside"
    if not all(part not in ("", ".") and "\0" not in part for part in parts):
        return "its name has a part that is empty, a dot or no text"
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        return "its name has letters that no file can have"
    if max(sizes) > _LONGEST or sum(sizes) + len(sizes) > _DEEPEST:
        return f"its name is longer than {_LONGEST} bytes, or all of it than {_DEEPEST}"
    return None


def _from_folder(folder: Path) -> Source:
    contents = walk(folder, PHOTOS)
    items = [Item(path.relative_to(folder).as_posix(), folder) for path in contents.files]
    left = [
        (path.relative_to(folder).as_posix(), reason)
        for reason, paths in contents.others.items()
        if reason != HIDDEN
        for path in paths
    ]
    return Source(items, (folder,), left, contents.report())


def _from_zip(path: Path) -> Source:
    items, left = [], []
    try:
        entries = _archive(path).infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:  # names that are not what they say
        raise CorruptImageError(f"anonymize: {path} is no zip ({error}).") from None
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        place = PurePosixPath(name)
        hidden = any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in place.parts)
        if entry.is_dir() or hidden:
            continue
        if _unwritable(name) is not None or place.suffix.lower() in PHOTOS:
            items.append(Item(name, path, entry.filename))  # names that no result can have are left afterwards
        else:
            left.append((name, f"{place.suffix.lower()} file" if place.suffix else "file without an ending"))
    return Source(items, (path,), left, f"passed over: {len(left)} other files" if left else "")


def _from_table(path: Path, is_csv: bool) -> Source:
    boxes: dict[Path, list[list[float]]] = {}
    keep: dict[Path, list[list[float]]] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    if is_csv:
        for number, line in read_table(path, "anonymize", ("file",)):
            if len(line) > 1 and any(name not in line for name in _CORNERS):
                raise TextError(
                    f"{path}: the columns of boxes are file, {', '.join(_CORNERS)}; it has {', '.join(line)}."
                )
            file = _beside(path, named_path(line["file"], f"{path}, line {number}"))
            file_boxes = boxes.setdefault(file, [])
            corners = [line.get(name, "").strip() for name in _CORNERS]
            if any(corners):
                file_boxes.append(_box(corners, f"{path}, line {number}"))
    else:
        for number, row in read_json_lines(path, "anonymize", ("file",)):
            where = f"{path}, line {number}"
            if others := sorted(set(row) - {"file", "boxes", "keep", "size"}):
                raise TextError(f"{where}: the keys are file, boxes, keep and size; it has {', '.join(others)}, too.")
            file = _beside(path, named_path(row["file"], where))
            for key, known in (("boxes", boxes), ("keep", keep)):
                raw_boxes: list[Any] = [] if row.get(key) is None else row[key]
                if not isinstance(raw_boxes, list):
                    raise TextError(f"{where}: {key} must be a list of [x0, y0, x1, y1], got {raw_boxes!r}.")
                known.setdefault(file, []).extend(_box(box, where) for box in raw_boxes)
            if (size := row.get("size")) is not None:
                if not (
                    isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
                ):
                    raise TextError(f"{where}: size must be [width, height] in pixels, got {size!r}.")
                sizes[file] = (size[0], size[1])
    root = path.parent if is_stored(path) else Path(os.path.abspath(path.parent))
    if not is_stored(path) and not all(file.is_relative_to(root) for file in boxes):
        root = Path(os.path.commonpath([file.parent for file in boxes]))
    items, left = [], []
    for file, own in boxes.items():
        name = file.relative_to(root).as_posix()
        if _unwritable(name) is not None:  # left afterwards
            items.append(Item(name, root))
        elif not file.is_file():
            left.append((name, f"{path.name} names it, and it is missing"))
        else:
            stay = torch.tensor(keep[file]).view(-1, 4) if keep.get(file) else None
            items.append(Item(name, root, boxes=torch.tensor(own).view(-1, 4), keep=stay, size=sizes.get(file)))
    return Source(items, (path,), left)


def _beside(table: Path, name: Path) -> Path:
    """A file that a table names, relative to where it lies."""
    return table.parent / name.as_posix() if is_stored(table) else Path(os.path.abspath(table.parent / name))


def _box(corners: Sequence[object], where: str) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, OverflowError):
        raise TextError(f"{where}: a box is x0, y0, x1, y1 in pixels, got {corners!r}.") from None
    if not (x0 < x1 and y0 < y1) or not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise TextError(f"{where}: a box is x0 < x1 and y0 < y1 in pixels, got {corners!r}.")
    if max(x1, y1) <= 1:
        raise TextError(
            f"{where}: the box {corners!r} looks like shares of the picture; give pixels (times its width and height)."
        )
    return [x0, y0, x1, y1]
