"""Whether the hidden faces of a collection are found among its originals more often than by chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from fairanon.anonymizer.attack import Threshold, has_a_say
from fairanon.anonymizer.faces import Face
from fairanon.metrics.functional.verification import distances
from fairanon.protocols import FaceMatcher

ENOUGH = 50
"""Faces from which on a collection is tested against chance."""
FEWEST = 10
"""Originals that a block must have: among fewer nearly everybody is found by chance."""
CHANCE = 0.01
"""Probability below which as many faces would be found by chance."""


class Draw(NamedTuple):
    """Faces of one person that got one new face, so that chance finds all of them or none.

    Attributes:
        chance: Probability that they are found.
        many: Faces of the block in it.
        new_face: Which new face, where it is known: other blocks' faces that got it belong to the same draw.
    """

    chance: float
    many: int
    new_face: str = ""


@dataclass(frozen=True)
class Compared:
    """Hidden faces of one block, compared with all originals of that block.

    Attributes:
        faces: How many.
        draws: How many draws there are of each kind.
        found: Rows of the faces that are found.
    """

    faces: int
    draws: dict[Draw, int]
    found: tuple[int, ...]


@dataclass(frozen=True)
class Collection:
    """Whether faces of a collection are found more often than by chance.

    Attributes:
        faces: How many were compared.
        found: How many are found, by what they were compared by, see `compare`.
        probability: That as many would be by chance.
        blocks: In how many blocks they are.
        hits: Block and row of those faces that are to be hidden again: all found ones, where there are more than by chance.
    """

    faces: int
    found: dict[str, int]
    probability: dict[str, float]
    blocks: int
    hits: tuple[tuple[int, int], ...]

    def record(self) -> str | dict[str, Any]:
        """What the manifest says."""
        if self.faces < ENOUGH:
            return "not testable"
        return {"faces": self.faces, "blocks": self.blocks, "found": self.found, "probability": self.probability}


def compare(
    faces: Sequence[Face],
    matchers: Sequence[FaceMatcher],
    thresholds: Mapping[str, Threshold],
    new_faces: Sequence[str] = (),
) -> dict[str, Compared]:
    """Compare every hidden face of a block with every original of it, twice for each recognizer.

    Found is a face whose nearest original is its own photograph, by chance once in N; and one whose nearest original shows
    the same person, as the recognizer itself takes originals for one person: by chance as often as that person is there,
    divided by N. A person's photographs that got one new face are found all or not at all: they are one draw, and where it is
    known that they got one, a photograph that is found looks for itself among those of its person: by chance once in as many as
    there are. A block with fewer than `FEWEST` originals that a recognizer can judge tells nothing.

    Args:
        faces: Of the block.
        matchers: Recognizers.
        thresholds: Up to which each takes two for one person.
        new_faces: Which new face each got, where that is known (`fairanon.anonymizer.hide.Hider.new_face`). Otherwise those got
            one whose originals are one person to the recognizer, and whose results are.
    """
    comparisons = {}
    for matcher in matchers:
        name, limit = matcher.name, thresholds[matcher.name]
        rows = [
            k for k, face in enumerate(faces) if face.asked and name in face.seen and has_a_say(face.seen[name], limit)
        ]  # faces that stay are not hidden among anybody
        seen = [faces[k].seen[name] for k in rows]
        known = torch.tensor([k for k, view in enumerate(seen) if view.hidden is not None], dtype=torch.long)
        if len(rows) < FEWEST or not len(known):
            continue
        originals = torch.stack([view.embedding for view in seen])
        hidden = torch.stack([view.hidden for view in seen if view.hidden is not None])
        new_face_names = [new_faces[rows[k]] if new_faces else "" for k in known.tolist()]
        first_of: dict[str, int] = {}
        for k, new_face in enumerate(new_face_names):
            first_of.setdefault(new_face, k)
        own, same, first = [], [], list[int]()
        by_chance: list[float] = []
        for part, mine in zip(hidden.split(512), known.split(512), strict=True):
            nearest = distances(part, originals, matcher.metric).argmin(1)
            alike = distances(originals[mine], originals, matcher.metric) <= limit.value
            alike[torch.arange(len(mine)), mine] = True
            own.append(nearest == mine)
            same.append(alike[torch.arange(len(mine)), nearest])
            by_chance += alike.double().mean(1).tolist()
            one_face = alike[:, known] & (distances(part, hidden, matcher.metric) <= limit.value)
            one_face[torch.arange(len(mine)), torch.searchsorted(known, mine)] = True
            first += one_face.int().argmax(1).tolist()  # that looks like it
        first = [first_of[new_face] if new_face else k for new_face, k in zip(new_face_names, first, strict=True)]
        drawn = Counter(Draw(by_chance[k], many, new_face_names[k]) for k, many in Counter(first).items())
        own_right, same_right = torch.cat(own), torch.cat(same)
        looks: Counter[Draw] = Counter()  # for one's own photograph
        for k, new_face in enumerate(new_face_names):
            if not new_face:
                looks[Draw(1 / len(rows), 1)] += 1
            elif same_right[k]:
                # How often a new face meets its person is one draw; which of the person's photographs it meets is not.
                looks[Draw(1 / round(by_chance[k] * len(rows)), 1)] += 1
        for key, right, draws in (
            (name, own_right, looks),
            (f"{name}, the same person", same_right, drawn),
        ):
            comparisons[key] = Compared(
                len(known), dict(draws), tuple(rows[int(known[k])] for k in right.nonzero().flatten().tolist())
            )
    return comparisons


def against_chance(blocks: Sequence[Mapping[str, Compared]]) -> Collection:
    """Whether more faces are found than by chance, over all blocks; either way of being found is enough to hide them again."""
    found_counts: dict[str, int] = {}
    probability: dict[str, float] = {}
    hits: set[tuple[int, int]] = set()
    most = 0
    for key in dict.fromkeys(key for block in blocks for key in block):
        there = [(number, block[key]) for number, block in enumerate(blocks) if key in block]
        faces = sum(comparison.faces for _, comparison in there)
        most = max(most, faces)
        if faces < ENOUGH:
            continue
        found_counts[key] = sum(len(comparison.found) for _, comparison in there)
        probability[key] = float(
            f"{at_least(found_counts[key], _independent([comparison.draws for _, comparison in there])):.3g}"
        )
        if probability[key] < CHANCE:
            hits |= {(number, row) for number, comparison in there for row in comparison.found}
    return Collection(most, found_counts, probability, sum(bool(block) for block in blocks), tuple(sorted(hits)))


def _independent(blocks: Iterable[Mapping[Draw, int]]) -> dict[tuple[float, int], int]:
    """Draws of all blocks, chance and many with how many there are: one new face is one draw, in however many blocks it is."""
    draws = Counter[tuple[float, int]]()
    parts: dict[str, list[Draw]] = defaultdict(list)
    for block in blocks:
        for draw, count in block.items():
            if draw.new_face:
                parts[draw.new_face].append(draw)
            else:
                draws[draw.chance, draw.many] += count
    for of_one in parts.values():
        many = sum(draw.many for draw in of_one)
        chance = sum(draw.chance * draw.many for draw in of_one) / many
        draws[float(f"{chance:.3g}"), many] += 1  # kinds are few, so that `at_least` is quick
    return draws


def at_least(hits: int, draws: Mapping[tuple[float, int], int]) -> float:
    """The probability of so many hits or more among independent draws: exactly.

    Args:
        hits: How many.
        draws: Chance of a draw and how many hits it is, with how many such draws there are.

    Examples:
        >>> at_least(2, {(0.5, 1): 3}), at_least(2, {(0.5, 2): 1, (0.5, 1): 2})
        (0.5, 0.625)
    """
    from scipy.stats import binom  # a second

    if not hits:
        return 1.0
    fewer, more = np.zeros(hits), 0.0  # the probability of each number of hits below, and of so many or more
    fewer[0] = 1.0
    for (chance, many), count in draws.items():
        lacking = np.arange(hits, 0, -1)
        more += float(fewer @ binom.sf(np.ceil(lacking / many) - 1, count, chance))
        likely = binom.pmf(np.arange(min(count, (hits - 1) // many) + 1), count, chance)
        met = np.zeros((len(likely) - 1) * many + 1)
        met[::many] = likely
        known = np.flatnonzero(met)
        fewer = np.convolve(fewer, met[: known[-1] + 1] if len(known) else met[:1])[:hits]
    return min(1.0, more)
