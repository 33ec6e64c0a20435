"""Images that somebody else's program made, as if a model had drawn them: a folder, and which prompt each is of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.files import TextError, named_path, read_json, read_json_lines, read_table, walk
from fairanon.imaging import CorruptImageError, opened, read_image, resized
from fairanon.progress import progress_bar
from fairanon.prompts import PROMPT_COLUMNS, prompt_of
from fairanon.seeding import Key

_log = logging.getLogger(__name__)
TABLE, METADATA = "prompts.csv", "metadata.jsonl"
_ORIENTATION = 0x0112
_FILE = ("file", "file_name", "file_path", "image", "path")


class ImageFolder:
    """A folder of images and their prompts, in the first of these layouts that fits.

    (a) ``prompts.csv``, or the table that is given: a column of files and one of prompts, and further ones.
    (b) Hugging Face's ``metadata.jsonl``: ``{"file_name": ..., "text": ...}`` a line.
    (c) For every image a ``.json`` of the same name with its ``prompt``, as PopAlign's scripts write them.
    (d) A folder for each prompt, whose name is the prompt, with _ for spaces.

    Args:
        folder: Where.
        table: Another CSV that says which file is of which prompt.
        strict: Refuse an image that cannot be read, in place of taking it for one that shows nobody.

    Attributes:
        side: Of what is handed out, for judges of images of one size; None leaves images as they are.
        files: Of each prompt, sorted.
        about: What else a table says of a prompt, by column.
        differing: Columns that differ among the images of a prompt, and where: they say nothing of prompts.
        unused: Images of the folder that are of no prompt.

    Raises:
        FileNotFoundError: There is no such folder, or none of the layouts fits.
        TextError: A table names no images or no prompts, a file that is missing or twice, or contradicts itself.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path, table: Path | None = None, strict: bool = False) -> None:
        self.folder, self.strict = folder, strict
        self.side: int | None = None
        self.there = {path.relative_to(folder).as_posix(): path for path in walk(folder).files}
        self.files: dict[str, list[Path]] = {}
        self.about: dict[str, dict[str, str]] = {}
        self.differing: dict[str, str] = {}
        self._shape = (3, 64, 64)
        used = set[Path]()
        for prompt, path, about, where in self._named(table):
            if path in used:
                raise TextError(f"{where}: {path} has a prompt already; leave one of the lines.")
            used.add(path)
            self.files.setdefault(prompt, []).append(path)
            known = self.about.setdefault(prompt, dict(about))
            for key in dict.fromkeys((*known, *about)):
                here, above = about.get(key, ""), known.setdefault(key, "")
                if here != above:
                    self.differing.setdefault(
                        key, f"{where}: {key} of {prompt!r} is {here!r} here and {above!r} above."
                    )
        if "set" in self.differing:
            raise TextError(self.differing["set"])
        for paths in self.files.values():
            paths.sort()
        self.unused = len(self.there) - len(used)

    def _named(self, table: Path | None) -> Iterator[tuple[str, Path, Mapping[str, str], str]]:
        """Each image with its prompt, what else is known of it, and where that stands."""
        lists = self.folder / METADATA
        inside = [path for path in self.there.values() if path.parent != self.folder]
        beside = [path.with_suffix(".json") for path in self.there.values()]
        if table is not None or (self.folder / TABLE).exists():
            place, key = (self.folder / TABLE, "MODEL") if table is None else (table, "--prompts")
            for number, row in read_table(place, key, ()):
                yield from self._line(row, f"{place}, line {number}")
        elif lists.exists():
            for number, line in read_json_lines(lists, "MODEL", ()):
                yield from self._line(line, f"{lists}, line {number}")
        elif 2 * sum(place.exists() for place in beside) > len(beside):
            if lost := [name for name, place in zip(self.there, beside, strict=True) if not place.exists()]:
                raise TextError(
                    f"MODEL: {self.folder} has a .json beside most images and none beside {lost[0]}; add it, or take the image out."
                )
            for path, place in zip(self.there.values(), beside, strict=True):
                content = read_json(place, "MODEL")
                yield prompt_of(content if isinstance(content, dict) else {}, str(place)), path, {}, str(place)
        elif inside:
            for path in inside:
                yield path.parent.name.replace("_", " "), path, {}, str(path)
        else:
            raise FileNotFoundError(
                f"{self.folder} does not say which image is of which prompt; put a {TABLE} with the columns file and "
                "prompt into it, or the images into a folder for each prompt."
            )

    def _line(self, row: Mapping[str, Any], where: str) -> Iterator[tuple[str, Path, dict[str, str], str]]:
        named = {key.strip().lower(): value for key, value in row.items() if value not in (None, "")}
        column = next((name for name in _FILE if name in named), None)
        if column is None:
            raise TextError(f"{where} names no image; the column is called {', '.join(_FILE[:-1])} or {_FILE[-1]}.")
        name = named_path(named[column], where).as_posix()
        if name not in self.there:
            raise TextError(f"{where}: there is no image {name} in {self.folder}.")
        rest = {key: str(value).strip() for key, value in named.items() if key not in (column, *PROMPT_COLUMNS)}
        yield prompt_of(named, where), self.there[name], rest, where

    def rows(self) -> list[PromptRow]:
        """Its prompts, in the order of their names; what a table says beside ``set`` is what they ask for."""
        return [
            PromptRow(
                prompt,
                self.about[prompt].get("set", ""),
                {k: v for k, v in self.about[prompt].items() if k != "set" and k not in self.differing},
                images=len(paths),
            )
            for prompt, paths in sorted(self.files.items())
        ]

    def sizes(self) -> set[tuple[int, int]]:
        """Widths and heights of its images, at most two of them; files that cannot be read have none."""
        sizes: set[tuple[int, int]] = set()
        paths = [path for paths in self.files.values() for path in paths]
        for path in progress_bar(paths, desc="sizes", unit="img", leave=False):
            try:
                with opened(path, str(path)) as image:
                    turned = image.getexif().get(_ORIENTATION, 1) >= 5
                    sizes.add(image.size[::-1] if turned else image.size)
            except CorruptImageError:
                continue
            if len(sizes) > 1:
                break
        if len(sizes) == 1:
            width, height = next(iter(sizes))
            self._shape = (3, height, width)
        return sizes

    def origin(self) -> list[Any]:
        """See `Sampler`."""
        return [
            [prompt, path.relative_to(self.folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
            for prompt, paths in self.files.items()
            for path in paths
        ]

    def sample(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]]) -> Tensor:
        """See `Sampler`: of a key's number the file of that number, in the judges' own size where they have one.

        Images of several sizes are read one at a time. One that cannot be read is black: it shows nobody.

        Raises:
            CorruptImageError: One cannot be read, and all have to be.
        """
        images: list[Tensor | None] = []
        for row, key in zip(rows, keys, strict=True):
            path = self.files[row.prompt][int(key[-1])]
            try:
                image = read_image(path, path.relative_to(self.folder).as_posix())
                images.append(image if self.side is None else resized(image[None], self.side)[0])
            except CorruptImageError as error:
                if self.strict:
                    raise CorruptImageError(f"{error}; mend it, or take it out of {self.folder}") from error
                _log.warning("%s; it counts as an image that shows nothing", error)
                images.append(None)
        shape = next((image.shape for image in images if image is not None), self._shape)
        return torch.stack([torch.zeros(shape, dtype=torch.uint8) if image is None else image for image in images])


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds images, not a model: nothing is read."""
    if not folder.is_dir() or (folder / "model_index.json").exists() or (folder / "config.yaml").exists():
        return False
    return bool(walk(folder).files)
