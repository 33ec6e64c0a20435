"""Numbers with their 95 % intervals; `benchmarks/coverage.py` shows how often each holds the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and what it was measured on.

    Attributes:
        value: The estimate.
        low: Lower end of its interval; None where a single image, pair or person says nothing about others.
        high: Upper end, likewise.
        n: How many images, pairs or prompts it was measured on.
        missing: How many could not be judged.
        draws: As many people, or prompts, as weigh alike, where a share is of several images of each; None: one image each.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    missing: int = 0
    draws: float | None = None

    @classmethod
    def exact(cls, value: float, n: int, missing: int = 0) -> Estimate:
        """A number that has no interval because nothing is drawn, such as the size of a gallery."""
        return cls(value, value, value, n, missing)

    @classmethod
    def share(cls, hits: int, n: int, missing: int = 0) -> Estimate:
        """A share with Wilson's interval (1927).

        Examples:
            >>> found = Estimate.share(8, 10)
            >>> f"{found.value} [{found.low:.3f}, {found.high:.3f}]"
            '0.8 [0.490, 0.943]'
        """
        low, high = wilson(hits, n)
        return cls(hits / n, low, high, n, missing)

    @classmethod
    def share_of(cls, hits: Tensor, whose: Tensor, missing: int = 0) -> Estimate:
        """A share of images of which several show one person, see `effective`.

        Args:
            hits: bool (N,).
            whose: int64 (N,), a number for each person.
            missing: How many could not be judged.

        Examples:
            >>> twice = Estimate.share_of(torch.tensor([True, True, False, False]), torch.tensor([0, 0, 1, 1]))
            >>> f"{twice.value} [{twice.low:.3f}, {twice.high:.3f}] of {twice.n}"
            '0.5 [0.055, 0.945] of 4'
        """
        number = whose.cpu().unique(return_inverse=True)[1]
        estimate = cls.share_by(torch.bincount(number, hits.cpu().double()), torch.bincount(number))
        return replace(estimate, missing=missing)

    @classmethod
    def share_by(cls, hits: Tensor, images: Tensor) -> Estimate:
        """`share_of`, of how many images each person, or prompt, has.

        Args:
            hits: float64 (P,), those of them that count.
            images: float64 (P,), all of them.

        Examples:
            >>> twice = Estimate.share_by(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 2.0]))
            >>> f"{twice.value} [{twice.low:.3f}, {twice.high:.3f}] of {twice.n}"
            '0.5 [0.055, 0.945] of 4'
        """
        there = images > 0
        if not there.any():
            return cls(math.nan, None, None, 0)
        value, error, people = _spread_by(hits[there].double(), images[there].double())
        total = int(images.sum())
        count = _effective(value, error, people, total, 1)
        low, high = wilson(value * count, count)
        return cls(value, low, high, total, draws=people if people < total else None)

    @classmethod
    def mean(cls, values: Tensor, whose: Tensor | None = None) -> Estimate:
        """The mean of values (N,) with Student's interval; those that are NaN are missing.

        Args:
            values: float (N,).
            whose: int64 (N,), a number for each person, where several values are of one: they vary together.

        Examples:
            >>> found = Estimate.mean(torch.tensor([1.0, 2.0, 3.0, torch.nan]))
            >>> f"{found.value} [{found.low:.3f}, {found.high:.3f}] of {found.n}, {found.missing} missing"
            '2.0 [-0.484, 4.484] of 3, 1 missing'
            >>> Estimate.mean(torch.tensor([1.0])).low is None
            True
        """
        values = values.cpu()
        there = ~values.isnan()
        seen, count = values[there].double(), int(there.sum())
        groups = torch.arange(count) if whose is None else whose.cpu()[there]
        mean, spread, independent = _spread(seen, groups)
        if independent < 2:
            return cls(mean, None, None, count, len(values) - count)
        half = _student(independent) * spread
        return cls(mean, mean - half, mean + half, count, len(values) - count)

    @classmethod
    def skewed(cls, values: Tensor, whose: Tensor, missing: int = 0) -> Estimate:
        """The mean of values in [0, 1] of which a few are large, such as precisions: Wilson's interval of as many draws.

        Args:
            values: float (N,) in [0, 1], without NaN.
            whose: int64 (N,), a number for each person.
            missing: How many of these could not be judged.

        Examples:
            >>> found = Estimate.skewed(torch.tensor([1.0] + [0.0] * 99), torch.arange(100))
            >>> f"{found.value:.2f} [{found.low:.3f}, {found.high:.3f}]"
            '0.01 [0.002, 0.054]'
        """
        if not len(values):
            return cls(math.nan, None, None, 0, missing)
        mean, spread, people = _spread(values.double().cpu(), whose.cpu())
        count = _effective(mean, spread, people, len(values), 4)
        low, high = wilson(mean * count, count)
        return cls(mean, low, high, len(values), missing, people if people < len(values) else None)

    @classmethod
    def bootstrap(cls, value: float, draws: Tensor, n: int, missing: int = 0) -> Estimate:
        """A non-negative number with its interval from bootstrap draws (R,), recentred on it.

        A resample adds the noise of finite samples a second time, so that the draws of a discrepancy lie too high by
        about as much as the estimate itself does; recentring removes that shift.
        """
        centred = (draws.double() - draws.double().mean() + value).clamp_min(0)
        low, high = torch.quantile(centred, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(value, min(low, value), max(high, value), n, missing)

    def with_the_unseen(self, draws: int, most: float) -> Estimate:
        """A mean of ``draws`` values in [0, ``most``]; where all were alike, as wide as a share of so many others that were not drawn.

        Prompts that all show one class are no proof: where ten do, every fourth of all prompts may still be fair.

        Examples:
            >>> found = Estimate.exact(0.7, 500).with_the_unseen(10, 0.7)
            >>> f"{found.value} [{found.low:.3f}, {found.high:.3f}]"
            '0.7 [0.506, 0.700]'
        """
        if self.low is None or self.high is None or self.high - self.low > 1e-9:
            return self
        seen = wilson(draws, draws)[0]
        low, high = seen * self.value, seen * self.value + (1 - seen) * most
        return replace(self, low=min(low, self.value), high=max(high, self.value))

    @classmethod
    def quotient(cls, above: Tensor, below: Tensor, value: float, n: int, missing: int = 0) -> Estimate:
        """One number divided by another with its interval from paired bootstrap draws (R,) of both.

        Where the second one is 0 in some draws, the quotient has no upper end.
        """
        quotients = above.double() / below.double()
        if bool((below > 0).all()):
            return cls.bootstrap(value, quotients, n, missing)
        low = float(torch.quantile(quotients.nan_to_num(0.0), 0.025))
        return cls(value, min(low, value), None, n, missing)


Estimates = dict[str, Estimate | None]
"""By the key in metrics.json; None where the judge is absent."""


def as_json(estimates: Mapping[str, Estimate | None]) -> dict[str, dict[str, float | None] | None]:
    """Estimates as metrics.json has them; what is not a number is None, and ``draws`` is there where it is not n.

    Examples:
        >>> as_json({"a": Estimate(math.nan, 0.0, 1.0, 3), "b": Estimate(0.5, 0.0, math.inf, 3)})["b"]["high"] is None
        True
    """
    plain: dict[str, dict[str, float | None] | None] = {}
    for key, estimate in estimates.items():
        fields = None if estimate is None or not math.isfinite(estimate.value) else _fields(estimate)
        plain[key] = fields and {name: v if v is None or math.isfinite(v) else None for name, v in fields.items()}
    return plain


def plain(value: Any) -> Any:
    """Estimates at any depth as dictionaries, and what is not a number as None: what JSON takes.

    Examples:
        >>> plain({"a": [Estimate(0.5, None, math.inf, 3)]})
        {'a': [{'value': 0.5, 'low': None, 'high': None, 'n': 3, 'missing': 0}]}
    """
    if isinstance(value, Estimate):
        return plain(_fields(value))
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(estimate: Estimate) -> dict[str, Any]:
    fields = asdict(estimate)
    return fields if estimate.draws is not None else {name: fields[name] for name in fields if name != "draws"}


def wilson(hits: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), and of what varies like one of ``n`` independent draws."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def effective(values: Tensor, whose: Tensor, most: float = 1) -> float:
    """As many independent hits or misses would vary as much as the mean of values (N,) in [0, 1] does.

    Images of one person vary together (Kish's design effect), and how much so a few people say only roughly: their number
    counts as Student's quantile says, and a quarter of a person more is taken to be wholly otherwise. At 0 and 1, where nothing
    varies, people count, not images; where one has many more images than others, as many as weigh alike (`_spread_by`).

    Args:
        values: float64 (N,).
        whose: int64 (N,), a number for each person.
        most: So many times N at most: means of values between 0 and 1 may vary less than hits and misses.

    Examples:
        >>> round(effective(torch.tensor([1.0, 0.0] * 50, dtype=torch.float64), torch.arange(100)), 9)
        100.0
    """
    return _effective(*_spread(values.cpu(), whose.cpu()), len(values), most)


def _effective(mean: float, spread: float, people: float, images: int, most: float) -> float:
    """`effective`, of the mean's standard error."""
    variance = spread**2
    if people < 2 or not 0 < mean < 1 or variance < 1e-12 * mean * (1 - mean):
        return people
    if people < images:
        softer = (mean * people + 1) / (people + 2)
        variance += 0.25 * softer * (1 - softer) / people**2
    count = min(mean * (1 - mean) / variance * people / (people - 1), most * images)
    if people < images:
        count *= (1.96 / _student(people)) ** 2
    return max(count, 1.0)


def _student(people: float) -> float:
    """Student's quantile for means of so many."""
    return float(stdtrit(people - 1, 0.975))


def _spread(values: Tensor, whose: Tensor) -> tuple[float, float, float]:
    """`_spread_by`, of values float64 (N,) and whose each one is."""
    if not len(values):
        return math.nan, math.nan, 0.0
    _, number = whose.unique(return_inverse=True)
    images = torch.bincount(number).double()
    return _spread_by(torch.zeros_like(images).index_add(0, number, values), images)


def _spread_by(sums: Tensor, images: Tensor) -> tuple[float, float, float]:
    """The mean of values, its standard error where those of one person vary together, and as many people as weigh alike.

    The error is the jackknife's, each person left out once: the residual of one who has most of the images hides that the mean
    is hers. People count by their weights (Kish 1965), for the same reason; and where five have most of the images, by how
    many terms the error itself rests on (Satterthwaite 1946): three who happen to be alike hide how much people differ.

    Args:
        sums: float64 (P,), of each person's values.
        images: float64 (P,), how many they are.
    """
    total, people = images.sum(), len(images)
    mean = sums.sum() / total
    if people < 2:
        return float(mean), math.nan, float(people)
    left_out = (sums - images * mean) / (total - images)
    error = (left_out.square().sum() * (people - 1) / people).sqrt()
    squares = images.square()
    kish = float(total**2 / squares.sum())
    if float(images.topk(min(_FEW, people)).values.sum()) <= float(total) / 2:
        return float(mean), float(error), kish
    terms = float(squares.sum() ** 2 / squares.square().sum())
    return float(mean), float(error), min(kish, max(terms, 3.0))


_FEW = 5
"""People who, if they have more than half of the images, count instead of all."""


def ratio(above: Estimate, below: Estimate) -> Estimate | None:
    """One share divided by another, both of them estimates: Donner and Zou's interval (2012), made of theirs.

    Args:
        above: In [0, 1].
        below: Measured on other images.

    Returns:
        None where the second share is 0; an interval without an upper end is none.

    Examples:
        >>> found = ratio(Estimate.share(30, 100), Estimate.share(60, 100))
        >>> f"{found.value} [{found.low:.2f}, {found.high:.2f}]"
        '0.5 [0.35, 0.70]'
    """
    a, b = above.value, below.value
    if not b:
        return None
    if above.low is None or above.high is None or not below.low or below.high is None:
        return Estimate(a / b, None, None, above.n, above.missing)

    def bound(end: float, other: float, sign: int) -> float:
        divisor = other * (2 * b - other)
        root = math.sqrt(max(0.0, (a * b) ** 2 - end * (2 * a - end) * divisor))
        return (a * b + sign * root) / divisor if divisor else end * (2 * a - end) / (2 * a * b)

    low, high = bound(above.low, below.high, -1), bound(above.high, below.low, 1)
    return Estimate(a / b, max(0.0, low), high, above.n, above.missing)


@dataclass
class Spread:
    """How much the shares of several groups differ.

    Attributes:
        gap: The largest less the smallest, less what chance adds.
        worst: The smallest.
        chance: The probability that groups dealt at random differ as much.
        pair: Numbers of two groups of which the first certainly has the smaller share; None if no two can be told apart.
        apart: How much these two differ.
    """

    gap: Estimate
    worst: Estimate
    chance: float
    pair: tuple[int, int] | None = None
    apart: Estimate | None = None


def spread_of_shares(hits: Sequence[Tensor], whose: Sequence[Tensor]) -> Spread | None:
    """How much the shares of several groups differ, and whether that may be chance.

    The largest of several estimates is too large and the smallest too small: both are drawn to the middle by the root of
    that part of the variance between groups that chance does not explain. The gap's interval is the largest of
    Newcombe's (1998) for the differences of every two, with the studentized range's quantile in place of 1.96; that of the
    worst group is made of Wilson's at the level of as many groups. Where a permutation test does not refuse at 5 % that all
    groups are alike, whether they differ cannot be told, and the gap begins at 0.

    Args:
        hits: Of each group, bool (N_g,).
        whose: int64 (N_g,), who is shown; a person is in one group.

    Returns:
        None for fewer than two groups.

    Examples:
        >>> ninety, fifty = torch.arange(100) < 90, torch.arange(100) < 50
        >>> found = spread_of_shares([ninety, fifty], [torch.arange(100), torch.arange(100)])
        >>> f"{found.gap.value:.2f} [{found.gap.low:.2f}, {found.gap.high:.2f}], {found.chance:.4f}, {found.pair}"
        '0.40 [0.28, 0.51], 0.0005, (1, 0)'
    """
    from scipy.stats import studentized_range  # a second

    groups = len(hits)
    if groups < 2:
        return None
    values = [float(group_hits.double().mean()) for group_hits in hits]
    sizes = [effective(group_hits.double(), who) for group_hits, who in zip(hits, whose, strict=True)]
    z = float(studentized_range.ppf(0.95, groups, math.inf)) / 2**0.5
    bounds = [wilson(p * n, n, z) for p, n in zip(values, sizes, strict=True)]
    low, high, pair, apart = 0.0, 0.0, None, None
    for j, (p, (below, above)) in enumerate(zip(values, bounds, strict=True)):
        for k, (q, (under, over)) in enumerate(zip(values, bounds, strict=True)):
            least = p - q - math.hypot(p - below, over - q)
            most = p - q + math.hypot(above - p, q - under)
            if least > low:
                low, pair, apart = least, (k, j), Estimate(p - q, least, most, len(hits[k]) + len(hits[j]))
            high = max(high, most)
    chance = _homogeneous(hits, whose)
    if chance >= _REFUSED:
        low, pair, apart = 0.0, None, None
    between = float(torch.tensor(values).double().var())
    softer = [((p * n + 1) / (n + 2), n) for p, n in zip(values, sizes, strict=True)]  # at 0 and 1 chance adds, too
    within = sum(p * (1 - p) / n for p, n in softer) / groups
    left = math.sqrt(max(0.0, 1 - within / between)) if between else 0.0
    total = sum(map(len, hits))
    gap = min(max((max(values) - min(values)) * left, low), high)
    certain = float(ndtri(1 - 0.025 / groups))
    ends = [wilson(p * n, n, certain) for p, n in zip(values, sizes, strict=True)]
    least, most = min(end[0] for end in ends), min(end[1] for end in ends)
    middle = sum(values) / groups
    worst = min(max(middle - (middle - min(values)) * left, least), most)
    return Spread(Estimate(gap, low, high, total), Estimate(worst, least, most, total), chance, pair, apart)


_REFUSED = 0.05
_DEALT = 1999


def _homogeneous(hits: Sequence[Tensor], whose: Sequence[Tensor]) -> float:
    """The probability that groups dealt at random differ as much.

    Where people have several images each, two tests have to refuse: one deals the people to groups of the same sizes, which says
    too much where the albums of one group are longer than those of another; one deals as many independent images as
    the groups' have the worth of (`effective`), which says too much where the images of one person are nearly all alike.
    """
    people = [group.cpu().unique(return_inverse=True)[1] for group in whose]
    images = [torch.bincount(who).double() for who in people]
    sums = [torch.bincount(who, group.cpu().double()) for who, group in zip(people, hits, strict=True)]
    if all(bool((group == 1).all()) for group in images):
        return _dealt(torch.tensor([group.sum() for group in sums]), torch.tensor([len(group) for group in images]))
    worth = torch.tensor([effective(group.double(), who) for group, who in zip(hits, whose, strict=True)]).round()
    shares = torch.tensor([group.sum() / many.sum() for group, many in zip(sums, images, strict=True)])
    return max(_dealt_people(sums, images), _dealt((shares * worth).round(), worth))


def _apart(hits: Tensor, sizes: Tensor, share: Tensor) -> Tensor:
    """How far the shares of groups (..., G) are from that of all, squared, weighted and summed."""
    return ((hits - sizes * share) ** 2 / sizes).sum(-1)


def _dealt(hits: Tensor, sizes: Tensor) -> float:
    """`_homogeneous`, of independent images: hits (G,) of as many as sizes (G,)."""
    generator = np.random.default_rng(0)
    drawn = generator.multivariate_hypergeometric(sizes.long().tolist(), int(hits.sum()), _DEALT)
    share = hits.sum() / sizes.sum()
    return _as_far(_apart(torch.from_numpy(drawn).double(), sizes, share), _apart(hits, sizes, share))


def _dealt_people(sums: Sequence[Tensor], images: Sequence[Tensor]) -> float:
    """`_homogeneous`, of people: of each group, hits (P,) of as many images as each has (P,)."""
    parts = torch.stack([torch.cat(list(sums)), torch.cat(list(images))])
    groups = torch.arange(len(sums)).repeat_interleave(torch.tensor([len(hits) for hits in sums]))
    deals = torch.Generator().manual_seed(0)

    def dealt(order: Tensor) -> Tensor:
        return torch.zeros(2, len(sums), dtype=torch.float64).index_add_(1, groups, parts[:, order])

    share = parts[0].sum() / parts[1].sum()
    drawn = torch.stack([dealt(torch.randperm(len(groups), generator=deals)) for _ in range(_DEALT)], 1)
    observed = dealt(torch.arange(len(groups)))
    return _as_far(_apart(drawn[0], drawn[1], share), _apart(observed[0], observed[1], share))


def _as_far(dealt: Tensor, observed: Tensor) -> float:
    """The p-value of a permutation test."""
    return (int((dealt >= observed * (1 - 1e-9)).sum()) + 1) / (len(dealt) + 1)
