"""Attacks hidden faces: who is recognized is not anonymized, and who cannot be judged is not either."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.faces import Face, Picture, Seen
from fairanon.anonymizer.find import FaceFinder, resized, turned
from fairanon.anonymizer.hide import GREY, ellipse, region
from fairanon.anonymizer.restore import restorations
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
_NEAR_PAINT, _EDGE = 16, 5
"""How far from what was painted the pixels of a mask may be after they were compressed, and over how many an edge may spread."""
COVERED = 0.99
"""Share of its box from which on a mask hides a face."""
FOUND = "found among all"
"""Verdict of a face that is found in a collection more often than chance allows, however it is hidden."""


@dataclass(frozen=True)
class Threshold:
    """The distance up to which two faces match.

    Attributes:
        value: In the recognizer's unit.
        origin: Where it comes from, in words.
        empty: The distance up to which a face is taken for an empty image: however many people a high threshold takes for one,
            whoever is somebody by the usual one is attacked. None: ``value``.
    """

    value: float
    origin: str
    empty: float | None = None


def told_threshold(name: str, tables: Sequence[Path], published: float | None = None) -> Threshold | None:
    """The threshold that a user's table has for a recognizer; None if none has it.

    Args:
        name: Of the recognizer.
        tables: What `fairanon.anonymizer.calibrate` wrote.
        published: What its authors say.

    Raises:
        ValueError: A table has less than half of what is published or comes along: nearly everybody would pass.
    """
    known = usual_threshold(name, published)
    usual = None if known is None else known.value
    for path in tables:
        threshold = _row_of(path, name)
        if threshold is None:
            continue
        least = 0.0 if usual is None else usual / 2
        if not (math.isfinite(threshold.value) and threshold.value > 0 and threshold.value >= least):
            raise ValueError(
                f"--thresholds: {path.name} has {threshold.value:g} for {name}, which calls the same person two people; it must "
                f"be at least {least:g}, half of the usual one." if usual is not None else
                f"--thresholds: {path.name} has {threshold.value:g} for {name}; a threshold is a distance above 0."
            )  # fmt: skip
        if usual is None:
            return threshold
        below = f", below the usual {usual:g}" if threshold.value < usual else ""
        return Threshold(threshold.value, threshold.origin + below, min(threshold.value, usual))
    return None


def usual_threshold(name: str, published: float | None = None) -> Threshold | None:
    """A recognizer's threshold where nobody tells another one: calibrated by us, otherwise published; None if neither."""
    ours = _row_of(embedded("judges", "thresholds.json"), name)
    if ours is None and published is not None:
        return Threshold(published, "published by its authors, not calibrated")
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
    """The threshold of a recognizer: a table's, otherwise the usual one.

    Args:
        matcher: The recognizer.
        tables: See `told_threshold`.

    Raises:
        ValueError: None is known, or a table's is far too low.
    """
    name, published = matcher.name, matcher.published
    threshold = told_threshold(name, tables, published) or usual_threshold(name, published)
    if threshold is None:
        raise ValueError(
            f"no threshold of {matcher.name} is known; `fairanon calibrate FOLDER --recognizer ...` makes one from "
            "photographs of different people, and --thresholds FILE names it."
        )
    return threshold


