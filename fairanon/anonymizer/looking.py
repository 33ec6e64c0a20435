"""What judges see of a stretch of pairs: photographs beside what became of them, a few dozen at a time.

A stretch is the unit of an evaluation: wherever it is looked at, the same is seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.attack import COVERED, FOUND, Attacker, embed_at, verdict_of, within
from fairanon.anonymizer.faces import Face, Picture, Seen
from fairanon.anonymizer.find import Finder, overlap
from fairanon.anonymizer.pairs import Pair
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.scenery import Scenery, scenery
from fairanon.engines import Tell
from fairanon.files import atomic_write
from fairanon.imaging import CorruptImageError, Square
from fairanon.metrics.functional.similarity import image_pairs
from fairanon.places import read_bytes
from fairanon.protocols import (
    AttributeClassifier,
    FaceGeometry,
    FeatureNet,
    PerceptualDistance,
    Scorer,
)

STRETCH = 64
"""Pairs of a stretch."""
_BATCH = 16
SIDES = ("originals", "hidden", "own", "parrot")
"""What a recognizer is shown, see `fairanon.anonymizer.evidence.Recognized`."""


@dataclass
class Looks:
    """Judges of what a face looks like, each None where its weights are absent.

    Attributes:
        geometry: Landmarks, pose, expression, gaze.
        features: For Fréchet and kernel distances.
        clip: For CLIP-I.
        perceptual: A distance beside LPIPS.
        quality: Rates images by themselves.
        attributes: Sees groups.
    """

    geometry: FaceGeometry | None = None
    features: FeatureNet | None = None
    clip: FeatureNet | None = None
    perceptual: PerceptualDistance | None = None
    quality: Scorer | None = None
    attributes: AttributeClassifier | None = None


@dataclass
class Looked:
    """What is seen of a stretch of pairs; rows of faces belong together.

    Attributes:
        owners: Of which pair each face is, by its place in the stretch.
        faces: Attacked.
        scenes: What lies outside of the faces, by the pair's place; pairs that could not be compared have none.
        unreadable: Why they could not, by their places.
        seen: Embeddings by recognizer and by `SIDES`: a row (D,) for each face, one NaN where there is none.
        values: By what was measured: rows of the results, float (N, ...).
        source_values: Of the originals.
    """

    owners: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    scenes: dict[int, Scenery] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    seen: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    source_values: dict[str, Tensor] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it into a file: whoever reads that can tell who is who."""
        tensors = {f"value {name}": rows for name, rows in self.values.items()}
        tensors |= {f"source {name}": rows for name, rows in self.source_values.items()}
        for place, scene in self.scenes.items():
            tensors |= {f"scene {place} {name}": part for name, part in vars(scene).items()}
        for name, sides in self.seen.items():
            tensors |= {f"seen {side} {name}": filled(rows) for side, rows in sides.items() if rows}
        about = {
            "owners": self.owners, "faces": [_as_json(face) for face in self.faces], "unreadable": list(self.unreadable.items()),
            "recognizers": list(self.seen), "values": list(self.values), "source_values": list(self.source_values),
        }  # fmt: skip
        with atomic_write(path) as partial:
            save_file(
                {name: rows.contiguous() for name, rows in tensors.items()}, partial, {"about": json.dumps(about)}
            )

    @classmethod
    def read(cls, path: Path) -> Looked:
        """What `write` wrote.

        Raises:
            OSError: The file is damaged; the message names it.
        """
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise OSError(f"{path} is damaged ({error}); delete it and run the same command again.") from None
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, rows in tensors.items():
            kind, _, rest = name.partition(" ")
            kinds.setdefault(kind, {})[rest] = rows
        scenes: dict[int, dict[str, Tensor]] = {}
        for name, part in kinds.get("scene", {}).items():
            place, _, what = name.partition(" ")
            scenes.setdefault(int(place), {})[what] = part
        embeddings = kinds.get("seen", {})
        seen = {
            name: {side: [*rows] if (rows := embeddings.get(f"{side} {name}")) is not None else [] for side in SIDES}
            for name in about["recognizers"]
        }
        return cls(
            about["owners"],
            [_face_of(entry) for entry in about["faces"]],
            {place: Scenery(**parts) for place, parts in scenes.items()},
            {place: reason for place, reason in about["unreadable"]},
            seen,
            {name: kinds["value"][name] for name in about["values"]},
            {name: kinds["source"][name] for name in about["source_values"]},
        )


_KEPT = (
    "box",
    "score",
    "found",
    "quarters",
    "method",
    "strength",
    "region",
    "distances",
    "found_again",
    "ellipse",
    "covered",
    "given_up",
    "verdict",
)
"""What is written of a face; embeddings are rows of their own."""


def _as_json(face: Face) -> dict[str, Any]:
    """A face's line in the file."""
    seen = {name: {"square": asdict(one.square), "empty": one.empty} for name, one in face.seen.items()}
    return {name: getattr(face, name) for name in _KEPT} | {"seen": seen}


