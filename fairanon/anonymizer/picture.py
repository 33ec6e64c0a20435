"""The life of one picture: read, found, hidden, written, looked at as a whole, attacked, and only then called something."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fairanon.anonymizer.attack import Attacker
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.find import Finder, Found, overlap, resized
from fairanon.anonymizer.hide import Hider, ellipse, region
from fairanon.anonymizer.manifest import Outcome, picture_digest
from fairanon.anonymizer.named import NamedPeople
from fairanon.anonymizer.photos import UNMARKED, Photo, read_photo, upright
from fairanon.anonymizer.sources import Item
from fairanon.anonymizer.verdicts import HIDDEN, KEPT
from fairanon.config.experiments import UserError
from fairanon.imaging import CorruptImageError
from fairanon.redaction import REDACTIONS

_INSIDE = 0.6
"""Share of a box, found in a result, that lies in what was hidden from which on it is of the hidden face."""
_ALIKE = 0.4
"""Intersection over union from which on it is, too."""
_MEETS = 0.2
"""Likewise, from which on a box of the user's own shows a face that is found."""
_SAME = 0.5
"""Likewise, from which on a face is the one that the user says may stay."""
_AROUND = 4
"""Side of what is searched at once round what was hidden anew, as a multiple of its own."""
_LEAST = 8
"""Pixels of a face at least: a smaller box of the user's own hides nobody."""


@dataclass(frozen=True)
class Choices:
    """What a user decides about a collection.

    Attributes:
        faces: Whose are hidden.
        boxes: Of a user's own: hidden beside what is found, or alone.
        min_face: Faces whose larger side has fewer pixels are left as they are.
        no_face: What becomes of pictures without a face.
        tries: How often a face is hidden, and a result looked at, before somebody has to look at it.
        jpeg_quality: Of what is written; None keeps files about as large as they were.
        hashes: Note a digest of each original in the manifest: it links the two.
    """

    faces: Literal["all", "largest"] = "all"
    boxes: Literal["add", "only"] = "add"
    min_face: float = 0
    no_face: Literal["review", "copy", "skip"] = "review"
    tries: int = 4
    jpeg_quality: int | None = None
    hashes: bool = False


