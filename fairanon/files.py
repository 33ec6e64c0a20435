"""The one door for files that people bring: text, tables, folders; and the one way to write one.

What cannot be read as its kind is one sentence that names the file, and the line where there is one.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fairanon.places import files_below, is_stored, put_file


class TextError(ValueError):
    """A text file that is not what it should be; the message names file and line."""


# --- text ------------------------------------------------------------------------------------------------


def read_text(path: Path, key: str, encodings: Sequence[str] = ()) -> str:
    r"""Read a text file: UTF-8 with or without a byte order mark.

    Args:
        path: The file.
        key: The configuration key or data set that named it, for error messages.
        encodings: What else files of this data set are known to be written in, tried in turn.

    Returns:
        The text; its lines end with ``\n``, as every reader here assumes.

    Raises:
        FileNotFoundError: There is no such file.
        TextError: It is a folder, cannot be opened, or is in another encoding.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{key}: {path} is missing.") from None
    except OSError as error:
        raise TextError(f"{key}: {path} cannot be read ({error.strerror}).") from None
    for encoding in ("utf-8-sig", *encodings):
        with suppress(UnicodeDecodeError):
            return raw.decode(encoding).replace("\r\n", "\n")
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
    raise TextError(f"{key}: {path}, line {line} is not UTF-8; save the file as UTF-8.")


