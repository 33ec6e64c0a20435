"""Flickr-Faces-HQ: 70,000 faces, aligned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_modules.folders import images_in, missing_data
from data_modules.records import Record
from fairanon.files import unique

_TREE = "  FOLDER/NN000/NNNNN.png   or   FOLDER/NNNNN.png   (images1024x1024 or thumbnails128x128)"


class Ffhq:
    """FFHQ, sharded or flat, in the order of its numbers.

    Args:
        folder: ``images1024x1024`` or ``thumbnails128x128``.
        first: Number of the first image; the official validation set begins at 60,000.
        last: Number of the first image that no longer belongs to it; None goes on to the end.
        caption: Caption of every image.
    """

    def __init__(
        self, folder: str, first: int = 0, last: int | None = None, caption: str = "a photo of a face"
    ) -> None:
        self.folder, self.first, self.last, self.caption = Path(folder).expanduser(), first, last, caption

    minimum = 1
    """Nobody has a second image: each is its own mate (ID2Face, section IV.A)."""

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self._paths()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; images have no masks."""
        return [Record(path, self.caption) for path in self._paths()]

    def people(self) -> dict[str, list[Path]]:
        """See `PeopleSource`."""
        return {path.stem: [path] for path in self._paths()}

    def _paths(self) -> list[Path]:
        images = images_in(self.folder, (".png",))
        numbered = unique([(int(path.stem), path) for path in images if path.stem.isdigit()], "Ffhq")
        chosen = [numbered[k] for k in sorted(numbered) if k >= self.first and (self.last is None or k < self.last)]
        if not chosen:
            raise missing_data(self.folder, "Ffhq", _TREE, "github.com/NVlabs/ffhq-dataset has the download script.")
        return chosen