class Attacker:
    """Compares each hidden face with its source.

    Args:
        matchers: Recognizers; each must take the two for different people.
        thresholds: Of each, by name.
        detector: Looks for a face where one was hidden.
        usual: Of an attacker who does not stop where one is recognized, since who is measured decides later: the thresholds, by
            name, by which a face is nearly recognized; without one every face is. None: who is recognized is attacked no further.
    """

    def __init__(
        self,
        matchers: Sequence[FaceMatcher],
        thresholds: Mapping[str, Threshold],
        detector: FaceFinder,
        usual: Mapping[str, float] | None = None,
    ) -> None:
        self.matchers, self.thresholds, self.detector, self.usual = matchers, thresholds, detector, usual
        blank = {m.name: torch.full((1, 3, m.size, m.size), GREY, dtype=torch.uint8) for m in matchers}
        self._nobody = {m.name: m.embed_aligned(blank[m.name]) for m in matchers}

    def describe(self) -> dict[str, Any]:
        """Who attacks, for the manifest."""
        thresholds = {m.name: self.thresholds[m.name] for m in self.matchers}
        return {
            m.name: {"licence": m.licence, "value": thresholds[m.name].value, "origin": thresholds[m.name].origin}
            for m in self.matchers
        }

    def meet(self, picture: Picture) -> None:
        """Look at the original's faces that are to be hidden: what they are compared with."""
        for face in picture.asked:
            self.look(face, picture.photo.pixels)
            face.testable = any(has_a_say(seen, self.thresholds[name]) for name, seen in face.seen.items())

    def look(self, face: Face, pixels: Tensor) -> None:
        """Look once at a face of an original uint8 (3, H, W)."""
        if face.met:
            return
        face.met = True
        for matcher in self.matchers:
            seen = seen_in(matcher, pixels, torch.tensor(face.box), face.quarters)
            if seen is not None:
                empty = float(distances(seen[1][None], self._nobody[matcher.name], matcher.metric))
                face.seen[matcher.name] = Seen(*seen, empty)

    def judge(self, face: Face, pixels: Tensor) -> None:
        """Attack a hidden face, and say what it is, see `verdict_of`.

        Args:
            face: Met before.
            pixels: uint8 (3, H, W), the result as it was written.
        """
        looked_at = _looked_at(face, pixels)
        if face.looked_at != looked_at:
            self._attack(face, pixels)
            face.looked_at = None if face.found_again else looked_at  # a face that is found is aligned anew, anywhere
        face.paint = None  # as large as the face, and a collection has many
        face.verdict = verdict_of(face, self.thresholds)

    def _attack(self, face: Face, pixels: Tensor) -> None:
        face.covered = covered(face, pixels) if face.method == "mask" else None
        again = found_again(self.detector, face, pixels)
        face.found_again = again is not None
        restored = list(_restored(face, pixels))
        face.distances = {}
        for matcher in self.matchers:
            seen = face.seen.get(matcher.name)
            if seen is None:
                continue
            seen.hidden = embed_at(matcher, seen.square, pixels)
            own = None if again is None else seen_in(matcher, pixels, again, face.quarters)
            seen.own = None if own is None else own[1]
            limit = self.thresholds[matcher.name]
            if not has_a_say(seen, limit):
                continue
            enough, nearly = limit.value, _NEARLY * limit.value
            if self.usual is not None:
                enough, nearly = -math.inf, _NEARLY * self.usual.get(matcher.name, math.inf)
            nearest = min(_apart(matcher, seen.hidden, seen), _apart(matcher, seen.own, seen))
            for looks, most in ((_CLOSER, math.inf), (_MOVED, nearly)):
                for image, look in product(restored, looks):
                    if enough < nearest <= most:
                        shown = embed_at(matcher, _moved(seen.square, *look), image)
                        nearest = min(nearest, _apart(matcher, shown, seen))
            if nearest < math.inf:
                face.distances[matcher.name] = nearest


def has_a_say(seen: Seen, threshold: Threshold) -> bool:
    """Whether a recognizer sees somebody: an original that it takes for an empty image shows it nobody.

    A profile that the border cuts is such a face, and a pattern that is none.
    """
    return seen.empty > (threshold.value if threshold.empty is None else threshold.empty)


def verdict_of(face: Face, thresholds: Mapping[str, Threshold]) -> str:
    """What is said of an attacked face, by `anonymize` and `evaluate` alike: one of `HIDDEN`, or why it is not.

    Args:
        face: Attacked.
        thresholds: Of the recognizers that are asked.
    """
    valid_distances = {
        name: value
        for name, value in face.distances.items()
        if name in thresholds and has_a_say(face.seen[name], thresholds[name])
    }
    if face.given_up:
        return FOUND
    if any(value <= thresholds[name].value for name, value in valid_distances.items()):
        return "recognized"
    if valid_distances and face.found:
        return "obscured" if face.method in _REVERSIBLE else "anonymized"
    if face.covered is not None and face.covered >= COVERED:
        return "covered"
    if face.method in _REVERSIBLE and face.strength == 1:  # nobody can test it, and there is no stronger one
        return "obscured"
    return "cannot be judged"


