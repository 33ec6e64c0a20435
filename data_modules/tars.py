"""Data sets in tars, as WebDataset writes them: files of one sample have one name, up to the first dot of its last part.

A tar that is not compressed can be read at any place. So each file is found once, and then read when its turn comes, in any order.
"""

from __future__ import annotations

import bisect
import itertools
import json
import tarfile
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
"""Files that are kept in the index: they are small, and a sample without them is none."""
_AT_ONCE = 8
_SCHEMA = pa.schema(
    [("name", pa.string()), ("tar", pa.int32()), ("start", pa.int64()), ("size", pa.int64()), ("text", pa.string())]
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
        names = names_in(folder) if is_stored(folder) or folder.is_dir() else []
        self.tars = [folder / name for name in names if name.endswith(".tar")]
        if not self.tars:
            raise missing_data(folder, key, "  FOLDER/*.tar", "Give a folder with tars that are not compressed.")
        self._marks = [stamp(tar) for tar in self.tars]
        path = folders.CACHE / f"tars-{content_key(list(map(str, self.tars)), self._marks)[:16]}.arrow"
        if not path.exists():
            self._look(path)
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        self.names = self.table["name"].chunk(0) if self.table.num_rows else pa.array([], pa.string())

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
                    f"{self.key}: two tars of {self.folder} have a file {name}; each sample needs a name of its own."
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
                    if not entry.isfile():
                        continue
                    text = None
                    if entry.name.rpartition(".")[2] in _TEXTS:
                        file = tar.extractfile(entry)
                        text = file.read().decode("utf-8") if file is not None else None
                    name = entry.name.removeprefix("./")
                    yield {"name": name, "tar": number, "start": entry.offset_data, "size": entry.size, "text": text}
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise TextError(
                f"{self.key}: {path} cannot be read ({error}); it must be a tar that is not compressed."
            ) from None

    def row(self, name: str) -> int | None:
        """The row of a file; None if there is none of that name."""
        row = bisect.bisect_left(range(len(self.names)), name, key=lambda k: self.names[k].as_py())
        return row if row < len(self.names) and self.names[row].as_py() == name else None

    def text(self, name: str) -> str | None:
        """What a small file of text says."""
        row = self.row(name)
        return None if row is None else self.table["text"][row].as_py()

    def __truediv__(self, name: str | Path) -> Path:
        """A file; one that is not there lies in the folder, where nobody finds it."""
        row = self.row(Path(name).as_posix())
        if row is None:
            return self.folder / str(name)
        about = self.table.slice(row, 1).to_pylist()[0]
        tar = about["tar"]
        return cast(Path, Member(self.tars[tar], about["name"], about["start"], about["size"], self._marks[tar]))

    def samples(self, endings: Sequence[str]) -> list[int]:
        """The rows of files that are called like a sample and end so; of several of one sample the first."""
        rows: dict[str, int] = {}
        for row, name in enumerate(self.names):
            key, ending = parts_of(name.as_py())
            if ending.lower() in endings:
                rows.setdefault(key, row)
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
    there = names_in(folder) if is_stored(folder) or folder.is_dir() else []
    return Tars(folder, key) if any(name.endswith(".tar") for name in there) else folder


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
        masks = tuple(Mask(path=self._there(f"{key}.{name}.png")) for name in self.masks)
        return Record(self.tars / image, self._caption(key), masks, self._there(f"{key}.conditioning_image.png"))

    def _there(self, name: str) -> Path | None:
        return None if self.tars.row(name) is None else self.tars / name

    def _caption(self, key: str) -> str:
        if (text := self.tars.text(f"{key}.txt")) is not None:
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
    text = tars.text(f"{key}.json")
    try:
        about = {} if text is None else json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise TextError(f"{tars.key}: {tars.folder}: {key}.json is no JSON object.")
    return about
