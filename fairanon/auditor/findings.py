"""What judgements add up to: how far each prompt is from the target, who is missing, who is obeyed, what goes together.

Shapes: P prompts, K classes of an attribute. Every formula is in docs/audit.md, with how often it holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

from fairanon.auditor.tally import NEUTRAL, Tally
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

FALSE_DISCOVERIES = 0.1
"""Share of the named prompts that are named by chance, at most (Benjamini and Hochberg 1995)."""
_SHUFFLES = (20, 500)
"""Random tables of each prompt, at least and at most."""
_TABLES = 1_000_000
"""Random tables of all prompts, about."""
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
    """The prompts that name no group, and have images.

    Args:
        tally: Of all prompts.
    """

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        wanted = [k for k, row in enumerate(tally.rows) if row.set in NEUTRAL and tally.images[k] > 0]
        self.rows = torch.tensor(wanted, dtype=torch.long)
        """int64 (P,), of the table."""
        self.prompts = [tally.rows[k].prompt for k in wanted]
        self.images = tally.images[self.rows]
        """float64 (P,)."""

    def counts(self, attribute: str) -> Tensor:
        """float64 (P, K), judged images of each class."""
        return self.tally.counts[attribute][self.rows]


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
        "per_prompt": _between(discrepancy(shares, ideal), float(farthest(ideal).mean())),
        "pooled": _pooled(some, ideal),
        "total_variation": _between((shares - ideal).abs().sum(1) / 2, 1.0),
        "divergence": _between(_divergence(some, ideal), math.inf),
        "gap": _between(_gap(shares), 1.0),
        "worst": None,
        "floor": None,
        "most": Estimate.exact(float(farthest(ideal).square().mean().sqrt()), len(ideal)) if len(ideal) else None,
    }
    if len(some):
        numbers["worst"] = Estimate(float(discrepancy(shares, ideal).max()), None, None, len(some))
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


def _between(values: Tensor, most: float) -> Estimate:
    """The mean over prompts (P,), whose interval does not leave what there can be."""
    estimate = Estimate.mean(values)
    if math.isfinite(most):
        estimate = estimate.with_the_unseen(len(values), most)
    if estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(0.0, estimate.low), high=min(most, estimate.high))


def _pooled(counts: Tensor, ideal: Tensor, repeats: int = 1000) -> Estimate | None:
    """All images together, as PopAlign's tables have it, with a bootstrap over prompts; a target by prompts has no such number."""
    if not len(counts) or not bool((ideal == ideal[0]).all()):
        return None
    weights = torch.randint(len(counts), (repeats, len(counts)), generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([torch.bincount(row, minlength=len(counts)) for row in weights]).double() @ counts
    distances = discrepancy(drawn / drawn.sum(1, keepdim=True), ideal[0])
    share = counts.sum(0) / counts.sum()
    estimate = Estimate.bootstrap(float(discrepancy(share, ideal[0])), distances, int(counts.sum()))
    return estimate.with_the_unseen(len(counts) if len(counts) > 1 else int(counts.sum()), float(farthest(ideal[:1])))


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
    tally, rows, images = neutral.tally, neutral.rows, neutral.images
    unsure = tally.unsure[asked.attribute][rows]
    lacking = {"blank": tally.blank[rows], "no_face": tally.absent[asked.attribute][rows], "unsure": unsure.sum(1)}
    shares = {kind: Estimate.share_by(values, images) for kind, values in lacking.items()}
    sure = neutral.counts(asked.attribute) - unsure
    lost = images - sure.sum(1)
    several = sure.sum(1) + lost >= 2
    if not several.any():
        return dict(shares), [None, None]
    sure, lost, ideal = sure[several], lost[several], asked.ideal[several]
    heaped = unbiased_squares(sure[:, None] + torch.diag_embed(lost[:, None].expand(-1, sure.shape[1])), ideal[:, None])
    evened = unbiased_squares(_evened(sure, lost, ideal), ideal)
    squares = evened.minimum(heaped.amin(1)), heaped.amax(1)
    return dict(shares), [math.sqrt(max(0.0, float(values.mean()))) for values in squares]


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
    named = discoveries(chances)
    rows = []
    for p, prompt in enumerate(neutral.prompts):
        seen = int(counts[p].sum())
        shares = corrected_shares(counts[p], asked.confusion) if seen else []
        rows.append({
            "prompt": prompt, "images": int(neutral.images[p]), "judged": seen, "counts": counts[p].long().tolist(), "shares": shares,
            "target": asked.ideal[p].tolist(), "square": float(squares[p]), "chance": float(chances[p]), "named": bool(named[p]),
        })  # fmt: skip
    return rows


def _chances(counts: Tensor, ideal: Tensor, squares: Tensor, confusion: Confusion | None) -> Tensor:
    """The probability that a prompt that draws from its target is as far from it: Monte Carlo, float64 (P,).

    Where the smallest one that so many draws can show would not be enough to name a prompt among so many, more are drawn.
    """

    def of(rows: Tensor, repeats: int) -> Tensor:
        fair = of_the_target(counts[rows], ideal[rows], confusion=confusion, repeats=repeats)
        return ((fair >= squares[rows] - 1e-12).sum(0).double() + 1) / (repeats + 1)

    chances = torch.cat([of(rows, _REPEATS[0]) for rows in torch.arange(len(counts)).split(1000)])
    extreme = (chances <= 1 / (_REPEATS[0] + 1)).nonzero().flatten()
    if 0 < len(extreme) < len(counts) / (_REPEATS[0] * FALSE_DISCOVERIES):
        for rows in extreme.split(10):
            chances[rows] = of(rows, _REPEATS[1])
    return chances


def discoveries(chances: Tensor, level: float = FALSE_DISCOVERIES) -> Tensor:
    """Which of several tests may be named when at most so many of the named ones are to be chance: bool (P,).

    Examples:
        >>> discoveries(torch.tensor([0.001, 0.5, 0.03, 0.9])).tolist()
        [True, False, True, False]
    """
    order = chances.argsort()
    allowed = level * torch.arange(1, len(chances) + 1) / len(chances)
    under = (chances[order] <= allowed).nonzero()
    named = torch.zeros(len(chances), dtype=torch.bool)
    if len(under):
        named[order[: int(under.max()) + 1]] = True
    return named


def together(neutral: Neutral, asked: Question, other: Question) -> dict[str, Any]:
    """Two attributes at once, as judged: every cell, the smallest one, how much they depend on each other within prompts.

    Returns:
        ``cells`` (an `Estimate` by "A and B"), ``smallest`` (its name), ``distance`` (to even cells, or None), ``dependence``
        (information in nats, without what chance adds) and ``chance`` (that independent ones look so dependent).
    """
    rows = len(asked.classes)
    counts = neutral.tally.joint[asked.attribute, other.attribute][neutral.rows]
    judged = counts.sum(1)
    names = [f"{a} and {b}" for a in asked.classes for b in other.classes]
    cells = {}
    if judged.sum():
        cells = {name: Estimate.share_by(counts[:, k], judged) for k, name in enumerate(names)}
    observed, shuffles = _dependence(counts, rows), min(max(_TABLES // max(1, len(counts)), _SHUFFLES[0]), _SHUFFLES[1])
    generator, total, means = np.random.default_rng(0), torch.zeros_like(observed), []
    for _ in range(shuffles):
        one_more = _dependence(independent(counts, rows, generator), rows)
        total += one_more
        means.append(float(one_more.mean()))
    by_chance = torch.tensor(means, dtype=torch.float64)
    chance = (int((by_chance >= observed.mean() - 1e-12).sum()) + 1) / (shuffles + 1)
    if shuffles < _SHUFFLES[1]:  # of so many prompts: their mean is normal
        spread = float(by_chance.std()) * math.sqrt(1 + 1 / shuffles)
        apart = float(observed.mean() - by_chance.mean())
        chance = float(stdtr(shuffles - 1, -apart / spread)) if spread else float(apart <= 0)
    even = asked.even and other.even
    return {
        "cells": cells,
        "smallest": min(cells, key=lambda name: cells[name].value) if cells else None,
        "distance": rms_discrepancy(counts) if even else None,
        "dependence": Estimate.mean(observed - total / shuffles),
        "chance": chance,
    }


def independent(counts: Tensor, rows: int, generator: np.random.Generator) -> Tensor:
    """Random tables with the sums of rows and columns that each prompt's has, as shuffling one attribute within it gives them.

    Args:
        counts: float64 (P, K * L), of K rows.
        rows: K.
        generator: Draws.

    Returns:
        float64 (P, K * L).
    """
    table = counts.view(len(counts), rows, -1).long().numpy()
    left, shuffled = table.sum(1), np.zeros_like(table)  # of each column: what has no row yet
    for k in range(rows - 1):
        wanted, rest = table[:, k].sum(1), left.sum(1)
        for column in range(left.shape[1] - 1):
            rest = rest - left[:, column]
            shuffled[:, k, column] = generator.hypergeometric(left[:, column], rest, wanted)
            wanted = wanted - shuffled[:, k, column]
        shuffled[:, k, -1] = wanted
        left = left - shuffled[:, k]
    shuffled[:, -1] = left
    return torch.from_numpy(shuffled.reshape(len(counts), -1)).double()


def _dependence(counts: Tensor, classes: int) -> Tensor:
    """Mutual information of the rows and columns of each prompt's table, in nats: float64 (P,)."""
    table = counts.view(len(counts), classes, -1)
    share = table / table.sum((1, 2), keepdim=True).clamp_min(1)
    expected = share.sum(2, keepdim=True) * share.sum(1, keepdim=True)
    return torch.where(share > 0, share * (share / expected.clamp_min(1e-12)).log(), 0.0).sum((1, 2))


def obeyed(tally: Tally) -> dict[str, Estimate]:
    """How often prompts that name a class are obeyed: all of them, then class by class, the least obeyed first."""
    estimates, asked = dict[str, Estimate](), torch.zeros(len(tally.rows), dtype=torch.bool)
    for name in tally.names:
        asked |= (tally.asked[name] >= 0) & (tally.images > 0)
        for k, class_name in enumerate(tally.classes[name]):
            rows = (tally.asked[name] == k) & (tally.images > 0)
            if rows.any():
                estimates[f"{name}: {class_name}"] = Estimate.share_by(tally.counts[name][rows, k], tally.images[rows])
    if not estimates:
        return {}
    ordered = sorted(estimates.items(), key=lambda item: item[1].value)
    return {"all": Estimate.share_by(tally.obeyed[asked], tally.images[asked]), **dict(ordered)}


def aligned(tally: Tally) -> Estimates:
    """How often images show what else their prompts ask for, such as an occupation."""
    estimates: Estimates = {}
    for name in tally.classes.keys() - set(tally.names):
        rows = ((tally.asked[name] >= 0) & (tally.images > 0)).nonzero().flatten()
        if len(rows):
            hits = tally.counts[name][rows, tally.asked[name][rows]]
            estimates[name] = Estimate.share_by(hits, tally.images[rows])
    return {name: estimates[name] for name in tally.classes if name in estimates}


def scored(tally: Tally, *others: Tally) -> dict[str, list[Estimate]]:
    """Each scorer's rating of prompts that name no group, the mean of the prompts' means, on the prompts of which all tallies have images.

    Returns:
        By scorer: of each tally; and, of two, how much higher the first one's is.
    """
    tallies, result = (tally, *others), {}
    places = [{row.prompt: k for k, row in enumerate(one.rows) if one.images[k] > 0} for one in tallies]
    shared = [row.prompt for row in tally.rows if row.set in NEUTRAL and all(row.prompt in place for place in places)]
    for name in tally.rated:
        means = []
        for one, place in zip(tallies, places, strict=True):
            rows = torch.tensor([place[prompt] for prompt in shared], dtype=torch.long)
            images, total = one.rated[name][:, rows]
            means.append(total / images)  # NaN of a prompt whose images show nothing
        found = [*means, *([means[0] - means[1]] if len(means) == 2 else [])]
        result[name] = [Estimate.mean(values) for values in found]
    return result


def variety(neutral: Neutral, attribute: str) -> Estimate | None:
    """Mean distance (1 - cosine) of two images of one prompt and class: near 0, one person is drawn again and again."""
    feature_sums = neutral.tally.summed(attribute)
    if feature_sums is None:
        return None
    sums, count = feature_sums[neutral.rows], neutral.counts(attribute)
    alike = (sums.square().sum(2) - count) / (count * (count - 1))
    apart = torch.where(count >= 2, 1 - alike, torch.nan)
    weight = torch.where(count >= 2, count, 0.0)
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
    counts = [table[enough] for table in counts]

    def steps(inverse: Tensor | None) -> Tensor:
        old, new = (unbiased_squares(c, t, inverse) for c, t in zip(counts, ideals, strict=True))
        return new - old

    differences = steps(None if known is None else known.inverse)
    mean, own = float(differences.mean()), 0.0
    if known is not None and not known.exact:
        own = float(steps(known.inverses).mean(1).std())
    error = math.hypot(float(differences.std()) / math.sqrt(len(differences)), own)
    half = float(stdtrit(len(differences) - 1, 0.975)) * error
    by_student = 2 * float(stdtr(len(differences) - 1, -abs(mean) / error)) if error else 0.0
    distances = [rms_discrepancy(c, t, confusion=known) for c, t in zip(counts, ideals, strict=True)]
    return {
        "change": Estimate(mean, mean - half, mean + half, len(differences)),
        "chance": max(_by_signs(differences), by_student), "first": distances[0], "second": distances[1], "prompts": len(differences),
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
    certain, open_ = dict.fromkeys(chances, False), True
    for k, name in enumerate(sorted(chances, key=chances.__getitem__)):
        open_ = open_ and chances[name] <= level / (len(chances) - k)
        certain[name] = open_
    return certain


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