_REVERSIBLE: tuple[Redaction, ...] = ("blur", "pixelate")
"""Who holds the very photograph finds such a face by doing the same to it, and something of it can be computed back."""
_CLOSER = ((1.0, 0.0, 0.0), (0.85, 0.0, 0.0))
"""Squares in which a restored face is shown: side, and moves to the right and down, as multiples of the original's side."""
_MOVED = ((1.2, 0.0, 0.0), (1.0, 0.06, 0.0), (1.0, -0.06, 0.0), (1.0, 0.0, 0.06), (1.0, 0.0, -0.06))
"""Further ones, for a face that is nearly recognized."""
_NEARLY = 1.1
"""Distance up to which it is that, as a multiple of the threshold."""


def _restored(face: Face, pixels: Tensor) -> Iterator[Tensor]:
    """The result with a blurred or pixelated face restored in several ways."""
    if face.method not in _REVERSIBLE or face.region is None or face.strength is None:
        return
    x0, y0, x1, y1 = face.region
    there = pixels[:, y0:y1, x0:x1]
    weight = ellipse(face.box, face.ellipse, face.region) if face.ellipse else torch.ones(there.shape[-2:])
    for near in restorations(there, face.method, face.strength):
        whole = pixels.clone(memory_format=torch.preserve_format)
        whole[:, y0:y1, x0:x1] = (
            there.float().lerp(near.float(), weight).round().to(torch.uint8)
        )  # the rim was never hidden
        yield whole


def _moved(square: Square, scale: float, right: float, down: float) -> Square:
    return Square(square.x + right * square.side, square.y + down * square.side, square.side * scale, square.angle)


def _apart(matcher: FaceMatcher, shown: Tensor | None, seen: Seen) -> float:
    """The distance of what was shown to an original; infinite if it showed no face."""
    return math.inf if shown is None else float(distances(shown[None], seen.embedding[None], matcher.metric))


def _looked_at(face: Face, pixels: Tensor) -> bytes:
    """A digest of how a face is hidden and of all pixels that its attack looks at, as long as no detector finds it again."""
    places = [_near(face, pixels), face.region or _near(face, pixels)]
    for seen in face.seen.values():
        rows, columns = _moved(seen.square, 1.5, 0, 0).window(*pixels.shape[-2:])  # more than any of `_MOVED` shows
        places.append((columns.start, rows.start, columns.stop, rows.stop))
    left, top, right, bottom = torch.tensor(places).unbind(1)
    part = pixels[:, int(top.min()) : int(bottom.max()), int(left.min()) : int(right.max())]
    digest = hashlib.blake2b(repr((face.method, face.strength, face.region, face.ellipse)).encode(), digest_size=16)
    digest.update(part.permute(1, 2, 0).contiguous().numpy().data)
    return digest.digest()


def aligned(matcher: FaceMatcher, pixels: Tensor, box: Tensor, quarters: int) -> Square | None:
    """Where a recognizer looks for the face in a box (4,), of a picture that shows it upright after so many quarter turns."""
    height, width = pixels.shape[-2:]
    square = matcher.align(pixels.rot90(quarters, (1, 2)), turned(box[None], height, width, quarters)[0])
    if square is not None and square.side < 1:  # a detector that finds nearly anything also finds boxes without extent
        return None
    if square is None or not quarters:
        return square
    point = torch.tensor([[square.x, square.y, square.x, square.y]])
    sides = (width, height) if quarters % 2 else (height, width)
    x, y, _, _ = turned(point, *sides, -quarters % 4)[0].tolist()
    return Square(x, y, square.side, square.angle + 90 * quarters)


def seen_in(matcher: FaceMatcher, pixels: Tensor, box: Tensor, quarters: int) -> tuple[Square, Tensor] | None:
    """Where a recognizer looks for the face in a box, see `aligned`, and its embedding (D,); None if it sees none."""
    square = aligned(matcher, pixels, box, quarters)
    embedding = None if square is None else embed_at(matcher, square, pixels)
    return None if square is None or embedding is None else (square, embedding)


