"""What judges see of originals and of their anonymized versions, by whomever."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.attack import COVERED, FOUND, Attacker, embed_at, verdict_of, within
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.find import Finder, overlap
from fairanon.anonymizer.manifest import as_cell, printable
from fairanon.anonymizer.pairs import Pair
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.scenery import SHARED, Scenery, foreign, likeness, scenery
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.files import write_text
from fairanon.imaging import CorruptImageError, Square
from fairanon.metrics.functional.similarity import image_pairs
from fairanon.metrics.functional.verification import Metric
from fairanon.places import read_bytes
from fairanon.progress import progress_bar
from fairanon.protocols import (
    AttributeClassifier,
    FaceGeometry,
    FeatureNet,
    PerceptualDistance,
    Scorer,
)

_BATCH = 16


@dataclass
class Recognized:
    """What one recognizer sees.

    Attributes:
        metric: How its embeddings are compared.
        originals: float (N, D), NaN where it finds no face.
        hidden: Likewise of the results, aligned as the originals are: there the attacker knows that somebody was.
        own: Likewise, aligned as a detector finds the face; as above where it finds none.
        parrot: As ``hidden``, of what an attacker anonymized; None if there is none.
        published: The threshold that its authors publish, if they do.
    """

    metric: Metric
    originals: Tensor
    hidden: Tensor
    own: Tensor
    parrot: Tensor | None = None
    published: float | None = None


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
class Evidence:
    """All that is known of N faces; rows belong together.

    Attributes:
        names: Of their files.
        groups: None where unknown.
        identities: Likewise; then everybody is somebody else.
        recognized: By the recognizers' names.
        faces: Attacked; none where embeddings are all that is known.
        found_again: bool (N,), a detector finds a face in the result.
        values: By what was measured: rows of the results, float (N, ...).
        source_values: Of the originals.
        unreadable: Files that could not be compared, one of the two.
        faceless: Originals in which no face was found.
        alike: How alike each pair is outside of the faces, see `scenery.likeness`; those of whom it can be said.
        foreign: Those whose result shows the scene of the picture before it, and of the one after it, which are not measured.
        strange: Pairs that share nothing there, which are not measured.
    """

    names: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    identities: list[str | None] = field(default_factory=list)
    recognized: dict[str, Recognized] = field(default_factory=dict)
    faces: list[Face] = field(default_factory=list)
    found_again: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    source_values: dict[str, Tensor] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    faceless: list[str] = field(default_factory=list)
    alike: dict[str, float] = field(default_factory=dict)
    foreign: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    strange: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class _Row:
    """One face, until its batch is judged."""

    face: Face
    cut: Tensor
    new: Tensor
    parrot: dict[str, Tensor | None]


def gather(
    pairs: Sequence[Pair],
    finder: Finder,
    attacker: Attacker,
    looks: Looks,
    size: int = 256,
    scale: float = 1.8,
    workers: int = 2,
    hidden_by: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    force: bool = False,
) -> Evidence:
    """Look at all pairs.

    Args:
        pairs: Files. With a group or an identity only the largest face of a file counts: that is who they are of.
        finder: Finds faces in originals.
        attacker: Attacks what became of them, as `fairanon anonymize` does.
        looks: Further judges.
        size: Side of what these are shown.
        scale: How much that shows, as a multiple of the face's larger side.
        workers: Threads that read.
        hidden_by: By the originals' names: lines of faces in `fairanon anonymize`'s manifest, which say by which method each was
            hidden.
        force: Measure pairs that share nothing outside of the faces, or whose result shows a neighbour's scene, too.

    Raises:
        ValueError: Most pairs share nothing outside of the faces, or results show their neighbours' scenes: names that slipped by
            one look like a perfect anonymizer.
        FileNotFoundError: There is nothing to compare.
    """
    evidence = Evidence()
    rows: list[_Row] = []
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    seen: dict[str, list[tuple[Tensor, ...]]] = {matcher.name: [] for matcher in attacker.matchers}

    def look(pair: Pair) -> tuple[list[_Row], Scenery] | CorruptImageError:
        try:
            return _faces_of(pair, finder, attacker, size, scale, (hidden_by or {}).get(pair.name, ()))
        except CorruptImageError as error:
            return error

    def judge_batch(batch: list[_Row]) -> None:
        cuts, new = torch.stack([row.cut for row in batch]), torch.stack([row.new for row in batch])
        parts.append((_values(looks, new, cuts), _values(looks, cuts, None)))

    def admit(pair: Pair, faces: list[_Row], around: Scenery, neighbours: Sequence[Scenery | None]) -> None:
        if not faces:
            evidence.faceless.append(pair.name)
        if (alike := likeness(around)) is not None:
            evidence.alike[pair.name] = alike
            for k, neighbour in enumerate(neighbours):
                nearer[k] += neighbour is not None and foreign(around, neighbour, surely=False)
            shown = [
                evidence.foreign[k]
                for k, neighbour in enumerate(neighbours)
                if neighbour is not None and foreign(around, neighbour)
            ]
            wrong = shown or ([evidence.strange] if alike < SHARED else [])
            if wrong and not force:
                for names in wrong:
                    names.append(pair.name)
                return
        for row in faces:
            evidence.names.append(pair.name)
            evidence.groups.append(pair.group)
            evidence.identities.append(pair.identity)
            evidence.faces.append(row.face)
            for name, kept in seen.items():
                kept.append(_embeddings(row, name))
            rows.append(row)
        while len(rows) >= _BATCH:
            judge_batch(rows[:_BATCH])
            del rows[:_BATCH]

    nearer = [0, 0]  # results that are more like the picture before, after
    before: Scenery | None = None
    waiting: tuple[Pair, list[_Row], Scenery] | None = None
    with ThreadPoolExecutor(workers) as pool:
        bar = progress_bar(pool.map(look, pairs), total=len(pairs), desc="pairs", unit="pair")
        for pair, looked in zip(pairs, bar, strict=True):
            if isinstance(looked, CorruptImageError):
                evidence.unreadable.append(str(looked))
                continue
            if waiting is not None:
                admit(*waiting, (before, looked[1]))
                before = waiting[2]
            waiting = pair, *looked
    if waiting is not None:
        admit(*waiting, (before, None))
    if rows:
        judge_batch(rows)
    other = "show the scene of the picture {} them, not their own"
    left_out = len({*evidence.foreign[0], *evidence.foreign[1]})
    for what, wrong, many in (
        (other.format("before"), nearer[0], 2 / 3),
        (other.format("after"), nearer[1], 2 / 3),
        (other.format("before or after"), left_out, 1 / 3),
        ("share nothing outside of the faces", len(evidence.strange), 1 / 2),
    ):
        if wrong > many * len(evidence.alike) and not force:
            raise ValueError(
                f"{wrong} of {len(evidence.alike)} pairs {what}: are these pairs of the same pictures? --table says which files belong "
                "together; --force measures them as they are."
            )
    if not evidence.names and evidence.unreadable:
        raise FileNotFoundError(
            f"nothing can be compared ({len(evidence.unreadable)} files): {evidence.unreadable[0]}."
        )
    if not evidence.names:
        raise FileNotFoundError("no face was found in any original; a lower --detector-threshold finds more.")
    parrots = pairs[0].parrot is not None
    for matcher in attacker.matchers:
        originals, hidden, own, third = (_filled(rows) for rows in zip(*seen[matcher.name], strict=True))
        evidence.recognized[matcher.name] = Recognized(
            matcher.metric, originals, hidden, own, third if parrots else None, matcher.published
        )
    evidence.found_again = torch.tensor([face.found_again for face in evidence.faces])
    for here, side in ((evidence.values, 0), (evidence.source_values, 1)):
        for name in parts[0][side]:
            here[name] = torch.cat([part[side][name] for part in parts])
    return evidence


_NONE = torch.full((1,), torch.nan)


def _embeddings(row: _Row, name: str) -> tuple[Tensor, ...]:
    """What a recognizer sees of a face: see `Recognized`."""
    seen = row.face.seen.get(name)
    if seen is None:
        return _NONE, _NONE, _NONE, _NONE
    hidden = _NONE if seen.hidden is None else seen.hidden
    third = row.parrot.get(name)
    return seen.embedding, hidden, hidden if seen.own is None else seen.own, _NONE if third is None else third


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """Embeddings (N, D); NaN where a row is empty."""
    width = max(len(row) for row in rows)
    return torch.stack([row if len(row) == width else torch.full((width,), torch.nan) for row in rows])


def _faces_of(
    pair: Pair,
    finder: Finder,
    attacker: Attacker,
    size: int,
    scale: float,
    hidden_by: Sequence[Mapping[str, Any]],
) -> tuple[list[_Row], Scenery]:
    """Each face of an original beside what is in its place, and the rest of the two pictures."""
    photo = read_photo(read_bytes(pair.original), pair.name)
    pixels = photo.pixels
    new = _like(read_photo(read_bytes(pair.anonymized), str(pair.anonymized)).pixels, pixels, pair.anonymized)
    third = None
    if pair.parrot is not None:
        third = _like(read_photo(read_bytes(pair.parrot), str(pair.parrot)).pixels, pixels, pair.parrot)
    everybody = finder.find(pixels)
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
    attacker.meet(Picture(pair.name, photo, faces))
    rows = []
    for face in faces:
        attacker.judge(face, new)
        if face.method == "mask" and face.covered != 1:  # nobody says with what it was painted
            share = max(face.covered or 0.0, _painted_over(face, pixels, new) or 0.0)
            face.covered = share if share >= COVERED else None
            face.verdict = verdict_of(face, attacker.thresholds)
        elif not face.method:  # nor how it was hidden
            face.covered = _painted_over(face, pixels, new)
        x0, y0, x1, y1 = face.box
        square = Square((x0 + x1) / 2, (y0 + y1) / 2, scale * max(x1 - x0, y1 - y0))
        parrot = {}
        for matcher in attacker.matchers if third is not None else ():
            known = face.seen.get(matcher.name)
            parrot[matcher.name] = None if known is None or third is None else embed_at(matcher, known.square, third)
        rows.append(_Row(face, square.crop(pixels, size), square.crop(new, size), parrot))
    return rows, around


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


def open_faces(evidence: Evidence) -> list[dict[str, Any]]:
    """Faces that are not hidden, those nearest to their originals first: file, box, verdict, distances; none of embeddings."""
    rows = [
        {"file": printable(name), "box": list(face.box), "verdict": face.verdict, "distances": dict(face.distances)}
        for name, face in zip(evidence.names, evidence.faces, strict=False)
        if face.verdict not in HIDDEN
    ]
    return sorted(rows, key=lambda row: min(row["distances"].values(), default=math.inf))


def write_faces(folder: Path, evidence: Evidence, thresholds: Iterable[str]) -> None:
    """Write ``faces.csv``: each face's box, verdict and distances, for pictures.

    Args:
        folder: Where.
        evidence: Judged.
        thresholds: By the recognizers' names.
    """
    if not evidence.faces:
        (folder / "faces.csv").unlink(missing_ok=True)  # of pictures that were measured into this folder before
        return
    table = io.StringIO()
    writer = csv.writer(table)
    names = list(thresholds)
    writer.writerow(
        ["file", "x0", "y0", "x1", "y1", "group", "identity", "verdict", "found_again", "covered"]
        + [f"distance {name}" for name in names]
    )
    for name, group, identity, face in zip(
        evidence.names, evidence.groups, evidence.identities, evidence.faces, strict=True
    ):
        distances = [
            f"{face.distances[recognizer]:.4f}" if recognizer in face.distances else "" for recognizer in names
        ]
        who = [as_cell(name), *face.box, as_cell(group or ""), as_cell(identity or "")]
        writer.writerow(
            [*who, face.verdict, face.found_again, "" if face.covered is None else face.covered, *distances]
        )
    write_text(folder / "faces.csv", table.getvalue())