def _face_of(entry: dict[str, Any]) -> Face:
    seen = {name: Seen(Square(**one["square"]), _NONE, one["empty"]) for name, one in entry["seen"].items()}
    region = None if entry["region"] is None else tuple(entry["region"])
    return Face(**{**entry, "box": tuple(entry["box"]), "region": region, "seen": seen})


@dataclass
class _Row:
    """One face, until its batch is judged."""

    face: Face
    cut: Tensor
    new: Tensor
    parrot: dict[str, Tensor | None]


class Looker:
    """Looks at stretches of pairs.

    Args:
        finder: Finds faces in originals.
        attacker: Attacks what became of them, as `fairanon anonymize` does.
        looks: Further judges.
        size: Side of what these are shown.
        scale: How much that shows, as a multiple of the face's larger side.
        workers: Threads, which share the cores: torch has one in each, since another number of them rounds otherwise.
    """

    def __init__(
        self,
        finder: Finder,
        attacker: Attacker,
        looks: Looks,
        size: int = 256,
        scale: float = 1.8,
        workers: int = 2,
    ) -> None:
        self.finder, self.attacker, self.looks = finder, attacker, looks
        self.size, self.scale, self.workers = size, scale, workers

    def look(self, pairs: Sequence[Pair], hidden_by: Mapping[str, Sequence[Mapping[str, Any]]], tell: Tell) -> Looked:
        """Look at a stretch.

        Args:
            pairs: Files. With a group or an identity only the largest face of a file counts: that is who they are of.
            hidden_by: By the originals' names: lines of faces in `fairanon anonymize`'s manifest, which say by which method each
                was hidden.
            tell: Is told of each pair: "compared" or "unreadable".
        """
        looked = Looked(seen={matcher.name: {side: [] for side in SIDES} for matcher in self.attacker.matchers})
        rows: list[_Row] = []
        judged: list[Future[tuple[dict[str, Tensor], dict[str, Tensor]]]] = []

        def look_at(pair: Pair) -> tuple[list[_Row], Scenery] | CorruptImageError:
            try:
                return self._faces_of(pair, hidden_by.get(pair.name, ()))
            except CorruptImageError as error:
                return error

        def judge(batch: list[_Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            cuts, new = torch.stack([row.cut for row in batch]), torch.stack([row.new for row in batch])
            return _values(self.looks, new, cuts), _values(self.looks, cuts, None)

        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for place, seen in enumerate(pool.map(look_at, pairs)):
                    if isinstance(seen, CorruptImageError):
                        looked.unreadable[place] = str(seen)
                    else:
                        faces, looked.scenes[place] = seen
                        for row in faces:
                            looked.owners.append(place)
                            looked.faces.append(row.face)
                            for name, sides in looked.seen.items():
                                for side, embedding in zip(SIDES, _embeddings(row, name), strict=True):
                                    sides[side].append(embedding)
                        rows += faces
                    while len(rows) >= _BATCH:
                        judged.append(pool.submit(judge, rows[:_BATCH]))
                        del rows[:_BATCH]
                    tell("unreadable" if place in looked.unreadable else "compared", False)
                if rows:
                    judged.append(pool.submit(judge, rows))
                parts = [future.result() for future in judged]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for here, number in ((looked.values, 0), (looked.source_values, 1)):
            for name in parts[0][number] if parts else ():
                here[name] = torch.cat([part[number][name] for part in parts])
        for face in looked.faces:
            face.seen = {name: Seen(one.square, _NONE, one.empty) for name, one in face.seen.items()}
        return looked

    def _faces_of(self, pair: Pair, hidden_by: Sequence[Mapping[str, Any]]) -> tuple[list[_Row], Scenery]:
        """Each face of an original beside what is in its place, and the rest of the two pictures."""
        photo = read_photo(read_bytes(pair.original), pair.name)
        pixels = photo.pixels
        new = _like(read_photo(read_bytes(pair.anonymized), str(pair.anonymized)).pixels, pixels, pair.anonymized)
        third = None
        if pair.parrot is not None:
            third = _like(read_photo(read_bytes(pair.parrot), str(pair.parrot)).pixels, pixels, pair.parrot)
        everybody = self.finder.find(pixels)
        boxes, quarters = everybody.boxes, everybody.quarters.tolist()
        faces = [
            Face(_rounded(box), score, quarters=turns)
            for box, score, turns in zip(boxes, everybody.scores.tolist(), quarters, strict=True)
        ]
        around = scenery(pixels, new, boxes)
        if faces and (pair.group or pair.identity):
            faces = [max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))]
        for face in faces:
            _told_how(face, hidden_by)
        self.attacker.meet(Picture(pair.name, photo, faces))
        rows = []
        for face in faces:
            self.attacker.judge(face, new)
            if face.method == "mask" and face.covered != 1:  # nobody says with what it was painted
                share = max(face.covered or 0.0, _painted_over(face, pixels, new) or 0.0)
                face.covered = share if share >= COVERED else None
                face.verdict = verdict_of(face, self.attacker.thresholds)
            elif not face.method:  # nor how it was hidden
                face.covered = _painted_over(face, pixels, new)
            x0, y0, x1, y1 = face.box
            square = Square((x0 + x1) / 2, (y0 + y1) / 2, self.scale * max(x1 - x0, y1 - y0))
            parrot = {}
            for matcher in self.attacker.matchers if third is not None else ():
                known = face.seen.get(matcher.name)
                parrot[matcher.name] = (
                    None if known is None or third is None else embed_at(matcher, known.square, third)
                )
            rows.append(_Row(face, square.crop(pixels, self.size), square.crop(new, self.size), parrot))
        return rows, around