def found_again(detector: FaceFinder, face: Face, pixels: Tensor) -> Tensor | None:
    """The box of a face that a detector finds where one was, in an image uint8 (3, H, W)."""
    x, y, side = _searched(face)
    left, top, right, bottom = _near(face, pixels)
    near, scale = resized(pixels[:, top:bottom, left:right], min(1.0, _LOOK / side))
    height, width = near.shape[-2:]
    boxes = detector.detect(near.rot90(face.quarters, (1, 2))[None])[0]["face"].boxes
    sides = (width, height) if face.quarters % 2 else (height, width)
    upright = turned(boxes, *sides, -face.quarters % 4)
    for box in upright / torch.tensor(scale).repeat(2) + torch.tensor([left, top]).repeat(2):
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            return box
    return None


def _searched(face: Face) -> tuple[float, float, float]:
    """The middle, x and y, and the side of the square in which a detector looks for a hidden face."""
    x0, y0, x1, y1 = face.box
    return (x0 + x1) / 2, (y0 + y1) / 2, _AGAIN * max(x1 - x0, y1 - y0)


def _near(face: Face, pixels: Tensor) -> tuple[int, int, int, int]:
    """The pixels of that square that a picture has: x0, y0, x1, y1."""
    x, y, side = _searched(face)
    return region((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 1.0, *pixels.shape[-2:])


def embed_at(matcher: FaceMatcher, square: Square, pixels: Tensor) -> Tensor | None:
    """One by one: what is said of a face must not depend on its neighbours in a batch."""
    embedding = matcher.embed_aligned(square.crop(pixels, matcher.size)[None])[0]
    return None if embedding.isnan().any() else embedding


def covered(face: Face, pixels: Tensor) -> float:
    """Share of a face's box that is painted over, up to what a file's compression does to the paint.

    Args:
        face: Its box, and what was painted where; grey, where it does not say.
        pixels: uint8 (3, H, W), the result.
    """
    x0, y0, x1, y1 = _inside(face, pixels)
    inside = pixels[:, y0:y1, x0:x1].int()
    if not inside.numel():
        return 1.0  # the box lies outside the picture
    if face.paint is None or face.region is None:
        return round(float(((inside - GREY).abs() <= _NEAR_PAINT).all(0).float().mean()), 4)
    left, top, right, bottom = face.region
    here = (slice(max(0, top - y0), max(0, bottom - y0)), slice(max(0, left - x0), max(0, right - x0)))
    there = (slice(max(0, y0 - top), max(0, y1 - top)), slice(max(0, x0 - left), max(0, x1 - left)))
    ends = F.max_pool2d(
        torch.stack([-face.paint.pixels.float(), face.paint.pixels.float()]), _EDGE, 1, _EDGE // 2
    ).int()
    part, paint = inside[:, *here], face.paint.pixels[:, *there].int()
    like = ((part >= -ends[0][:, *there] - _NEAR_PAINT) & (part <= ends[1][:, *there] + _NEAR_PAINT)).all(0)
    like &= face.paint.taken[there]
    if (part - paint).abs().float().mean() > _NEAR_PAINT:  # between fine lines anything has room, pixel by pixel
        return 0.0
    return round(float(like.sum()) / inside[0].numel(), 4)


def within(face: Face, pixels: Tensor) -> Tensor:
    """What a face's box shows, uint8 (3, h, w)."""
    x0, y0, x1, y1 = _inside(face, pixels)
    return pixels[:, y0:y1, x0:x1]


def _inside(face: Face, pixels: Tensor) -> tuple[int, int, int, int]:
    """Whole pixels of a face's box inside the picture: x0, y0, x1, y1."""
    height, width = pixels.shape[-2:]
    x0, y0, x1, y1 = (round(value) for value in face.box)
    return max(0, x0), max(0, y0), max(1, min(x1, width)), max(1, min(y1, height))