class Treatment:
    """What happens to a picture, whichever thread or process takes it.

    Args:
        hider: Hides faces.
        finder: Finds them, in the original and in the result.
        attacker: Attacks them; None where nobody does.
        choices: The user's.
        named: Whose faces stay, or are hidden alone; None: everybody's are hidden.
    """

    def __init__(
        self,
        hider: Hider,
        finder: Finder,
        attacker: Attacker | None,
        choices: Choices,
        named: NamedPeople | None = None,
    ) -> None:
        self.hider, self.finder, self.attacker, self.choices, self.named = hider, finder, attacker, choices, named
        self.secret = secrets.token_bytes(32)
        """Of the run: marks of the originals depend on it."""
        self.done: Callable[[Picture], None] = lambda picture: None
        """Takes a picture that is ready, before its outcome is told."""

    # --- before it is hidden -----------------------------------------------------------------------------

    def look_at(self, item: Item) -> Outcome | Picture:
        """Read a file and find its faces; an outcome if it cannot be read."""
        begin = time.perf_counter()
        try:
            raw = item.read()
            photo = read_photo(raw, item.name)
        except CorruptImageError as error:
            seconds = time.perf_counter() - begin
            return Outcome(item.name, "unreadable", "nowhere", str(error), seconds=seconds)
        faces, doubts = self._faces(item, photo)
        self._refuse_the_wrong_world(item, photo, faces)
        source = hashlib.sha256(raw).hexdigest() if self.choices.hashes else None
        return Picture(item.name, photo, faces, doubts, item.key(), mark=self.mark(raw), source=source)

    def _refuse_the_wrong_world(self, item: Item, photo: Photo, faces: Sequence[Face]) -> None:
        judges: list[Any] = [*self.finder.detectors, *(self.attacker.matchers if self.attacker is not None else [])]
        drawn = [judge.name for judge in judges if getattr(judge, "drawn_world", False)]
        if drawn and not _is_drawn(photo.pixels, [face.box for face in faces]):
            raise UserError(
                f"{drawn[0]} is a judge of the drawn world and knows nothing of photographs: {item.name} is one."
            )

    def mark(self, raw: bytes) -> str:
        """Tells whether an original is still the same; nothing to anybody without the run's secret."""
        return hmac.new(self.secret, raw, hashlib.sha256).hexdigest()

    def open(self, item: Item) -> Outcome | Picture:
        """A picture that is ready to be hidden; an outcome if there is nothing to hide."""
        begin = time.perf_counter()
        picture = self.look_at(item)
        if isinstance(picture, Outcome):
            return picture
        if picture.asked:
            if self.attacker is not None:
                self.attacker.meet(picture)
            picture.seconds = time.perf_counter() - begin
            return picture
        left = picture.left
        place = {"review": "review", "copy": "no-face", "skip": "nowhere"}[self.choices.no_face]
        verdict, reasons = "no face", ["no face was found"]
        if left:
            verdict, reasons = "not anonymized", [f"{left} faces are left as they are"]
        elif picture.faces:
            verdict, place, reasons = KEPT, "finished", []
            if self.attacker is None:
                place, reasons = "review", ["not attacked (--skip-attack)"]
        if left or picture.doubts:
            place = "review"
        if place != "nowhere":
            picture.encoded = self._encoded(picture, picture.photo.pixels)
            self.done(picture)
        picture.seconds = time.perf_counter() - begin
        return self._outcome(picture, verdict, place, "; ".join([*reasons, *picture.doubts]))

    def _faces(self, item: Item, photo: Photo) -> tuple[list[Face], list[str]]:
        """Whom the detectors find, and where the user's own boxes are; why a person has to look at them."""
        detections = self.finder.find(photo.pixels)
        doubts: list[str] = []
        own = keep = torch.empty(0, 4)
        if item.boxes is not None:
            own, doubts = _believed(item.boxes, photo, detections, item.size)
        if item.keep is not None:
            keep, more = _believed(item.keep, photo, detections, item.size)
            doubts += [f"keep: {doubt}" for doubt in more if doubt not in doubts]
        ones = torch.ones(len(own))
        together = Found(
            torch.cat([own, detections.boxes]),
            torch.cat([ones, detections.scores]),
            torch.cat([ones.long() * 0, detections.quarters]),
        )
        faces = []
        union, groups = together.united()
        for box, score, group in zip(union.boxes.tolist(), union.scores.tolist(), groups, strict=True):
            x0, y0, x1, y1 = (round(value, 1) for value in box)  # as the manifest has them
            seen = group[group >= len(own)]
            mine = bool((group < len(own)).any())
            asked = max(x1 - x0, y1 - y0) >= self.choices.min_face and (mine or self.choices.boxes == "add")
            shown = len(seen) > 0 or bool(_meet(torch.tensor(box), detections.boxes).any())
            quarters = int(together.quarters[seen[0]]) if len(seen) else 0
            faces.append(Face((x0, y0, x1, y1), score, asked, found=shown, quarters=quarters))
        if self.choices.faces == "largest" and faces:
            largest = max(faces, key=lambda face: face.area)
            for face in faces:
                face.asked = face.asked and face is largest
        meant = 0
        for face in faces:
            box = torch.tensor(face.box)
            known = bool((overlap(box, keep) >= _SAME).any())
            meant += known
            if not face.asked or bool(_meet(box, own).any()):  # what a user's own box shows is hidden in any case
                continue
            if known or (self.named is not None and not self.named.hides(face, photo.pixels)):
                face.asked, face.verdict = False, KEPT
        if item.keep is not None and meant != len(item.keep):
            doubts.append(f"keep: {meant} faces are found for its {len(item.keep)} boxes")
        return faces, doubts

    # --- hidden and attacked -----------------------------------------------------------------------------

    def attempt(self, picture: Picture) -> Outcome | Picture:
        """Try once; the picture again if one of its faces is to be hidden anew."""
        begin = time.perf_counter()
        again = self.try_once(picture)
        picture.seconds += time.perf_counter() - begin
        if again:
            return picture
        self.hider.forget(picture)
        self.done(picture)
        return self._finished(picture)

    def try_once(self, picture: Picture) -> bool:
        """Hide all faces, write, read, search and attack; whether another attempt is due."""
        picture.encoded = self._encoded(picture, self.hider.apply(picture))
        if self.attacker is None:
            for face in picture.asked:
                face.verdict = "not attacked"
            return False
        pixels = read_photo(picture.encoded, picture.name).pixels
        failed = []
        for face in picture.asked:
            self.attacker.judge(face, pixels)
            if face.verdict not in HIDDEN:
                failed.append(face)
        strays = self._strays(picture, pixels, picture.changes)
        if picture.changes and not (failed or strays):  # what is written in the end is searched as a whole
            strays = self._strays(picture, pixels, [])
        picture.strays = len(strays)
        if any(face.attempt + 1 >= self.choices.tries for face in failed) or not (failed or strays):
            return False
        if strays:
            picture.looks += 1
            if picture.looks > self.choices.tries:
                return False
        for face in failed:
            face.attempt += 1
        picture.faces += strays
        picture.changes = [*failed, *strays]
        self.attacker.meet(picture)
        return True

    def _encoded(self, picture: Picture, pixels: Tensor) -> bytes:
        drawn = any(face.method not in ("", *REDACTIONS) for face in picture.asked)
        return picture.photo.encode(pixels, drawn, self.choices.jpeg_quality)

    def _strays(self, picture: Picture, pixels: Tensor, changed: Sequence[Face]) -> list[Face]:
        """Faces of the result that were not hidden: all detectors look round what has changed, or at all of it."""
        height, width = pixels.shape[-2:]
        places = [face.region or face.box for face in changed]
        windows = [region(place, _AROUND, height, width) for place in places] or [(0, 0, width, height)]
        strays: list[Face] = []
        for left, top, right, bottom in windows:
            detections = self.finder.find(pixels[:, top:bottom, left:right])
            boxes = detections.boxes + torch.tensor([left, top, left, top])
            for box, score, quarters in zip(
                boxes, detections.scores.tolist(), detections.quarters.tolist(), strict=True
            ):
                if not any(_is_of(box, face) for face in (*picture.faces, *strays)):
                    x0, y0, x1, y1 = (round(value, 1) for value in box.tolist())
                    strays.append(Face((x0, y0, x1, y1), score, late=True, quarters=quarters))
        return strays

    # --- done --------------------------------------------------------------------------------------------

    def _finished(self, picture: Picture) -> Outcome:
        if self.attacker is None:
            return self._outcome(picture, "not attacked", "review", "not attacked (--skip-attack)")
        failed = Counter(face.verdict for face in picture.asked if face.verdict not in HIDDEN)
        reasons = [f"{count} of {len(picture.asked)} faces {verdict}" for verdict, count in failed.items()]
        if left := picture.left:
            reasons.append(f"{left} other faces left as they are")
        if picture.strays:
            reasons.append(f"{picture.strays} faces are found in the result that are not hidden")
        reasons += picture.doubts
        if any(face.method not in REDACTIONS for face in picture.asked) and picture.photo.kind in UNMARKED:
            reasons.append(f"a {picture.photo.kind} file cannot say that a model drew parts of it; save it as PNG")
        if reasons:
            return self._outcome(picture, "not anonymized", "review", "; ".join(reasons))
        there = {face.verdict for face in picture.faces}
        verdict = next((candidate for candidate in (KEPT, "obscured", "covered") if candidate in there), "anonymized")
        return self._outcome(picture, verdict, "finished", "")

    def _outcome(self, picture: Picture, verdict: str, place: str, reason: str) -> Outcome:
        return Outcome(
            picture.name, verdict, place, reason, [face.record() for face in picture.faces],
            [face.memory() for face in picture.faces], picture.seconds, picture.source, picture.mark,
            picture.doubts, picture.boxes, picture_digest(picture.encoded) if picture.encoded else "",
        )  # fmt: skip


