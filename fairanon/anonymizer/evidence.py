"""What judges see of originals and of their anonymized versions, by whomever."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairanon.anonymizer.faces import Face
from fairanon.anonymizer.looking import Looked, filled
from fairanon.anonymizer.manifest import as_cell, printable
from fairanon.anonymizer.pairs import Pair
from fairanon.anonymizer.scenery import SHARED, Scenery, foreign, likeness
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.files import write_text
from fairanon.metrics.functional.verification import Metric
from fairanon.protocols import FaceMatcher


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


def joined(
    stretches: Iterable[tuple[Sequence[Pair], Looked]], matchers: Sequence[FaceMatcher], force: bool = False
) -> Evidence:
    """What is seen of all pairs together.

    Args:
        stretches: Pairs, and what is seen of them, in their order.
        matchers: Who recognizes.
        force: Measure pairs that share nothing outside of the faces, or whose result shows a neighbour's scene, too.

    Raises:
        ValueError: Most pairs share nothing outside of the faces, or results show their neighbours' scenes: names that slipped by
            one look like a perfect anonymizer.
        FileNotFoundError: There is nothing to compare.
    """
    evidence = Evidence()
    kept = _Kept()
    nearer = [0, 0]  # results that are more like the picture before, after
    before: Scenery | None = None
    waiting: tuple[Pair, Looked, int] | None = None
    parrots = False

    def admit(pair: Pair, looked: Looked, place: int, after: Scenery | None) -> None:
        around, neighbours = looked.scenes[place], (before, after)
        rows = [row for row, owner in enumerate(looked.owners) if owner == place]
        if not rows:
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
        for row in rows:
            evidence.names.append(pair.name)
            evidence.groups.append(pair.group)
            evidence.identities.append(pair.identity)
            evidence.faces.append(looked.faces[row])
        kept.add(looked, rows)

    for pairs, looked in stretches:
        for place, pair in enumerate(pairs):
            if place in looked.unreadable:
                evidence.unreadable.append(looked.unreadable[place])
                continue
            parrots = parrots or pair.parrot is not None
            if waiting is not None:
                admit(*waiting, looked.scenes[place])
                before = waiting[1].scenes[waiting[2]]
            waiting = pair, looked, place
    if waiting is not None:
        admit(*waiting, None)
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
    seen, evidence.values, evidence.source_values = kept.joined()
    for matcher in matchers:
        sides = seen[matcher.name]
        third = sides["parrot"] if parrots else None
        evidence.recognized[matcher.name] = Recognized(
            matcher.metric, sides["originals"], sides["hidden"], sides["own"], third, matcher.published
        )
    evidence.found_again = torch.tensor([face.found_again for face in evidence.faces])
    return evidence


class _Kept:
    """Rows of faces that are measured, stretch by stretch: a tensor for each face would fill the memory."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, list[Tensor]]] = {}
        self._values: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        self._of: Looked | None = None
        self._rows: list[int] = []

    def add(self, looked: Looked, rows: Sequence[int]) -> None:
        """Keep some rows of a stretch; stretches come one after the other."""
        if looked is not self._of:
            self._close()
            self._of = looked
        self._rows += rows

    def _close(self) -> None:
        if self._of is None or not self._rows:
            return
        for name, sides in self._of.seen.items():
            for side, embeddings in sides.items():
                rows = filled([embeddings[row] for row in self._rows])
                self._seen.setdefault(name, {}).setdefault(side, []).append(rows)
        for kept, values in zip(self._values, (self._of.values, self._of.source_values), strict=True):
            if kept and kept.keys() != values.keys():
                raise ValueError("not all processes have the same judges; make sure that all have the same weights.")
            for name, measured in values.items():
                kept.setdefault(name, []).append(measured[self._rows])
        self._rows = []

    def joined(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings by recognizer and side, values of the results, and of the originals."""
        self._close()
        seen = {name: {side: _stacked(parts) for side, parts in sides.items()} for name, sides in self._seen.items()}
        values, sources = ({name: torch.cat(parts) for name, parts in kept.items()} for kept in self._values)
        return seen, values, sources


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Embeddings of stretches, (N, D); of a stretch in which nobody was seen there are rows of one NaN."""
    width = max(part.shape[1] for part in parts)
    return torch.cat(
        [part if part.shape[1] == width else part.new_full((len(part), width), torch.nan) for part in parts]
    )


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
