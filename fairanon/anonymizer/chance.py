"""Whether the hidden faces of a collection are found among its originals more often than by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Compared:
    """Hidden faces of one block, compared with all originals of that block.

    Attributes:
        chances: How probably a face is found by chance and how many of one person are found with it, as all of them got one new
            face; with how many such draws there are.
        found: Rows of the faces that are found.
    """

    chances: dict[tuple[float, int], int]
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
    faces: Sequence[Face], matchers: Sequence[FaceMatcher], thresholds: Mapping[str, Threshold]
) -> dict[str, Compared]:
    """Compare every hidden face of a block with every original of it, twice for each recognizer.

    Found is a face whose nearest original is its own photograph, by chance once in N; and one whose nearest original shows
    the same person, as the recognizer itself takes originals for one person: by chance as often as that person is there,
    divided by N. A person's photographs that got one new face, as the recognizer takes results for one person, are found all
    or not at all: they are one draw. A block with fewer than `FEWEST` originals that a recognizer can judge tells nothing.
    """
    told = {}
    for matcher in matchers:
        name, limit = matcher.name, thresholds[matcher.name]
        rows = [
            k for k, face in enumerate(faces) if face.asked and name in face.seen and has_a_say(face.seen[name], limit)
        ]  # faces that stay are not hidden among anybody
        seen = [faces[k].seen[name] for k in rows]
        known = torch.tensor([k for k, one in enumerate(seen) if one.hidden is not None], dtype=torch.long)
        if len(rows) < FEWEST or not len(known):
            continue
        originals = torch.stack([one.embedding for one in seen])
        hidden = torch.stack([one.hidden for one in seen if one.hidden is not None])
        own, same, draws = [], [], Counter[int]()
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
            draws.update(one_face.int().argmax(1).tolist())  # the first one that looks like it
        for key, right, chances in (
            (name, torch.cat(own), Counter({(1 / len(rows), 1): len(known)})),
            (f"{name}, the same person", torch.cat(same), Counter((by_chance[k], many) for k, many in draws.items())),
        ):
            told[key] = Compared(dict(chances), tuple(rows[int(known[k])] for k in right.nonzero().flatten().tolist()))
    return told


def against_chance(blocks: Sequence[Mapping[str, Compared]]) -> Collection:
    """Whether more faces are found than by chance, over all blocks; either way of being found is enough to hide them again."""
    found: dict[str, int] = {}
    probability: dict[str, float] = {}
    hits: set[tuple[int, int]] = set()
    most = 0
    for key in dict.fromkeys(key for block in blocks for key in block):
        there = [(number, block[key]) for number, block in enumerate(blocks) if key in block]
        chances = Counter[tuple[float, int]]()
        for _, one in there:
            chances.update(one.chances)
        faces = sum(many * count for (_, many), count in chances.items())
        most = max(most, faces)
        if faces < ENOUGH:
            continue
        found[key] = sum(len(one.found) for _, one in there)
        probability[key] = float(f"{at_least(found[key], chances):.3g}")
        if probability[key] < CHANCE:
            hits |= {(number, row) for number, one in there for row in one.found}
    return Collection(most, found, probability, sum(bool(block) for block in blocks), tuple(sorted(hits)))


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
