"""CelebA-HQ with the part annotations of CelebAMask-HQ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_modules.folders import images_in, missing_data
from data_modules.records import Mask, Record
from fairanon.files import TextError, read_lines, unique
from fairanon.imaging import read_regions

_TREE = (
    "  FOLDER/CelebA-HQ-img/NUMBER.jpg                           30,000 images, 1024 x 1024\n"
    "  FOLDER/CelebAMask-HQ-mask-anno/0 to 14/NNNNN_PART.png     2,000 images each, 512 x 512"
)
_WHO = (
    "  FOLDER/CelebA-HQ-to-CelebA-mapping.txt   number, CelebA's number and file of each image\n"
    "  FOLDER/identity_CelebA.txt               CelebA's file and person"
)
PARTS = {
    "eyes": ("l_eye", "r_eye", "eye_g"),  # glasses are painted over the eyes behind them
    "brows": ("l_brow", "r_brow"),
    "nose": ("nose",),
    "lips": ("mouth", "u_lip", "l_lip"),
    "hair": ("hair",),
    "ears": ("l_ear", "r_ear"),
    "neck": ("neck",),
    "skin": ("skin",),
}
PARTS["face"] = tuple(part for name in ("skin", "eyes", "brows", "nose", "lips") for part in PARTS[name])
"""What a region's name stands for in the annotation."""


def parts_of(expression: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The annotation's parts that an expression such as "face-lips" or "eyes+nose" adds, and those it takes away."""
    chosen: dict[str, bool] = {}
    for added, name in read_regions(expression, PARTS):
        for part in PARTS[name]:
            chosen[part] = added
    return tuple(part for part, added in chosen.items() if added), tuple(p for p, added in chosen.items() if not added)


def _words(path: Path, count: int) -> Iterator[list[str]]:
    """The words of each line of a list, ``count`` of them."""
    for number, line in read_lines(path, "CelebAHq"):
        if len(words := line.split()) != count:
            raise TextError(f"CelebAHq: {path}, line {number} has {len(words)} words, wanted {count}.")
        yield words


class CelebAHq:
    """CelebAMask-HQ's images, each with the mask of a region.

    Args:
        folder: The unpacked data set.
        region: The mask: a region's name or an expression of several, see `PARTS`; None for images without masks.
        caption: Caption of every image.
        first: Number of the first image.
        last: Number of the first image that no longer belongs to it; None goes on to the end.
    """

    def __init__(
        self,
        folder: str,
        region: str | None = "face+ears+neck",
        caption: str = "a photo of a face",
        first: int = 0,
        last: int | None = None,
    ) -> None:
        self.folder, self.caption, self.first, self.last = Path(folder).expanduser(), caption, first, last
        self.parts, self.minus = ((), ()) if region is None else parts_of(region)

    minimum = 1

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def people(self) -> dict[str, list[Path]]:
        """See `PeopleSource`; CelebA's own list says who is who."""
        mapping, names = self.folder / "CelebA-HQ-to-CelebA-mapping.txt", self.folder / "identity_CelebA.txt"
        for path in (mapping, names):
            if not path.exists():
                raise missing_data(self.folder, "CelebAHq", _WHO, f"{path.name} comes with the data set it names.")
        person = {cells[0]: cells[1] for cells in _words(names, 2)}
        lines = itertools.islice(_words(mapping, 3), 1, None)  # its first line names the columns
        who = {int(number): person[file] for number, _, file in lines if file in person}
        by_person: dict[str, list[Path]] = {}
        for record in self.records():
            number = int(record.image.stem)
            if number not in who:
                raise ValueError(f"CelebAHq: {mapping} or {names} does not know image {number}.")
            by_person.setdefault(who[number], []).append(record.image)
        return by_person

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; parts that are hidden have no file."""
        paths = images_in(self.folder / "CelebA-HQ-img", (".jpg",), deep=False)
        images = unique([(int(path.stem), path) for path in paths if path.stem.isdigit()], "CelebAHq")
        annotation = self.folder / "CelebAMask-HQ-mask-anno"
        if not images or (self.parts and not annotation.is_dir()):
            raise missing_data(
                self.folder, "CelebAHq", _TREE, "github.com/switchablenorms/CelebAMask-HQ has the download."
            )
        chosen = [n for n in sorted(images) if n >= self.first and (self.last is None or n < self.last)]
        return [Record(images[n], self.caption, self._masks(annotation, n)) for n in chosen]

    def _masks(self, annotation: Path, number: int) -> tuple[Mask, ...]:
        def files(parts: tuple[str, ...]) -> list[Path]:
            paths = (annotation / str(number // 2000) / f"{number:05d}_{part}.png" for part in parts)
            return [path for path in paths if path.exists()]

        minus = tuple(files(self.minus))  # the skin's mask is solid: lips are in it
        masks = tuple(Mask(path=path, scaled=True, minus=minus) for path in files(self.parts))
        return masks or (Mask(),) * bool(self.parts)  # an empty one is counted and left out
