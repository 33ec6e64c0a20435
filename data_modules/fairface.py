"""FairFace: faces balanced over seven groups, with labels by crowd workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_modules.folders import missing_data
from data_modules.records import Record
from fairanon.files import read_table

RACES = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian")
_COLUMNS = ("file", "age", "gender", "race")
_TREE = "  FOLDER/SPLIT/NUMBER.jpg\n  FOLDER/fairface_label_SPLIT.csv   columns " + ", ".join(_COLUMNS)


class FairFace:
    """FairFace with captions from its labels, which say how people looked to annotators, not who they are.

    Args:
        folder: The unpacked data set.
        split: "train" or "val".
        races: Only these groups; None takes all seven.
        caption: With ``{race}``, ``{gender}`` and ``{age}``, in lower case.
    """

    def __init__(
        self,
        folder: str,
        split: str = "train",
        races: tuple[str, ...] | None = None,
        caption: str = "a photo of a {race} {gender}",
    ) -> None:
        if unknown := sorted(set(races or ()) - set(RACES)):
            raise ValueError(f"FairFace.races: {unknown[0]!r} is not one of {', '.join(RACES)}.")
        self.folder, self.split, self.races, self.caption = Path(folder).expanduser(), split, races, caption

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; images have no masks."""
        table = self.folder / f"fairface_label_{self.split}.csv"
        if not table.exists():
            raise missing_data(
                self.folder, "FairFace", _TREE.replace("SPLIT", self.split),
                "github.com/joojs/fairface has the download.",
            )  # fmt: skip
        return [
            Record(
                self.folder / line["file"],
                self.caption.format(
                    race=line["race"].replace("_", " ").lower(), gender=line["gender"].lower(), age=line["age"].lower()
                ),
            )
            for _, line in read_table(table, "FairFace", _COLUMNS)
            if self.races is None or line["race"] in self.races
        ]