_FLAT, _FLAT_NEAR = 0.6, 0.4
"""Share of a drawn picture's pixels that are like their neighbours, and of those round a face; of photographs it is less."""
_DRAWN_FACE = 48
"""Pixels of a drawn face's longer side at most: the embedded world's portraits have 64."""


def _is_drawn(pixels: Tensor, faces: Sequence[Sequence[float]]) -> bool:
    """Whether a picture uint8 (3, H, W) is of the embedded world's kind: small faces, and large parts of one colour.

    It is looked at small, which takes a blur back, and with its contrast stretched. Plain walls round a face make
    photographs look drawn, so that what is round each face is looked at by itself.
    """
    if min(pixels.shape[-2:]) < 2:
        return True
    height, width = pixels.shape[-2:]
    places = [region(box, 2, height, width) for box in faces]
    near = [pixels[:, top:bottom, left:right] for left, top, right, bottom in places]
    large = any(max(box[2] - box[0], box[3] - box[1]) > _DRAWN_FACE for box in faces)
    return not large and _flat(pixels) > _FLAT and all(_flat(part) > _FLAT_NEAR for part in near)


def _flat(pixels: Tensor) -> float:
    small = resized(pixels, min(1.0, 96 / max(pixels.shape[-2:])))[0].float()
    low, high = np.percentile(small.numpy(), [1, 99])
    steps = (small[..., 1:] - small[..., :-1]).abs().amax(0) * 255 / max(high - low, 8)
    return float((steps <= 4).float().mean()) if steps.numel() else 1.0


