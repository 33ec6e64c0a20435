"""People whom a user names by photographs of them: everybody but these is hidden, or these alone. Who is unsure is hidden."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from fairanon.anonymizer.attack import Attacker, has_a_say
from fairanon.anonymizer.faces import Face
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.sources import Item, collect
from fairanon.config.experiments import UserError
from fairanon.files import content_key
from fairanon.imaging import CorruptImageError
from fairanon.metrics.functional.verification import Metric, distances
from fairanon.progress import progress_bar

SURE = 0.75
"""A face is a named person's where its distance is at most this share of a recognizer's threshold: strangers stay hidden."""
POSSIBLE = 1.25
"""It may be a named person's up to this multiple of it: then it is hidden, where these alone are."""
_SCALES = (0.9, 1.0, 1.1)
"""Sizes at which recognizers see a named person: detectors draw the box of the same face larger or smaller elsewhere."""
_SECOND = 0.5
"""A photograph of a person must not show a second face with more than this share of the area of the largest one."""


class NamedPeople:
    """Compares faces with those of people whom a user named.

    Args:
        folder: Photographs of them; the largest face of each counts.
        keep: They stay and all others are hidden; otherwise they alone are hidden.
        finder: Finds their faces.
        attacker: Its recognizers compare them; all of them must agree before a face stays.

    Raises:
        UserError: There is no photograph, or one shows nobody or several people.
    """

    def __init__(self, folder: Path, keep: bool, finder: Finder, attacker: Attacker) -> None:
        self.keep, self.attacker = keep, attacker
        self._option, self._folder = "--keep-person" if keep else "--only-person", folder
        try:
            source = collect((folder,))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._option}: {str(error).removeprefix('IN: ')}") from None
        items = source.items
        if source.left:
            name, why = source.left[0]
            raise UserError(
                f"{self._option}: {folder / name} shows nobody ({why}); take it out of the folder, or save it as JPEG or PNG."
            )
        known = [self._known(item, finder) for item in progress_bar(items, desc="people you named", unit="img")]
        self.photographs = len(known)
        self.digest = content_key(*sorted(hashlib.sha256(item.read()).hexdigest() for item in items))
        """Tells whether the photographs are still the same."""
        self._people = {m.name: torch.cat([embeddings[m.name] for embeddings in known]) for m in attacker.matchers}

    def hides(self, face: Face, pixels: Tensor) -> bool:
        """Whether a face of uint8 (3, H, W) is to be hidden."""
        self.attacker.look(face, pixels)
        near = [self._nearest(face, matcher.name, matcher.metric) for matcher in self.attacker.matchers]
        if self.keep:
            return not all(value is not None and value <= SURE for value in near)
        return any(value is None or value <= POSSIBLE for value in near)

    def _nearest(self, face: Face, name: str, metric: Metric) -> float | None:
        """The distance to the nearest named person as a multiple of the threshold; None of a face that cannot be judged."""
        if not self._judges(face, name):
            return None
        near = distances(face.seen[name].embedding[None], self._people[name], metric).min()
        return float(near) / self.attacker.thresholds[name].value

    def _known(self, item: Item, finder: Finder) -> dict[str, Tensor]:
        try:
            pixels = read_photo(item.read(), item.name).pixels
        except CorruptImageError as error:
            raise UserError(f"{self._option}: {error}.") from None
        detections = finder.find(pixels)
        faces = [
            Face((x0, y0, x1, y1), score, quarters=quarters)
            for (x0, y0, x1, y1), score, quarters in zip(
                detections.boxes.tolist(), detections.scores.tolist(), detections.quarters.tolist(), strict=True
            )
        ]
        faces.sort(key=lambda face: face.area, reverse=True)
        if not faces:
            raise UserError(
                f"{self._option}: no face is found in {self._folder / item.name}; take another photograph of that person."
            )
        if len(faces) > 1 and faces[1].area > _SECOND * faces[0].area:
            raise UserError(
                f"{self._option}: {self._folder / item.name} shows several people; cut out the one whom you mean."
            )
        shown: dict[str, list[Tensor]] = {matcher.name: [] for matcher in self.attacker.matchers}
        for scale in _SCALES:
            face = _scaled(faces[0], scale)
            self.attacker.look(face, pixels)
            for name, rows in shown.items():
                if self._judges(face, name):
                    rows.append(face.seen[name].embedding)
        if lacks := [name for name, rows in shown.items() if not rows]:
            raise UserError(
                f"{self._option}: {lacks[0]} cannot judge the face in {self._folder / item.name}; take one seen from the front."
            )
        return {name: torch.stack(rows) for name, rows in shown.items()}

    def _judges(self, face: Face, name: str) -> bool:
        return name in face.seen and has_a_say(face.seen[name], self.attacker.thresholds[name])


def _scaled(face: Face, scale: float) -> Face:
    """The face in a box of another size about the same middle."""
    x0, y0, x1, y1 = face.box
    x, y, w, h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * scale / 2, (y1 - y0) * scale / 2
    return Face((x - w, y - h, x + w, y + h), face.score, quarters=face.quarters)
