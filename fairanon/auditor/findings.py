"""What judgements add up to: how far each prompt is from the target, who is missing, who is obeyed, what goes together.

Shapes: N images of P prompts, K classes of an attribute. Every formula is in docs/audit.md, with how often it holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor
from torch.nn import functional as F

from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed
from fairanon.metrics.functional.confusion import Confusion, corrected_shares
from fairanon.metrics.functional.discrepancy import (
    discrepancy,
    farthest,
    floor,
    of_the_target,
    rms_discrepancy,
    unbiased_squares,
)
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.recall import judged_right

UNSURE = 0.8
"""A judge that gives no class so much is not sure (aDFT's convention)."""
FALSE_DISCOVERIES = 0.1
"""Share of the named prompts that are named by chance, at most (Benjamini and Hochberg 1995)."""
_SHUFFLES = 500
_REPEATS = (2000, 200_000)


@dataclass(frozen=True)
class Question:
    """What is counted.

    Attributes:
        attribute: Its name.
        classes: Its K classes.
        ideal: float64 (P, K), the target of each prompt.
        even: The target is the uniform one.
        confusion: Of the judge; None: it is taken at its word.
    """

    attribute: str
    classes: tuple[str, ...]
    ideal: Tensor
    even: bool
    confusion: Confusion | None


class Neutral:
    """The images of prompts that name no group.

    Args:
        judged: All of them.
    """

    def __init__(self, judged: Judged[Portrayed]) -> None:
        self.judged = judged.within("neutral", "heldout")
        rows = sorted(set(self.judged.prompt.tolist()))
        self.prompts = [judged.rows[row].prompt for row in rows]
        place = {row: k for k, row in enumerate(rows)}
        self.prompt = torch.tensor([place[row] for row in self.judged.prompt.tolist()], dtype=torch.long)
        """int64 (N,), 0 to P - 1."""

    def said(self, attribute: str) -> tuple[Tensor, Tensor]:
        """Which images an attribute was judged of, bool (N,), and the class, int64 (N,)."""
        rows = self.judged.values.probabilities[attribute]
        return ~rows.isnan().any(1), rows.nan_to_num(0).argmax(1)

    def counts(self, attribute: str, among: Tensor | None = None) -> Tensor:
        """float64 (P, K), judged images of each class, or those of them that are ``among`` bool (N,)."""
        seen, classes = self.said(attribute)
        seen = seen if among is None else seen & among
        size = self.judged.values.probabilities[attribute].shape[1]
        places = self.prompt[seen] * size + classes[seen]
        return torch.bincount(places, minlength=len(self.prompts) * size).view(-1, size).double()


def of_attribute(neutral: Neutral, asked: Question) -> dict[str, Any]:
    """The numbers of one attribute, and of each prompt.

    Returns:
        ``numbers`` (`Estimates`), ``missing`` (`Estimates`), ``bounds`` (two distances), ``prompts`` (a dictionary
        each).
    """
    counts = neutral.counts(asked.attribute)
    several = counts.sum(1) >= 1
    some, ideal = counts[several], asked.ideal[several]
    shares = some / some.sum(1, keepdim=True)
    numbers: Estimates = {
        "distance": rms_discrepancy(counts, asked.ideal, confusion=asked.confusion),
        "distance_as_judged": rms_discrepancy(counts, asked.ideal),
        "per_prompt": _between(Estimate.mean(discrepancy(shares, ideal)), float(farthest(ideal).mean())),
        "pooled": _pooled(some, ideal),
        "total_variation": _between(Estimate.mean((shares - ideal).abs().sum(1) / 2), 1.0),
        "divergence": _between(Estimate.mean(_divergence(some, ideal)), math.inf),
        "gap": _between(Estimate.mean(_gap(shares)), 1.0),
        "floor": None,
        "most": Estimate.exact(float(farthest(ideal).square().mean().sqrt()), len(ideal)) if len(ideal) else None,
    }
    if asked.even and len(some):
        level = floor(max(1, round(float(some.sum(1).mean()))), len(asked.classes))
        numbers["floor"] = Estimate.exact(level, int(some.sum()))
    missing, bounds = _missing(neutral, asked)
    return {
        "numbers": numbers,
        "missing": missing,
        "bounds": bounds,
        "prompts": _by_prompt(neutral, asked, counts),
    }


def _between(found: Estimate, most: float) -> Estimate:
    """An estimate whose interval does not leave what there can be."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(most, found.high))


def _pooled(counts: Tensor, ideal: Tensor, repeats: int = 1000) -> Estimate | None:
    """All images together, as PopAlign's tables have it, with a bootstrap over prompts; a target by prompts has no such number."""
    if not len(counts) or not bool((ideal == ideal[0]).all()):
        return None
    weights = torch.randint(len(counts), (repeats, len(counts)), generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([torch.bincount(row, minlength=len(counts)) for row in weights]).double() @ counts
    found = discrepancy(drawn / drawn.sum(1, keepdim=True), ideal[0])
    share = counts.sum(0) / counts.sum()
    return Estimate.bootstrap(float(discrepancy(share, ideal[0])), found, int(counts.sum()))


def _divergence(counts: Tensor, ideal: Tensor) -> Tensor:
    """KL(shares || target) in nats, half an image added to each class; infinite where the target has none of a class: float64 (P,)."""
    soft = (counts + 0.5) / (counts.sum(1, keepdim=True) + counts.shape[1] / 2)
    return (soft * (soft / ideal).log()).sum(1)


def _gap(shares: Tensor) -> Tensor:
    """Mean difference of two classes' shares (aDFT): float64 (P,)."""
    pairs = list(itertools.combinations(range(shares.shape[1]), 2))
    return torch.stack([(shares[:, a] - shares[:, b]).abs() for a, b in pairs]).mean(0)


def _missing(neutral: Neutral, asked: Question) -> tuple[Estimates, list[float | None]]:
    """Whom nobody counted, or not surely: three shares, and the least and the largest distance as judged that they leave open."""
    rows, blank = neutral.judged.values.probabilities[asked.attribute], neutral.judged.values.blank
    seen, _ = neutral.said(asked.attribute)
    unsure = seen & (rows.nan_to_num(0).amax(1) < UNSURE)
    shares = {
        kind: Estimate.share_of(which, neutral.prompt)
        for kind, which in (("blank", blank), ("no_face", ~seen & ~blank), ("unsure", unsure))
    }
    sure = neutral.counts(asked.attribute, ~unsure)
    lost = torch.bincount(neutral.prompt, minlength=len(neutral.prompts)).double() - sure.sum(1)
    several = sure.sum(1) + lost >= 2
    if not several.any():
        return dict(shares), [None, None]
    sure, lost, ideal = sure[several], lost[several], asked.ideal[several]
    heaped = unbiased_squares(sure[:, None] + torch.diag_embed(lost[:, None].expand(-1, sure.shape[1])), ideal[:, None])
    evened = unbiased_squares(_evened(sure, lost, ideal), ideal)
    squares = evened.minimum(heaped.amin(1)), heaped.amax(1)
    return dict(shares), [math.sqrt(max(0.0, float(one.mean()))) for one in squares]


def _evened(counts: Tensor, lost: Tensor, ideal: Tensor) -> Tensor:
    """Counts where those that are lost bring their prompt as near to its target as they can: water poured on what lacks most."""
    excess = counts - (counts.sum(1) + lost)[:, None] * ideal
    low, high = excess.amin(1), excess.amin(1) + lost
    for _ in range(60):
        level = (low + high) / 2
        poured = (level[:, None] - excess).clamp_min(0).sum(1)
        low, high = torch.where(poured < lost, level, low), torch.where(poured < lost, high, level)
    return counts + (high[:, None] - excess).clamp_min(0)


def _by_prompt(neutral: Neutral, asked: Question, counts: Tensor) -> list[dict[str, Any]]:
    """Each prompt's shares, and whether it is certainly away from the target."""
    several = counts.sum(1) >= 2
    chances = torch.ones(len(counts), dtype=torch.float64)
    squares = torch.full((len(counts),), torch.nan, dtype=torch.float64)
    if several.any():
        inverse = None if asked.confusion is None else asked.confusion.inverse
        squares[several] = unbiased_squares(counts[several], asked.ideal[several], inverse)
        chances[several] = _chances(counts[several], asked.ideal[several], squares[several], asked.confusion)
    total = torch.bincount(neutral.prompt, minlength=len(counts))
    named = discoveries(chances)
    found = []
    for p, prompt in enumerate(neutral.prompts):
        seen = int(counts[p].sum())
        shares = corrected_shares(counts[p], asked.confusion) if seen else []
        found.append({
            "prompt": prompt, "images": int(total[p]), "judged": seen, "counts": counts[p].long().tolist(), "shares": shares,
            "target": asked.ideal[p].tolist(), "square": float(squares[p]), "chance": float(chances[p]), "named": bool(named[p]),
        })  # fmt: skip
    return found


def _chances(counts: Tensor, ideal: Tensor, squares: Tensor, confusion: Confusion | None) -> Tensor:
    """The probability that a prompt that draws from its target is as far from it: Monte Carlo, float64 (P,).

    Where the smallest one that so many draws can show would not be enough to name a prompt among so many, more are drawn.
    """

    def of(rows: Tensor, repeats: int) -> Tensor:
        fair = of_the_target(counts[rows], ideal[rows], confusion=confusion, repeats=repeats)
        return ((fair >= squares[rows] - 1e-12).sum(0).double() + 1) / (repeats + 1)

    found = of(torch.arange(len(counts)), _REPEATS[0])
    extreme = (found <= 1 / (_REPEATS[0] + 1)).nonzero().flatten()
    if 0 < len(extreme) < len(counts) / (_REPEATS[0] * FALSE_DISCOVERIES):
        for rows in extreme.split(10):
            found[rows] = of(rows, _REPEATS[1])
    return found


def discoveries(chances: Tensor, level: float = FALSE_DISCOVERIES) -> Tensor:
    """Which of several tests may be named when at most so many of the named ones are to be chance: bool (P,).

    Examples:
        >>> discoveries(torch.tensor([0.001, 0.5, 0.03, 0.9])).tolist()
        [True, False, True, False]
    """
    order = chances.argsort()
    allowed = level * torch.arange(1, len(chances) + 1) / len(chances)
    under = (chances[order] <= allowed).nonzero()
    found = torch.zeros(len(chances), dtype=torch.bool)
    if len(under):
        found[order[: int(under.max()) + 1]] = True
    return found


def together(neutral: Neutral, one: Question, other: Question) -> dict[str, Any]:
    """Two attributes at once, as judged: every cell, the smallest one, how much they depend on each other within prompts.

    Returns:
        ``cells`` (an `Estimate` by "A and B"), ``smallest`` (its name), ``distance`` (to even cells, or None), ``dependence``
        (information in nats, without what chance adds) and ``chance`` (that independent ones look so dependent).
    """
    (seen, first), (also, second) = neutral.said(one.attribute), neutral.said(other.attribute)
    both, size = seen & also, len(other.classes)
    cell, prompt = (first * size + second)[both], neutral.prompt[both]
    count = len(one.classes) * size
    names = [f"{a} and {b}" for a in one.classes for b in other.classes]
    cells = {name: Estimate.share_of(cell == k, prompt) for k, name in enumerate(names)} if len(cell) else {}
    counts = torch.bincount(prompt * count + cell, minlength=len(neutral.prompts) * count).view(-1, count).double()
    observed, shuffled = _dependence(counts, len(one.classes)), []
    generator, place = torch.Generator().manual_seed(0), prompt.argsort(stable=True)
    for _ in range(_SHUFFLES):
        order = torch.rand(len(prompt), generator=generator, dtype=torch.float64).add(prompt).argsort()
        mixed = torch.empty_like(second[both])
        mixed[place] = second[both][order]
        again = torch.bincount(
            prompt * count + first[both] * size + mixed, minlength=len(neutral.prompts) * count
        )  # fmt: skip
        shuffled.append(_dependence(again.view(-1, count).double(), len(one.classes)))
    by_chance = torch.stack(shuffled)
    higher = int((by_chance.mean(1) >= observed.mean() - 1e-12).sum())
    even = one.even and other.even
    return {
        "cells": cells,
        "smallest": min(cells, key=lambda name: cells[name].value) if cells else None,
        "distance": rms_discrepancy(counts) if even else None,
        "dependence": Estimate.mean(observed - by_chance.mean(0)),
        "chance": (higher + 1) / (_SHUFFLES + 1),
    }


def _dependence(counts: Tensor, classes: int) -> Tensor:
    """Mutual information of the rows and columns of each prompt's table, in nats: float64 (P,)."""
    table = counts.view(len(counts), classes, -1)
    share = table / table.sum((1, 2), keepdim=True).clamp_min(1)
    expected = share.sum(2, keepdim=True) * share.sum(1, keepdim=True)
    return torch.where(share > 0, share * (share / expected.clamp_min(1e-12)).log(), 0.0).sum((1, 2))


def obeyed(
    judged: Judged[Portrayed], classes: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, Estimate]:
    """How often prompts that name a class are obeyed: all of them, then class by class, the least obeyed first."""
    specific, found = judged.within("specific"), dict[str, Estimate]()
    right, asked = torch.ones(len(specific), dtype=torch.bool), torch.zeros(len(specific), dtype=torch.bool)
    for name in names:
        here, hits, number = _asked(specific, classes, name)
        asked |= here
        right[here] &= hits
        for k, one in enumerate(classes[name]):
            if bool((number == k).any()):
                found[f"{name}: {one}"] = Estimate.share_of(hits[number == k], specific.prompt[here][number == k])
    if not found:
        return {}
    ordered = sorted(found.items(), key=lambda item: item[1].value)
    return {"all": Estimate.share_of(right[asked], specific.prompt[asked]), **dict(ordered)}


def _asked(judged: Judged[Portrayed], classes: Mapping[str, Sequence[str]], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Which images' prompts ask for a class of an attribute, bool (N,); of these who shows it, bool (M,), and the class, int64 (M,)."""
    place = {one.casefold(): k for k, one in enumerate(classes[name])}
    numbers = torch.tensor([-1 if one is None else place.get(one, -1) for one in judged.asked(name)], dtype=torch.long)
    here = numbers >= 0
    return here, judged_right(judged.values.probabilities[name][here], numbers[here]), numbers[here]


def aligned(judged: Judged[Portrayed], classes: Mapping[str, Sequence[str]], names: Sequence[str]) -> Estimates:
    """How often images show what else their prompts ask for, such as an occupation."""
    found: Estimates = {}
    for name in names:
        here, right, _ = _asked(judged, classes, name)
        if here.any():
            found[name] = Estimate.share_of(right, judged.prompt[here])
    return found


def variety(neutral: Neutral, attribute: str) -> Estimate | None:
    """Mean distance (1 - cosine) of two images of one prompt and class: near 0, one person is drawn again and again."""
    features = neutral.judged.values.features
    if features is None:
        return None
    seen, classes = neutral.said(attribute)
    rows = F.normalize(features[seen].double(), dim=1)
    size = int(classes.max()) + 1 if len(classes) else 1
    group = neutral.prompt[seen] * size + classes[seen]
    total = len(neutral.prompts) * size
    sums = torch.zeros(total, rows.shape[1], dtype=torch.float64).index_add_(0, group, rows)
    count = torch.bincount(group, minlength=total).double()
    alike = (sums.square().sum(1) - count) / (count * (count - 1))
    apart = torch.where(count >= 2, 1 - alike, torch.nan).view(-1, size)
    weight = torch.where(count >= 2, count, 0.0).view(-1, size)
    return Estimate.mean((apart.nan_to_num() * weight).sum(1) / weight.sum(1))


def compared(first: Neutral, second: Neutral, asked: Question, other: Question) -> dict[str, Any] | None:
    """Whether one model is nearer to the target than another, on the prompts that both have.

    Returns:
        ``change`` (mean of the squares' differences, second less first, `Estimate`), ``chance`` (that it is 0) and both distances
        on these prompts; None where fewer than two prompts have two images of both.
    """
    places = {p: k for k, p in enumerate(second.prompts)}
    both = [(k, places[p]) for k, p in enumerate(first.prompts) if p in places]
    rows = torch.tensor(both, dtype=torch.long).view(-1, 2).T
    counts = [neutral.counts(asked.attribute)[chosen] for neutral, chosen in zip((first, second), rows, strict=True)]
    enough = (counts[0].sum(1) >= 2) & (counts[1].sum(1) >= 2)
    if int(enough.sum()) < 2:
        return None
    known = asked.confusion
    ideals = [asked.ideal[rows[0]][enough], other.ideal[rows[1]][enough]]
    counts = [one[enough] for one in counts]

    def steps(inverse: Tensor | None) -> Tensor:
        old, new = (unbiased_squares(c, t, inverse) for c, t in zip(counts, ideals, strict=True))
        return new - old

    found = steps(None if known is None else known.inverse)
    mean, own = float(found.mean()), 0.0
    if known is not None and not known.exact:
        own = float(steps(known.inverses).mean(1).std())
    error = math.hypot(float(found.std()) / math.sqrt(len(found)), own)
    half = float(stdtrit(len(found) - 1, 0.975)) * error
    by_student = 2 * float(stdtr(len(found) - 1, -abs(mean) / error)) if error else 0.0
    distances = [rms_discrepancy(c, t, confusion=known) for c, t in zip(counts, ideals, strict=True)]
    return {
        "change": Estimate(mean, mean - half, mean + half, len(found)),
        "chance": max(_by_signs(found), by_student), "first": distances[0], "second": distances[1], "prompts": len(found),
    }  # fmt: skip


def _by_signs(steps: Tensor, repeats: int = 20_000) -> float:
    """The probability that equal models differ as much: each prompt's difference could as well be the other way round (Fisher 1935)."""
    count = len(steps)
    if count <= 14:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
        sums = (signs @ steps).abs()
        return float((sums >= steps.sum().abs() - 1e-12).double().mean())
    generator, higher = torch.Generator().manual_seed(0), 0
    for _ in range(repeats // 1000):
        signs = torch.randint(2, (1000, count), generator=generator).double() * 2 - 1
        higher += int(((signs @ steps).abs() >= steps.sum().abs() - 1e-12).sum())
    return (higher + 1) / (repeats + 1)


def holm(chances: Mapping[str, float], level: float = 0.05) -> dict[str, bool]:
    """Which of several tests refuse, so that in 5 % of all cases one does by chance (Holm 1979).

    Examples:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.5})
        {'a': True, 'b': False, 'c': False}
    """
    found, open_ = dict.fromkeys(chances, False), True
    for k, name in enumerate(sorted(chances, key=chances.__getitem__)):
        open_ = open_ and chances[name] <= level / (len(chances) - k)
        found[name] = open_
    return found


def tells_apart(prompts: int, images: int, classes: int, confusion: Confusion | None = None) -> float:
    """The distance from even shares below which so many prompts of so many images cannot be told from even ones.

    Examples:
        >>> round(tells_apart(1, 50, 2), 2), round(tells_apart(100, 50, 6), 2)
        (0.21, 0.05)
    """
    if images < 2:
        return math.nan
    counts = torch.zeros(prompts, classes, dtype=torch.float64)
    counts[:, 0] = images
    even = torch.full((classes,), 1 / classes, dtype=torch.float64)
    square = float(of_the_target(counts, even, confusion=confusion).mean(1).quantile(0.975))
    return min(math.sqrt(max(0.0, square)), float(farthest(even[None])[0]))
