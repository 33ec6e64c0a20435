"""AI Hub's public face data sets, as downloaded or as a flat folder of chosen images."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_modules.folders import images_in, missing_data
from data_modules.records import Record
from fairanon.files import read_json, walk
from fairanon.progress import progress_bar

SOURCES, LABELS = "원천데이터", "라벨링데이터"
_ENCODINGS = ("cp949",)  # some of the labels
_TREE = (
    f"  FOLDER/*.jpg                                  chosen images, or\n"
    f"  FOLDER/SPLIT/{SOURCES}/*.zip or folders   images\n"
    f"  FOLDER/SPLIT/{LABELS}/*.zip or folders   label JSON, if there is any"
)


class AiHub:
    """Faces of one of AI Hub's data sets (https://aihub.or.kr, after approval), or of several put together.

    Args:
        folder: A data set's folder, or a flat folder of images, such as the 4,515 that the paper chose.
        caption: Caption of every image; ``{key}`` is replaced by the value of that key, wherever in the image's
            label it stands. The paper has one for all.
        split: "Training" or "Validation".
    """

    def __init__(self, folder: str, caption: str = "a photo of asian", split: str = "Training") -> None:
        self.folder, self.caption, self.split = Path(folder).expanduser(), caption, split

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; images have no masks."""
        flat = images_in(self.folder, deep=False)
        sources = self.folder / self.split / SOURCES
        if not flat and not sources.is_dir():
            raise missing_data(
                self.folder,
                "AiHub",
                _TREE.replace("SPLIT", self.split),
                "Download it from aihub.or.kr after approval; docs/data.md names the data sets.",
            )
        images = flat or images_in(_extracted(sources))
        if not images:
            raise missing_data(self.folder, "AiHub", _TREE.replace("SPLIT", self.split), "No image was found.")
        labels = self.folder / self.split / LABELS
        named: dict[str, list[Path]] = {}
        if not flat and labels.is_dir():
            for path in walk(_extracted(labels), (".json",)).files:
                named.setdefault(path.stem, []).append(path)
        return [Record(path, self._caption(path, _label(path, named.get(path.stem, [])))) for path in images]

    def _caption(self, image: Path, label: Path | None) -> str:
        keys = re.findall(r"\{(\w+)\}", self.caption)
        if not keys:
            return self.caption
        if label is None:
            raise ValueError(f"AiHub.caption: {image} has no label, but the caption asks for {{{keys[0]}}}.")
        fields = dict(_leaves(read_json(label, "AiHub", _ENCODINGS)))
        if missing := [key for key in keys if key not in fields]:
            raise ValueError(f"AiHub.caption: {label} has no {missing[0]!r}; it has {', '.join(sorted(fields))}.")
        return self.caption.format(**{key: fields[key] for key in keys})


def _label(image: Path, named: list[Path]) -> Path | None:
    """Of the labels of an image's name the one that lies in folders of the same names."""
    if len(named) < 2:
        return named[0] if named else None

    def shared(label: Path) -> int:
        pairs = zip(reversed(image.parent.parts), reversed(label.parent.parts), strict=False)
        return len(list(itertools.takewhile(lambda names: names[0] == names[1], pairs)))

    first, second = sorted(named, key=shared, reverse=True)[:2]
    if shared(first) == shared(second):
        raise ValueError(f"AiHub: {image} may belong to {first} or to {second}; remove one.")
    return first


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and plain values at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, (dict, list)):
            yield from _leaves(inner)
        else:
            yield str(key), inner


def _extracted(folder: Path) -> Path:
    """Unpack every archive in a folder beside itself, once.

    Raises:
        ValueError: An archive holds a file that would land outside its folder, or is damaged; nothing is left behind.
    """
    for path in progress_bar(sorted(folder.glob("*.zip")), desc=f"unpacking {folder.name}", disable=None):
        target = path.with_suffix("")
        if target.exists():
            continue
        partial = path.with_suffix(f".{os.getpid()}.partial")  # each rank its own
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not (partial / name).resolve().is_relative_to(partial.resolve()):
                        raise ValueError(
                            f"AiHub: {path} holds {name!r}, which lies outside the archive; it was not unpacked."
                        )
                archive.extractall(partial)
            try:
                partial.rename(target)
            except OSError:
                if not target.exists():  # otherwise another rank was first
                    raise
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"AiHub: {path} is damaged ({error}); download it again.") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
