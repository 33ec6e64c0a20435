"""Attacks hidden faces: who is recognized is not anonymized, and who cannot be judged is not either."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairanon.anonymize.faces import Face, Picture, Seen
from fairanon.anonymize.find import FaceFinder, resized, turned
from fairanon.anonymize.hide import GREY, region
from fairanon.anonymize.restore import restorations
from fairanon.embedded import embedded
from fairanon.files import read_json
from fairanon.imaging import Square
from fairanon.metrics.functional.verification import distances
from fairanon.protocols import FaceMatcher
from fairanon.redaction import Redaction

_AGAIN = 4.0
"""Side of what a detector looks at for a hidden face, as a multiple of the original's."""
_LOOK = 400
"""Its side in pixels at most."""
_NEAR_GREY = 16
"""How far from `GREY` the pixels of a mask may be after they were compressed."""
COVERED = 0.99
"""Share of its box from which on a mask hides a face."""
ENOUGH = 50
"""Faces from which on a collection is tested against chance."""
_CHANCE = 0.01
"""Probability below which as many faces would be found by chance."""
FOUND = "found among all"
"""Verdict of a face that is found in a collection more often than chance allows, however it is hidden."""


@dataclass(frozen=True)
class Threshold:
    """The distance up to which two faces match.

    Attributes:
        value: In the recognizer's unit.
        origin: Where it comes from, in words.
    """

    value: float
    origin: str


def known_threshold(name: str, tables: Sequence[Path] = (), published: float | None = None) -> Threshold | None:
    """The strictest threshold that a table has for a recognizer; None if none has it.

    Args:
        name: Of the recognizer.
        tables: What `fairanon.anonymize.calibrate` wrote; the embedded judges' own is known.
        published: What its authors say.

    Raises:
        ValueError: A table has less than half of what is published or comes along: nearly everybody would pass.
    """
    ours = _row_of(embedded("judges", "thresholds.json"), name)
    for path in tables:
        found = _row_of(path, name)
        if found is None:
            continue
        usual = ours.value if ours is not None else published
        least = 0.0 if usual is None else usual / 2
        if not (math.isfinite(found.value) and found.value > 0 and found.value >= least):
            raise ValueError(
                f"--thresholds: {path.name} has {found.value:g} for {name}, which calls the same person two people; it must "
                f"be at least {least:g}, half of the usual one." if usual is not None else
                f"--thresholds: {path.name} has {found.value:g} for {name}; a threshold is a distance above 0."
            )  # fmt: skip
        if usual is not None and found.value < usual:
            return Threshold(found.value, f"{found.origin}, below the usual {usual:g}")
        return found
    return ours