_NONE = torch.full((1,), torch.nan)


def _embeddings(row: _Row, name: str) -> tuple[Tensor, ...]:
    """What a recognizer sees of a face: see `Recognized`."""
    seen = row.face.seen.get(name)
    if seen is None:
        return _NONE, _NONE, _NONE, _NONE
    hidden = _NONE if seen.hidden is None else seen.hidden
    third = row.parrot.get(name)
    return seen.embedding, hidden, hidden if seen.own is None else seen.own, _NONE if third is None else third


def filled(rows: Sequence[Tensor]) -> Tensor:
    """Embeddings (N, D); NaN where a row is empty."""
    width = max(len(row) for row in rows)
    return torch.stack([row if len(row) == width else torch.full((width,), torch.nan) for row in rows])


def _rounded(box: Tensor) -> tuple[float, float, float, float]:
    """A box as `fairanon anonymize` has it."""
    x0, y0, x1, y1 = (round(value, 1) for value in box.tolist())
    return x0, y0, x1, y1


def _told_how(face: Face, lines: Sequence[Mapping[str, Any]]) -> None:
    """Note where and by which method a face was hidden, as the manifest's line of the box that it meets best says it."""
    if not lines:
        return
    near = overlap(torch.tensor(face.box), torch.tensor([line["box"] for line in lines]))
    line = lines[int(near.argmax())]
    if float(near.max()) > _SAME and line["region"] is not None:  # faces that were kept have none
        face.box, face.region, face.given_up = tuple(line["box"]), tuple(line["region"]), line["verdict"] == FOUND
        face.method, face.strength, face.ellipse = line["method"], line["strength"], line["ellipse"]


_SAME = 0.5
"""Intersection over union from which on two boxes are of one face."""


def _painted_over(face: Face, pixels: Tensor, new: Tensor) -> float | None:
    """Share of a face's box that has one colour where the original had many; None where nothing was to be covered.

    One colour is one up to what compressing adds: a face that was darkened can be brightened again.
    """
    before, after = (within(face, image).flatten(1).int() for image in (pixels, new))
    if not after.numel() or _plain(before, _MANY) > _HAD:
        return None
    return _plain(after, _ONE)


def _plain(part: Tensor, tolerance: int) -> float:
    """Share of pixels int (3, N) that are within a tolerance of their median."""
    away = (part - part.median(1, keepdim=True).values).abs()
    return round(float((away <= tolerance).all(0).double().mean()), 4)


_ONE, _MANY = 3, 16
"""Grey values within which a painted box has one colour, and beyond which something was there."""
_HAD = 0.9
"""Share of a box that has one colour from which on nothing was there to be covered."""


def _like(pixels: Tensor, other: Tensor, path: Path) -> Tensor:
    """A result in its original's size."""
    height, width = other.shape[-2:]
    if pixels.shape == other.shape:
        return pixels
    if abs(pixels.shape[-1] * height / (pixels.shape[-2] * width) - 1) > 0.02:
        raise CorruptImageError(f"{path} has another shape than its original: its faces are not where they were")
    resized = F.interpolate(pixels[None].float(), (height, width), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _values(looks: Looks, pixels: Tensor, sources: Tensor | None) -> dict[str, Tensor]:
    """What judges say of faces uint8 (B, 3, S, S), and how alike they are to their sources."""
    values: dict[str, Tensor] = {}
    if sources is not None:
        values |= {f"alike/{name}": rows for name, rows in image_pairs(pixels, sources).items()}
        if looks.perceptual is not None:
            values["perceptual"] = looks.perceptual.distance(pixels, sources)
    if looks.geometry is not None:
        values |= {f"geometry/{name}": rows for name, rows in looks.geometry.measure(pixels).items()}
    if looks.features is not None:
        values["features"] = looks.features.features(pixels)
    if sources is not None and looks.clip is not None:
        values["clip_i"] = F.cosine_similarity(looks.clip.features(pixels), looks.clip.features(sources))
    if looks.quality is not None:
        values["quality"] = looks.quality.score(pixels, [""] * len(pixels))
    if looks.attributes is not None:
        values |= {f"attributes/{name}": rows for name, rows in looks.attributes.classify(pixels).items()}
    return values
