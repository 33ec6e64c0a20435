"""VGGFace2-HQ: aligned faces of about 9,000 people, several of each."""

from __future__ import annotations

from pathlib import Path

from data_modules.folders import images_in, missing_data
from fairanon.files import named_path, read_lines

_TREE = "  FOLDER/n000002/0001_01.jpg ...   a folder for each person (png and webp are read too)"


class VggFace2Hq:
    """A folder of identity folders.

    Args:
        folder: The data set.
        list_file: A text file with one image a line, relative to the folder ("n000002/0001_01.jpg"), as
            ``train_list.txt`` of VGGFace2; None takes everything.
        minimum: Images with a face that a person must have: one alone has no mate.
    """

    def __init__(self, folder: str, list_file: str | None = None, minimum: int = 2) -> None:
        if minimum < 1:
            raise ValueError(f"VggFace2Hq: minimum must be at least 1, got {minimum}.")
        self.folder, self.minimum = Path(folder).expanduser(), minimum
        self.list_file = None if list_file is None else Path(list_file).expanduser()

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.people()

    def people(self) -> dict[str, list[Path]]:
        """See `PeopleSource`."""
        if self.list_file is None:
            paths = [path for path in images_in(self.folder) if path.parent.parent == self.folder]
        else:
            paths = self._listed(self.list_file)
        if not paths:
            raise missing_data(self.folder, "VggFace2Hq", _TREE, "github.com/NNNNAI/VGGFace2-HQ has the download.")
        by_person: dict[str, list[Path]] = {}
        for path in paths:
            by_person.setdefault(path.parent.name, []).append(path)
        return by_person

    def _listed(self, file: Path) -> list[Path]:
        if not file.exists():
            raise FileNotFoundError(f"VggFace2Hq: the list {file} is missing; null takes the whole folder.")
        paths = []
        for number, line in read_lines(file, "VggFace2Hq"):
            path = self.folder / named_path(line.strip(), f"VggFace2Hq: {file}, line {number}")
            if not path.exists():
                raise FileNotFoundError(f"VggFace2Hq: {file}, line {number} names {path}, which is missing.")
            paths.append(path)
        return sorted(paths)