def _row_of(path: Path, name: str) -> Threshold | None:
    table: Any = read_json(path, "--thresholds")
    if isinstance(table, dict) and name not in table:
        return None
    try:
        row = table[name]
        values = [float(kind["value"]) for kind in (row, *row["groups"].values())]
        rate, people = float(row["false_match_rate"]), int(row["people"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"--thresholds: {path.name} is no table that `fairanon calibrate` wrote.") from None
    value = max(values) if all(map(math.isfinite, values)) else math.nan
    return Threshold(value, f"calibrated at a false-match rate of {rate:g} on {people} people")


def threshold_of(matcher: FaceMatcher, tables: Sequence[Path] = ()) -> Threshold:
    """The threshold of a recognizer: calibrated, otherwise published.

    Args:
        matcher: The recognizer.
        tables: See `known_threshold`.

    Raises:
        ValueError: None is known, or a table's is far too low.
    """
    found = known_threshold(matcher.name, tables, matcher.published)
    if found is not None:
        return found
    if matcher.published is None:
        raise ValueError(
            f"no threshold of {matcher.name} is known; `fairanon calibrate FOLDER --recognizer ...` makes one from "
            "photographs of different people, and --thresholds FILE names it."
        )
    return Threshold(matcher.published, "published by its authors, not calibrated")


class Attacker:
    """Compares each hidden face with its source.

    Args:
        matchers: Recognizers; each must take the two for different people.
        thresholds: Of each, by name.
        detector: Looks for a face where one was hidden.
    """

    def __init__(
        self, matchers: Sequence[FaceMatcher], thresholds: Mapping[str, Threshold], detector: FaceFinder
    ) -> None:
        self.matchers, self.thresholds, self.detector = matchers, thresholds, detector
        blank = {m.name: torch.full((1, 3, m.size, m.size), GREY, dtype=torch.uint8) for m in matchers}
        self._nobody = {m.name: m.embed_aligned(blank[m.name]) for m in matchers}

    def describe(self) -> dict[str, Any]:
        """Who attacks, for the manifest."""
        return {m.name: {"licence": m.licence, **asdict(self.thresholds[m.name])} for m in self.matchers}

    def meet(self, picture: Picture) -> None:
        """Look at the original's faces: what they are compared with. Each is met once.

        A recognizer that takes an empty image for a face (a profile that the border cuts, a pattern that is none) sees
        nobody there, and has no say about it.
        """
        pixels = picture.photo.pixels
        for face in picture.asked:
            if face.met:
                continue
            face.met = True
            for matcher in self.matchers:
                square = aligned(matcher, pixels, torch.tensor(face.box), face.quarters)
                embedding = None if square is None else embed_at(matcher, square, pixels)
                if square is None or embedding is None:
                    continue
                empty = float(distances(embedding[None], self._nobody[matcher.name], matcher.metric))
                if empty > self.thresholds[matcher.name].value:
                    face.seen[matcher.name] = Seen(square, embedding)

    def judge(self, face: Face, pixels: Tensor) -> None:
        """Attack a hidden face; its verdict is one of `HIDDEN`, "recognized" or "cannot be judged".

        Args:
            face: Met before.
            pixels: uint8 (3, H, W), the result as it was written.
        """
        face.covered = covered(face, pixels) if face.method == "mask" else None
        again = found_again(self.detector, face, pixels)
        face.found_again = again is not None
        restored = list(_restored(face, pixels))
        for matcher in self.matchers:
            seen = face.seen.get(matcher.name)
            if seen is None:
                continue
            seen.hidden = embed_at(matcher, seen.square, pixels)
            tries = [seen.hidden]
            own = None if again is None else aligned(matcher, pixels, again, face.quarters)
            if own is not None:
                tries.append(embed_at(matcher, own, pixels))
            for image in restored:
                tries += [embed_at(matcher, _closer(seen.square, scale), image) for scale in _CLOSER]
            found = [row for row in tries if row is not None]
            if found:
                face.distances[matcher.name] = float(
                    distances(torch.stack(found), seen.embedding[None], matcher.metric).min()
                )
            else:
                face.distances.pop(matcher.name, None)
        painted = face.covered is not None and face.covered >= COVERED
        if face.given_up:
            face.verdict = FOUND
        elif any(value <= self.thresholds[name].value for name, value in face.distances.items()):
            face.verdict = "recognized"
        elif face.distances and face.found:
            face.verdict = "obscured" if face.method in _REVERSIBLE else "anonymized"
        elif painted:
            face.verdict = "covered"
        else:
            face.verdict = "cannot be judged"


_REVERSIBLE: tuple[Redaction, ...] = ("blur", "pixelate")
"""Who holds the very photograph finds such a face by doing the same to it, and something of it can be computed back."""
_CLOSER = (1.0, 0.85)
"""Sides of the squares in which a restored face is shown, as multiples of the original's."""


def _restored(face: Face, pixels: Tensor) -> Iterator[Tensor]:
    """The result with a blurred or pixelated face restored in several ways."""
    if face.method not in _REVERSIBLE or face.region is None or face.strength is None:
        return
    x0, y0, x1, y1 = face.region
    for near in restorations(pixels[:, y0:y1, x0:x1], face.method, face.strength):
        whole = pixels.clone(memory_format=torch.preserve_format)
        whole[:, y0:y1, x0:x1] = near
        yield whole


def _closer(square: Square, scale: float) -> Square:
    return Square(square.x, square.y, square.side * scale, square.angle)


def aligned(matcher: FaceMatcher, pixels: Tensor, box: Tensor, quarters: int) -> Square | None:
    """Where a recognizer looks for the face in a box (4,), of a picture that shows it upright after so many quarter turns."""
    height, width = pixels.shape[-2:]
    found = matcher.align(pixels.rot90(quarters, (1, 2)), turned(box[None], height, width, quarters)[0])
    if found is None or not quarters:
        return found
    point = torch.tensor([[found.x, found.y, found.x, found.y]])
    sides = (width, height) if quarters % 2 else (height, width)
    x, y, _, _ = turned(point, *sides, -quarters % 4)[0].tolist()
    return Square(x, y, found.side, found.angle + 90 * quarters)


def found_again(detector: FaceFinder, face: Face, pixels: Tensor) -> Tensor | None:
    """The box of a face that a detector finds where one was, in an image uint8 (3, H, W)."""
    x0, y0, x1, y1 = face.box
    x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, _AGAIN * max(x1 - x0, y1 - y0)
    left, top, right, bottom = region((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 1.0, *pixels.shape[-2:])
    near, scale = resized(pixels[:, top:bottom, left:right], min(1.0, _LOOK / side))
    height, width = near.shape[-2:]
    boxes = detector.detect(near.rot90(face.quarters, (1, 2))[None])[0]["face"].boxes
    sides = (width, height) if face.quarters % 2 else (height, width)
    upright = turned(boxes, *sides, -face.quarters % 4)
    for box in upright / torch.tensor(scale).repeat(2) + torch.tensor([left, top]).repeat(2):
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            return box
    return None


def embed_at(matcher: FaceMatcher, square: Square, pixels: Tensor) -> Tensor | None:
    """One by one: what is said of a face must not depend on its neighbours in a batch."""
    found = matcher.embed_aligned(square.cut(pixels, matcher.size)[None])[0]
    return None if found.isnan().any() else found


def covered(face: Face, pixels: Tensor) -> float:
    """Share of a face's box that is painted over."""
    height, width = pixels.shape[-2:]
    x0, y0, x1, y1 = (round(value) for value in face.box)
    inside = pixels[:, max(0, y0) : max(1, min(y1, height)), max(0, x0) : max(1, min(x1, width))]
    if not inside.numel():
        return 1.0  # the box lies outside the picture
    return round(float(((inside.int() - GREY).abs() <= _NEAR_GREY).all(0).float().mean()), 4)


@dataclass(frozen=True)
class Collection:
    """Whether faces of a collection are found more often than by chance.

    Attributes:
        faces: How many were compared.
        found: Those whose nearest original is their own source, by recognizer.
        probability: That as many would be by chance.
        hits: Rows of those faces that are to be hidden again: all found ones, where there are more than by chance.
    """

    faces: int
    found: dict[str, int]
    probability: dict[str, float]
    hits: tuple[int, ...]

    def record(self) -> str | dict[str, Any]:
        """What the manifest says."""
        if self.faces < ENOUGH:
            return "not testable"
        return {"faces": self.faces, "found": self.found, "probability": self.probability}


def test_against_chance(faces: Sequence[Face], matchers: Sequence[FaceMatcher]) -> Collection:
    """Compare every hidden face of a collection with every original.

    By chance the nearest original is the own source once in N: the number of such faces follows a binomial distribution.
    """
    from scipy.stats import binom  # a second

    found: dict[str, int] = {}
    probability: dict[str, float] = {}
    hits: set[int] = set()
    most = 0
    for matcher in matchers:
        rows = [k for k, face in enumerate(faces) if matcher.name in face.seen]
        seen = [faces[k].seen[matcher.name] for k in rows]
        known = [k for k, one in enumerate(seen) if one.hidden is not None]
        most = max(most, len(known))
        if len(known) < ENOUGH:
            continue
        originals = torch.stack([one.embedding for one in seen])
        hidden = torch.stack([one.hidden for one in seen if one.hidden is not None])
        nearest = torch.cat([distances(part, originals, matcher.metric).argmin(1) for part in hidden.split(512)])
        own = [rows[k] for k, near in zip(known, nearest.tolist(), strict=True) if near == k]
        found[matcher.name] = len(own)
        probability[matcher.name] = float(f"{binom.sf(len(own) - 1, len(known), 1 / len(rows)):.3g}")
        if probability[matcher.name] < _CHANCE:
            hits |= set(own)
    return Collection(most, found, probability, tuple(sorted(hits)))