def read_lines(path: Path, key: str, encodings: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    r"""Lines that are not blank, with their numbers; ``\n`` and ``\r\n`` alone end a line. Arguments as `read_text`."""
    for number, line in enumerate(read_text(path, key, encodings).split("\n"), 1):
        if line.strip():
            yield number, line


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_table(
    path: Path, key: str, columns: Sequence[str], others: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file whose first line names its columns; cells are separated by commas, semicolons or tabs.

    Args:
        path: The file.
        key: See `read_text`.
        columns: Which must be there; where one is there in other capitals only, it is renamed.
        others: Which may be there; likewise.

    Returns:
        For each row the number of its (last) line and its cells.

    Raises:
        FileNotFoundError: There is no such file.
        TextError: See `read_text`; or a column is missing or there twice, there is no row, or a row has too many cells or too
            few.
    """
    text = read_text(path, key)
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    header: list[str] = []
    result: list[tuple[int, dict[str, str]]] = []
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells, [*columns, *others])
                if twice := [name for name in header if name and header.count(name) > 1]:
                    raise TextError(f"{key}: {path} has the column {twice[0]} twice; leave one of them.")
                if missing := [name for name in columns if name not in header]:
                    raise TextError(f"{key}: {path} has no column {', '.join(missing)}; it has {', '.join(header)}.")
                continue
            if len(cells) != len(header):
                raise TextError(
                    f"{key}: {path}, line {rows.line_num} has {len(cells)} cells and its first line {len(header)}; put "
                    f'cells that hold {_DELIMITERS[delimiter]} in quotes ("...").'
                )
            result.append((rows.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise TextError(f"{key}: {path}, line {rows.line_num} is no CSV ({error}).") from None
    if not result:
        raise TextError(f"{key}: {path} has no rows; give a table with the columns {', '.join(columns)}.")
    return result


def _header(cells: list[str], columns: Sequence[str]) -> list[str]:
    known = {name.lower(): name for name in columns}
    names = [cell.strip() for cell in cells]
    return [name if name in columns else known.get(name.lower(), name) for name in names]


def read_json(path: Path, key: str, encodings: Sequence[str] = ()) -> Any:
    """The value in a JSON file. Arguments and errors as `read_text`; a `TextError` as well if it is no JSON."""
    try:
        return json.loads(read_text(path, key, encodings))
    except json.JSONDecodeError as error:
        raise TextError(f"{key}: {path}, line {error.lineno} is no JSON ({error.msg}).") from None


def read_json_lines(path: Path, key: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON lines file with their line numbers.

    Args:
        path: The file.
        key: See `read_text`.
        wanted: Fields that every object must have.

    Raises:
        FileNotFoundError: There is no such file.
        TextError: See `read_text`; or a line is no JSON object or lacks a field.
    """
    for number, line in read_lines(path, key):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"{key}: {path}, line {number} is no JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise TextError(f"{key}: {path}, line {number} is no JSON object; write one {{...}} a line.")
        if missing := [name for name in wanted if name not in row]:
            raise TextError(f"{key}: {path}, line {number} lacks {', '.join(missing)}.")
        yield number, row


def named_path(name: Any, where: str) -> Path:
    """A path that a file of the user's names.

    Args:
        name: What it says.
        where: File, line and field, for error messages.

    Raises:
        TextError: It is no text, empty, or written as on Windows.
    """
    if not isinstance(name, str) or not name.strip():
        raise TextError(f"{where} names no file: {name!r}.")
    if "\\" in name and "/" not in name:
        raise TextError(f"{where} names {name!r}, a Windows path; write it with / instead of \\.")
    return Path(name)


# --- folders ---------------------------------------------------------------------------------------------

HIDDEN = "hidden"
"""Why a name that begins with a dot, or that macOS puts beside files, is passed over."""
_NOT_AN_IMAGE = {".txt", ".json", ".jsonl", ".csv", ".xml", ".md", ".yaml"}
"""What lies beside images on purpose: captions, labels, lists."""
IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Ends of the names of files that are read as images."""


@dataclass
class Walked:
    """What a folder holds.

    Attributes:
        files: Those that were looked for, sorted by name.
        others: What was passed over, by reason.
    """

    files: list[Path] = field(default_factory=list)
    others: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def passed_over(self) -> Counter[str]:
        """How many others there are, by reason."""
        return Counter({reason: len(paths) for reason, paths in self.others.items()})

    def leave(self, reason: str, path: Path) -> None:
        """Note something that was passed over."""
        self.others.setdefault(reason, []).append(path)

    def report(self) -> str:
        """What was passed over, as half a sentence; "" for nothing."""
        parts = [f"{len(paths)} {reason} ({paths[0].name})" for reason, paths in self.others.items()]
        return f"passed over: {', '.join(parts)}" if parts else ""


def walk(folder: Path, suffixes: Sequence[str] = IMAGES, deep: bool = True) -> Walked:
    """Search a folder, following links; a folder that is reached twice is searched once.

    Args:
        folder: Where.
        suffixes: Ends of the names that are looked for, in lower case.
        deep: Sub-folders as well.

    Returns:
        What was found; files that lie beside images on purpose (captions, labels) are not counted as passed over.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    if is_stored(folder):
        return _walk_a_store(folder, suffixes, deep)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is missing.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder.")
    contents, seen = Walked(), set[tuple[int, int]]()
    queue = [folder]
    while queue:
        here = queue.pop()
        state = here.stat()
        if (state.st_dev, state.st_ino) in seen:
            if here.is_symlink():  # where it leads to is searched anyway
                contents.leave("link to a folder that is searched already", here)
            continue
        seen.add((state.st_dev, state.st_ino))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            contents.leave(f"folder that cannot be opened: {error.strerror}", here)
            continue
        inner = [path for entry in entries if (path := _entry(entry, suffixes, deep, contents)) is not None]
        queue += reversed(inner)  # taken from the end
    contents.files.sort()
    return contents


def _walk_a_store(folder: Path, suffixes: Sequence[str], deep: bool) -> Walked:
    contents = Walked()
    paths = list(files_below(folder))
    if not paths:
        raise FileNotFoundError(f"{folder} is missing, or holds nothing.")
    for path in paths:
        parts = path.relative_to(folder).parts
        suffix = path.suffix.lower()
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            contents.leave(HIDDEN, path)
        elif not deep and len(parts) > 1:
            continue
        elif suffix in suffixes:
            contents.files.append(path)
        elif suffix not in _NOT_AN_IMAGE:
            contents.leave(_kind(suffix), path)
    return contents


def _kind(suffix: str) -> str:
    return f"{suffix} file" if suffix else "file without an ending"


def _entry(entry: os.DirEntry[str], suffixes: Sequence[str], deep: bool, contents: Walked) -> Path | None:
    """Count one thing in a folder; a sub-folder that is to be searched is returned."""
    path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        contents.leave(HIDDEN, path)
        return None
    try:
        kind = path.stat().st_mode
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP)
        contents.leave("link that leads nowhere" if broken else f"unreadable: {error.strerror}", path)
        return None
    if path.is_dir():
        if suffix in suffixes:
            contents.leave(f"folder named like a {suffix} file", path)
            return None
        return path if deep else None
    if not stat.S_ISREG(kind):  # reading a pipe waits for ever, reading a device need not end
        contents.leave("pipe, socket or device", path)
    elif suffix in suffixes:
        if os.access(path, os.R_OK):
            contents.files.append(path)
        else:
            contents.leave("without permission to read", path)
    elif suffix not in _NOT_AN_IMAGE:
        contents.leave(_kind(suffix), path)
    return None


def unique(numbered: Sequence[tuple[int, Path]], key: str) -> dict[int, Path]:
    """Files by their numbers.

    Raises:
        TextError: Two files have one number, as a copy or a thumbnail beside an original does.
    """
    result: dict[int, Path] = {}
    for number, path in numbered:
        if number in result:
            raise TextError(
                f"{key}: number {number} is {result[number]} and {path}; remove or move away what does not belong to the "
                "data set."
            )
        result[number] = path
    return result


# --- writing ---------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; when the block ends well the file or folder of that name takes its place.

    So nothing is ever half written: it is flushed to the disk before it is renamed, and removed if the block fails.

    Raises:
        OSError: It cannot be written; the message names it, and says so if the disk is full.
    """
    if is_stored(path):
        with TemporaryDirectory() as folder:
            yield Path(folder) / f"{path.name[:200]}.partial"
            put_file(Path(folder) / f"{path.name[:200]}.partial", path)
        return
    partial = path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}.partial")  # another machine may write it, too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _as_the_user_wants(partial)
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        _remove(partial)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # some libraries keep the words alone
            raise DiskFullError(
                f"the disk is full: {path} could not be written; make room, the same command goes on."
            ) from None
        raise


def remove_half_written(folder: Path) -> None:
    """Remove what `atomic_write` left below a folder when its program was killed; nobody else may be writing there."""
    for left in list(folder.rglob("*.partial")):
        _remove(left)


def _as_the_user_wants(path: Path) -> None:
    """Give what was written the permissions that the user's umask says (safetensors writes for its owner alone)."""
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        with suppress(OSError):  # a share may know no permissions
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """The process's umask as it is now; where no file tells it, as it was at the beginning."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return _UMASK


_UMASK = os.umask(0o077)  # elsewhere there is no way to read it but to set another, and threads would see that one
os.umask(_UMASK)


class DiskFullError(OSError):
    """There is no room for what was to be written; the message names it."""


def _remove(partial: Path) -> None:
    with suppress(OSError):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, see `atomic_write`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def content_key(*parts: Any) -> str:
    """Names a piece by everything it depends on: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