def _meet(box: Tensor, boxes: Tensor) -> Tensor:
    """Which of boxes (N, 4) are of the face in a box (4,): bool (N,)."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (box[2:] - box[:2]).prod()
    inside = ((box[:2] <= middle) & (middle <= box[2:])).all(1)
    return (overlap(box, boxes) >= _MEETS) | (inside & ((boxes[:, 2:] - boxes[:, :2]).prod(1) * 25 > size))


def _believed(boxes: Tensor, photo: Photo, detections: Found, size: tuple[int, int] | None) -> tuple[Tensor, list[str]]:
    """A user's own boxes within the picture, and what is odd about them; less is where they say which size they are made for."""
    height, width = photo.pixels.shape[-2:]
    limit = torch.tensor([width, height, width, height])
    inside = boxes.clamp_min(0).minimum(limit)
    sides = (inside[:, 2:] - inside[:, :2]).amin(1)
    shares = (inside[:, 2:] - inside[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    doubts = []
    if outside := int((shares < 0.5).sum()):
        doubts.append(
            f"boxes outside of its {width} x {height} pixels ({outside}): were they made for a copy of another size?"
        )
    elif tiny := int((sides < _LEAST).sum()):
        doubts.append(f"boxes smaller than any face ({tiny})")
    inside = inside[(sides >= _LEAST) & (shares >= 0.5)]
    if size is not None:
        if size != (width, height):
            doubts.append(f"boxes for {size[0]} x {size[1]} pixels, and it has {width} x {height}")
        return inside, doubts
    shown = torch.tensor([bool(_meet(box, detections.boxes).any()) for box in inside])
    as_it_lies = upright(boxes, photo.orientation, height, width)
    if (
        len(inside)
        and photo.orientation != 1
        and (not shown.all() or _fit(as_it_lies, detections) > _fit(inside, detections))
    ):
        doubts.append(
            "its boxes do not fit the faces that are found, and the file is turned by EXIF: give boxes of the picture as it is "
            "seen"
        )
    elif len(inside) and not shown.any():
        doubts.append("no face is found in any of its boxes: were they made for a copy of another size?")
    return inside, doubts


def _fit(boxes: Tensor, detections: Found) -> float:
    """How well boxes (N, 4) fit faces that are found: mean of the best intersections over unions."""
    if not len(detections):
        return 0.0
    return float(torch.stack([overlap(box, detections.boxes).max() for box in boxes]).mean())


def _is_of(box: Tensor, face: Face) -> bool:
    """Whether a box (4,) that is found in a result is of a face that is known."""
    if float(overlap(box, torch.tensor([face.box]))) >= _ALIKE:
        return True
    if face.region is None:
        return False
    if float(overlap(box, torch.tensor([face.region]).float())) >= _ALIKE:
        return True
    x0, y0, x1, y1 = face.region
    left, top, right, bottom = (round(float(value)) for value in box)
    hidden = ellipse(face.box, face.ellipse, face.region) > 0.5 if face.ellipse else torch.ones(y1 - y0, x1 - x0)
    inside = hidden[max(0, top - y0) : max(0, bottom - y0), max(0, left - x0) : max(0, right - x0)]
    return float(inside.sum()) / max(1, (right - left) * (bottom - top)) >= _INSIDE
