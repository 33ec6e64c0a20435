"""Data sets in tars, as WebDataset writes them: files of one sample have one name, up to the first dot of its last part.

A tar that is not compressed can be read at any place. So each file is found once, and then read when its turn comes, in any order.
"""

from __future__ import annotations

import bisect
import itertools
import json
import posixpath
import tarfile
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast, overload

import pyarrow as pa

from data_modules import folders
from data_modules.folders import missing_data
from data_modules.records import Mask, Record
from fairanon.files import IMAGES, TextError, atomic_write, content_key
from fairanon.places import Member, is_stored, names_in, opened_for_reading, place, reach, stamp
from fairanon.progress import progress_bar

_TEXTS = ("txt", "json")
"""Endings of text files, whose content is kept in the index."""
_AT_ONCE = 8
_SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("tar", pa.int32()),
        ("start", pa.int64()),
        ("size", pa.int64()),
        ("text", pa.large_string()),
    ]
)
_TREE = "  FOLDER/*.tar   KEY.jpg (png, webp), KEY.txt or KEY.json (caption or text_english), KEY.mask_face.png, KEY.mask_hand.png, KEY.conditioning_image.png"  # fmt: skip


class Tars:
    """All files in the tars of a folder, by their names in them.

    Args:
        folder: On a disk or in a store.
        key: The setting that named it, for messages.

    Raises:
        TextError: A file is no tar that can be read at any place, or two have a file of one name.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        reach(folder, key)
        self.tars = _tars_in(folder)
        if not self.tars:
            what = "has no file *.tar" if is_stored(folder) or folder.is_dir() else "is missing"
            raise FileNotFoundError(
                f"{key}: {folder} {what}; give a folder with tars that are not compressed (gunzip a .tar.gz first)."
            )
        self._marks = [stamp(tar) for tar in self.tars]
        path = folders.CACHE / f"tars-{content_key(list(map(str, self.tars)), self._marks)[:16]}.arrow"
        if not path.exists():
            self._look(path)
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self.names = self.table["name"].chunk(0) if self.table.num_rows else pa.array([], pa.large_string())

    def _look(self, path: Path) -> None:
        """Find all files, and write where they are: millions of them do not fit into every process's memory."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(lambda numbered: list(self._files(*numbered)), enumerate(self.tars))
            bar = progress_bar(found, total=len(self.tars), desc="looking into tars", unit="tar")
            table = pa.Table.from_pylist(list(itertools.chain.from_iterable(bar)), _SCHEMA).sort_by("name")
        names = table["name"].to_pylist()
        for name, following in itertools.pairwise(names):
            if name == following:
                raise TextError(
                    f"{self.key}: the tars of {self.folder} have two files called {name}; each needs a name of its own."
                )
        with (
            atomic_write(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, _SCHEMA) as writer,
        ):
            writer.write_table(table)

    def _files(self, number: int, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with opened_for_reading(path) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
                for entry in tar:
                    name, last = posixpath.normpath(entry.name), entry.name.rpartition("/")[2]
                    if entry.isdir() or last.startswith("._"):  # folders, and what macOS adds
                        continue
                    where = f"{self.key}: {path}: {entry.name!a}"
                    if not entry.isfile() or entry.issparse():
                        kind = "is stored with holes" if entry.issparse() else "is a link, or no file"
                        raise TextError(f"{where} {kind}; write it whole, for example `tar --hard-dereference -h -cf`.")
                    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
                    if odd or name.startswith("/") or name.split("/")[0] == "..":
                        raise TextError(f"{where} has no name that can be read below a folder; rename it.")
                    text = None
                    if name.rpartition(".")[2].lower() in _TEXTS:
                        text = self._text(tar, entry, where)
                    yield {"name": name, "tar": number, "start": entry.offset_data, "size": entry.size, "text": text}
                raw.seek(tar.offset)
                if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise TextError(f"{self.key}: {path} does not end as a tar ends: it was cut off, or is damaged.")
        except tarfile.TarError as error:
            raise TextError(
                f"{self.key}: {path} cannot be read ({error}); it must be a tar that is not compressed."
            ) from None

    def _text(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, where: str) -> str:
        file = tar.extractfile(entry)
        try:
            return "" if file is None else file.read().decode("utf-8")
        except UnicodeDecodeError:
            raise TextError(f"{where} is not UTF-8; save it as UTF-8.") from None

    def row(self, name: str) -> int | None:
        """The row of a file; None if there is none of that name."""
        row = bisect.bisect_left(range(len(self.names)), name, key=lambda k: self.names[k].as_py())
        return row if row < len(self.names) and self.names[row].as_py() == name else None

    def text(self, name: str) -> str | None:
        """What a small file of text says."""
        row = self.row(name)
        return None if row is None else self.table["text"][row].as_py()

    def __truediv__(self, name: str | Path) -> Path:
        """The file of a name; of one that no tar has a path that does not exist."""
        row = self.row(Path(name).as_posix())
        if row is None:
            return self.folder / str(name)
        about = self.table.slice(row, 1).to_pylist()[0]
        tar = about["tar"]
        return cast(Path, Member(self.tars[tar], about["name"], about["start"], about["size"], self._marks[tar]))

    def samples(self, endings: Sequence[str]) -> list[int]:
        """The rows of files that are called like a sample and end so, whatever their capitals.

        Raises:
            TextError: A sample has two of them.
        """
        rows: dict[str, int] = {}
        for row, name in enumerate(self.names):
            key, ending = parts_of(name.as_py())
            if ending.lower() in endings and rows.setdefault(key, row) != row:
                both = f"{self.name(rows[key])} and {self.name(row)}"
                raise TextError(f"{self.key}: {self.folder}: one sample has {both}; leave one of them.")
        return list(rows.values())

    def name(self, row: int) -> str:
        """Of a file."""
        return str(self.names[row].as_py())


def parts_of(name: str) -> tuple[str, str]:
    """A sample's key, and the rest of a file's name.

    Examples:
        >>> parts_of("v1.0/0001.mask_face.png")
        ('v1.0/0001', '.mask_face.png')
    """
    folder, slash, last = name.rpartition("/")
    key, dot, rest = last.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{rest}"


def in_tars(folder: Path, key: str) -> Path | Tars:
    """A folder itself, or the tars in it if it holds some."""
    return Tars(folder, key) if _tars_in(folder) else folder


def _tars_in(folder: Path) -> list[Path]:
    """The tars that lie directly in a folder; hidden files are none."""
    names = names_in(folder) if is_stored(folder) or folder.is_dir() else []
    paths = [folder / name for name in names if name.endswith(".tar") and not name.startswith(".")]
    return [path for path in paths if is_stored(path) or not path.is_dir()]


class RegionTars:
    """FairHuman's images with masks, or Ano-Face-Fair's, in tars.

    Args:
        folder: With ``*.tar``, or its address in an object store.
        masks: The endings of masks, ``mask_face`` for ``KEY.mask_face.png``; none for images without. A sample that lacks one has
            none.
    """

    def __init__(self, folder: str, masks: tuple[str, ...] = ("mask_face", "mask_hand")) -> None:
        self.folder, self.masks = place(folder), masks

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`."""
        tars = Tars(self.folder, "RegionTars")
        records = _Samples(tars, self.masks)
        if not len(records):
            raise missing_data(self.folder, "RegionTars", _TREE, "Its tars hold no image with a caption.")
        return records


class _Samples(Sequence[Record]):
    """Records of samples, each made when it is asked for."""

    def __init__(self, tars: Tars, masks: tuple[str, ...]) -> None:
        self.tars, self.masks = tars, masks
        self.rows = array("q", tars.samples(IMAGES))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Record]: ...
    def __getitem__(self, row: int | slice) -> Record | Sequence[Record]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        image = self.tars.name(self.rows[row])
        key, _ = parts_of(image)
        masks = tuple(Mask(path=self._beside(key, name)) for name in self.masks)
        return Record(self.tars / image, self._caption(key), masks, self._beside(key, "conditioning_image"))

    def _beside(self, key: str, what: str) -> Path | None:
        """An image of a sample, whatever its ending; None without."""
        endings = [end for lower in IMAGES for end in (lower, lower.upper())]
        names = (f"{key}.{what}{end}" for end in (".png", *endings))
        return next((self.tars / name for name in names if self.tars.row(name) is not None), None)

    def _caption(self, key: str) -> str:
        for name in (f"{key}.txt", f"{key}.TXT"):
            if (text := self.tars.text(name)) is not None:
                return text.strip()
        about = sample_json(self.tars, key)
        caption = about.get("text_english", about.get("caption"))
        if not isinstance(caption, str):
            raise TextError(
                f"{self.tars.key}: {self.tars.folder}: {key} has no caption: add {key}.txt, or caption to {key}.json."
            )
        return caption


def sample_json(tars: Tars, key: str) -> dict[str, Any]:
    """What ``KEY.json`` says; {} without.

    Raises:
        TextError: It is no JSON object.
    """
    text = tars.text(f"{key}.json") or tars.text(f"{key}.JSON")
    try:
        about = {} if text is None else json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise TextError(f"{tars.key}: {tars.folder}: {key}.json is no JSON object.")
    return about
