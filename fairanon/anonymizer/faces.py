"""What is known of a photograph's faces while they are hidden and attacked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fairanon.anonymizer.photos import Photo
from fairanon.anonymizer.verdicts import KEPT
from fairanon.imaging import Square


@dataclass
class Seen:
    """A face of the original as one recognizer sees it.

    Attributes:
        square: Where it looks.
        embedding: float (D,).
        empty: Its distance to an empty image: a recognizer that takes the two for one person sees nobody here.
        hidden: The embedding of what is there in the result, once it was attacked.
        own: Likewise, where a detector finds a face in the result.
    """

    square: Square
    embedding: Tensor
    empty: float
    hidden: Tensor | None = None
    own: Tensor | None = None


@dataclass(frozen=True)
class Paint:
    """What masks put into the region of a face.

    Attributes:
        pixels: uint8 (3, h, w).
        taken: bool (h, w), where it was painted.
    """

    pixels: Tensor
    taken: Tensor


@dataclass
class Face:
    """A face of the original.

    Attributes:
        box: x0 y0 x1 y1 in pixels.
        score: The detector's; 1 for a box of the user's own.
        asked: It is to be hidden.
        found: A detector found it; the user's own boxes need not show a face.
        late: It was found in the result only.
        quarters: By so many quarters anticlockwise the picture was turned when it was seen best.
        attempt: How often it was hidden in vain.
        method: By which it is hidden.
        strength: Of the method, if it has one.
        region: x0 y0 x1 y1 of what was changed.
        met: Recognizers were asked whom it shows.
        testable: A recognizer sees somebody in it.
        seen: By the names of the recognizers that can embed it.
        distances: Of the hidden face to its source, the smallest one of all that was tried, by recognizer: who is recognized
            is attacked no further.
        found_again: A detector finds a face in its place.
        ellipse: By how much the box was enlarged into which an ellipse was hidden; 0 where all of the region was.
        paint: What was painted, from hiding until the result is judged.
        covered: Share of the box that is painted over; None for methods that do not paint.
        looked_at: Of its last attack, see `attack.Attacker.judge`: who is hidden in the same way is not attacked again.
        given_up: It is found among all faces of the collection, however it is hidden.
        verdict: See docs/anonymize.md.
    """

    box: tuple[float, float, float, float]
    score: float
    asked: bool = True
    found: bool = True
    late: bool = False
    quarters: int = 0
    attempt: int = 0
    method: str = ""
    strength: float | None = None
    region: tuple[int, int, int, int] | None = None
    met: bool = False
    testable: bool = True
    seen: dict[str, Seen] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    found_again: bool = False
    ellipse: float = 0.0
    paint: Paint | None = None
    covered: float | None = None
    looked_at: bytes | None = None
    given_up: bool = False
    verdict: str = "left as it is"

    @property
    def area(self) -> float:
        """Of its box, in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    def record(self) -> dict[str, Any]:
        """What the manifest says: nothing that tells whose face it is."""
        return {
            "box": [round(value, 1) for value in self.box], "score": round(self.score, 3), "method": self.method,
            "strength": self.strength, "region": self.region, "ellipse": round(self.ellipse, 3), "tries": self.attempt + 1 if self.asked else 0,
            "covered": self.covered,
            "found_again": self.found_again, "found_late": self.late,
            "distances": {name: round(value, 4) for name, value in sorted(self.distances.items())},
            "verdict": self.verdict,
        }  # fmt: skip

    def memory(self) -> dict[str, Any]:
        """What the journal needs beside `record`, so that a later process can hide it again."""
        return {name: getattr(self, name) for name in ("asked", "found", "quarters", "attempt", "ellipse")}

    @classmethod
    def recalled(cls, record: dict[str, Any], memory: dict[str, Any]) -> Face:
        """The face of a journal's line."""
        names = ("score", "method", "strength", "verdict")
        where = record["region"]
        known = {**memory, "region": None if where is None else tuple(where), **{name: record[name] for name in names}}
        return cls(tuple(record["box"]), late=record["found_late"], **known)


@dataclass
class Picture:
    """A photograph on its way.

    Attributes:
        name: See `Item`.
        photo: The original.
        faces: The surest first, then those that were found late.
        doubts: Why a person has to look at it, whatever becomes of its faces.
        boxes: See `Item.key`.
        encoded: Its file.
        looks: How often somebody was found in its result who was not hidden.
        changes: Faces that are hidden anew since its result was searched.
        strays: Faces of the result that are not hidden.
        mark: Of the file that it was read from, see `Treatment.mark`.
        source: Digest of the original, if asked for.
        seconds: Spent on it so far.
    """

    name: str
    photo: Photo
    faces: list[Face]
    doubts: list[str] = field(default_factory=list)
    boxes: str | None = None
    encoded: bytes = b""
    looks: int = 0
    changes: list[Face] = field(default_factory=list)
    strays: int = 0
    mark: str = ""
    source: str | None = None
    seconds: float = 0.0

    @property
    def asked(self) -> list[Face]:
        """Those that are to be hidden."""
        return [face for face in self.faces if face.asked]

    @property
    def left(self) -> int:
        """How many faces are visible and belong to nobody whom the user named."""
        return sum(not face.asked and face.verdict != KEPT for face in self.faces)
