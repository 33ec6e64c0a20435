"""Body-Hands: hand polygons of people in the wild, in Pascal VOC's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from data_modules.folders import missing_data
from data_modules.records import Mask, Polygon, Record
from fairanon.files import TextError, read_lines, read_text

_TREE = "  FOLDER/ImageSets/Main/train.txt\n  FOLDER/Annotations/ID.xml\n  FOLDER/JPEGImages/ID.jpg"


class BodyHands:
    """The data set of "Whose Hands Are These?" (its folder ``VOC2007``); it has hands, but no faces and no captions.

    Args:
        folder: With ImageSets, Annotations and JPEGImages.
        split: ``train`` or ``test``.
        caption: The caption of every image.
    """

    def __init__(self, folder: str, split: str = "train", caption: str = "a photo of a person") -> None:
        self.folder, self.split, self.caption = Path(folder), split, caption

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`."""
        listing = self.folder / "ImageSets" / "Main" / f"{self.split}.txt"
        if not listing.exists():
            raise missing_data(self.folder, "BodyHands", _TREE, "Download it from its project page.")
        return [self._record(line.strip()) for _, line in read_lines(listing, "BodyHands")]

    def _record(self, name: str) -> Record:
        path = self.folder / "Annotations" / f"{name}.xml"
        try:
            tree = ElementTree.fromstring(read_text(path, "BodyHands"))
        except ElementTree.ParseError as error:
            raise TextError(f"BodyHands: {path} cannot be read ({error}).") from None
        hands: list[Polygon] = []
        for thing in tree.iter("object"):
            if thing.findtext("name") == "hand":
                corners = [(thing.findtext(f"bndbox/x{k}"), thing.findtext(f"bndbox/y{k}")) for k in range(1, 5)]
                if any(value is None for corner in corners for value in corner):
                    raise ValueError(f"BodyHands: {path} has a hand without its four corners x1, y1, ... x4, y4.")
                hands.append([(float(x), float(y)) for x, y in corners])  # type: ignore[arg-type]  # checked
        image = self.folder / "JPEGImages" / f"{name}.jpg"
        return Record(image, self.caption, (Mask(), Mask(polygons=hands)))
