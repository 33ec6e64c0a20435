"""Fairness discrepancy of a population (Choi et al. 2020; PopAlign, equation 11).

Shapes: P prompts, n images of a prompt, K classes. The class list is fixed: a class that never appears counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional as F

from fairanon.metrics.functional.confusion import Confusion
from fairanon.metrics.functional.estimates import Estimate

_log = logging.getLogger(__name__)
_DRAWS = 2000


def discrepancy(share: Tensor, target: Tensor | None = None) -> Tensor:
    """|| share - target ||_2 over the last dimension.

    Args:
        share: float (..., K), shares of the classes.
        target: float (K,), the ideal shares; None is uniform.

    Returns:
        float (...), 0 (as asked) to sqrt(1 - 1/K) for a uniform target.

    Examples:
        >>> round(discrepancy(torch.tensor([0.8, 0.2])).item(), 4)
        0.4243
    """
    ideal = torch.full((share.shape[-1],), 1 / share.shape[-1]) if target is None else target
    return (share - ideal.to(share)).norm(dim=-1)


def rms_discrepancy(
    counts: Tensor, target: Tensor | None = None, seed: int = 0, confusion: Confusion | None = None
) -> Estimate | None:
    """Discrepancy without what finite samples, and a judge's errors, add: the root of the mean unbiased square over prompts.

    For a prompt with shares q of n images, s = |q - t|^2 - (1 - |q|^2) / (n - 1) has the square of the true discrepancy as
    its mean. The value is sqrt(max(0, mean s)). A mean of roots that are clipped one by one, in its place, is above 0
    for a fair model, and the more surely, the more prompts there are. The interval is Student's over the prompts' s, bent for
    their skewness (Hall 1992) and at least as wide as few images make it; it speaks of all prompts of the kind, of which
    these are a sample. It begins at 0 unless a Monte Carlo test refuses, at 2.5 %, that all prompts draw from the target, and
    reaches at least as high as models that do come by chance.

    Args:
        counts: int64 or float (P, K), judged images of each class; prompts of a single image are left out.
        target: As in `discrepancy`; or float (P, K), one for each prompt.
        seed: Of the test's draws.
        confusion: The judge's: true shares are taken for said ones, and its uncertainty joins the interval; None: no errors.

    Returns:
        None if no prompt has two images; an interval without ends for a single one.

    Examples:
        >>> found = rms_discrepancy(torch.tensor([[45, 5], [5, 45], [40, 10], [10, 40]]))
        >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        '0.495 [0.337, 0.613]'
    """
    several = counts.sum(1) >= 2
    counts = counts[several].double()
    if not len(counts):
        return None
    ideal = torch.full((counts.shape[1],), 1 / counts.shape[1]) if target is None else target
    ideal = ideal[several] if ideal.dim() > 1 else ideal
    inverse = None if confusion is None else confusion.inverse
    squares = unbiased_squares(counts, ideal, inverse)
    limit = float(farthest(ideal.expand(len(counts), -1)).square().mean())
    value, images = min(float(squares.mean()), limit), int(counts.sum())
    if len(counts) < 2:
        return Estimate(math.sqrt(max(0.0, value)), None, None, images)
    low, high = _of_the_mean(squares)
    images_alone = _of_the_images(counts, ideal, inverse)  # prompts that happen to be alike still have few images
    low, high = min(low, value - images_alone), max(high, value + images_alone)
    fair = of_the_target(counts, ideal, seed, confusion).mean(1)
    refused = (int((fair >= value - 1e-12).sum()) + 1) / (len(fair) + 1) < 0.025
    judges = 1.96 * of_the_judge(counts, ideal, confusion)
    low = math.sqrt(max(0.0, value - math.hypot(value - low, judges))) if refused else 0.0
    high = max(
        value + math.hypot(high - value, judges), float(fair.quantile(0.975)), 0.0
    )  # prompts that happen to be alike are no proof
    return Estimate(math.sqrt(max(0.0, value)), low, math.sqrt(min(high, limit)), images)


def farthest(ideal: Tensor) -> Tensor:
    """The largest distance from each target that there is, that of one class alone: float64 (P,) of (P, K)."""
    ideal = ideal.double()
    return (ideal.square().sum(-1, keepdim=True) - 2 * ideal + 1).amax(-1).clamp_min(0).sqrt()


def unbiased_squares(counts: Tensor, ideal: Tensor, inverse: Tensor | None = None) -> Tensor:
    """The square of each prompt's discrepancy, on average over samples.

    Args:
        counts: float64 (..., P, K), at least two images of each prompt.
        ideal: float (K,), the target; or (P, K).
        inverse: float64 (..., K, K), of the judge's confusion; None: no errors.

    Returns:
        float64 (..., P); it may be negative.
    """
    number = counts.sum(-1)
    share = counts / number[..., None]
    if inverse is None:
        return discrepancy(share, ideal).square() - (1 - share.square().sum(-1)) / (number - 1)
    true = share @ inverse
    noise = (share @ inverse.square().sum(-1)[..., None])[..., 0] - true.square().sum(-1)
    return discrepancy(true, ideal).square() - noise / (number - 1)


def _of_the_mean(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of skewed values (N,): Student's, bent by Hall's cubic (1992)."""
    count, mean, spread = len(values), float(values.mean()), float(values.std())
    reach = float(stdtrit(count - 1, 0.975)) / math.sqrt(count)
    skew = 0.0
    if count > 3 and spread:  # three values say nothing about a tail
        skew = float((values - mean).pow(3).mean()) / spread**3 * count**2 / ((count - 1) * (count - 2))

    def bent(step: float) -> float:
        if abs(skew) < 1e-6:
            return step
        return 3 / skew * float(np.cbrt(1 + skew * (step - skew / (6 * count))) - 1)

    ends = mean - spread * bent(reach), mean - spread * bent(-reach)
    return min(ends[0], mean), max(ends[1], mean)


def _of_the_images(counts: Tensor, ideal: Tensor, inverse: Tensor | None) -> float:
    """Half of the width that few images of each prompt give the mean square: the delta method, half an image added to each class."""
    soft = counts + 0.5
    share = soft / soft.sum(1, keepdim=True)
    true = share if inverse is None else share @ inverse
    slope = 2 * (true - ideal)
    slope = slope if inverse is None else slope @ inverse.T
    variance = ((share * slope.square()).sum(1) - (share * slope).sum(1).square()) / counts.sum(1)
    return 1.96 * float(variance.clamp_min(0).sum().sqrt()) / len(counts)


def of_the_judge(counts: Tensor, ideal: Tensor, confusion: Confusion | None) -> float:
    """Standard deviation that the uncertainty of a judge's confusion gives the mean square."""
    if confusion is None or confusion.exact:
        return 0.0
    return float(unbiased_squares(counts, ideal, confusion.inverses).mean(1).std())


def of_the_target(
    counts: Tensor, ideal: Tensor, seed: int = 0, confusion: Confusion | None = None, repeats: int = _DRAWS
) -> Tensor:
    """Unbiased squares of models that draw every prompt from the target, of as many images: float64 (repeats, P)."""
    generator = np.random.default_rng(seed)
    shares = (ideal.double() / ideal.double().sum(-1, keepdim=True)).expand(len(counts), -1)
    matrices = None if confusion is None else confusion.draws(repeats, seed + 1)
    squares = []
    for rows in torch.arange(len(counts)).split(100):
        likely = shares[rows][None] if matrices is None else shares[rows] @ matrices
        likely = likely / likely.sum(-1, keepdim=True)
        numbers = counts[rows].sum(1).long()
        drawn = torch.from_numpy(generator.multinomial(numbers.numpy(), likely.numpy(), (repeats, len(rows))))
        squares.append(unbiased_squares(drawn.double(), shares[rows], None if confusion is None else confusion.inverse))
    return torch.cat(squares, 1)


def floor(count: int, classes: int, draws: int = 4000) -> float:
    """Mean discrepancy of a perfectly uniform population observed on ``count`` images (Monte Carlo, fixed seed)."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(0, classes, (draws, count), generator=generator)
    share = torch.zeros(draws, classes).scatter_add_(1, sample, torch.ones(draws, count)) / count
    return float(discrepancy(share).mean())


def bootstrap_shares(one_hot: Tensor, prompt: Tensor, repeats: int, seed: int = 0) -> Tensor:
    """Resampled class shares of each prompt: prompts are drawn first, then the images within each.

    The number of times a class is drawn among n images with replacement is multinomial, so the shares are drawn
    directly, without touching images.

    Args:
        one_hot: float (N, K), one row per judged image (hard labels).
        prompt: int64 (N,), the prompt of each image, 0 to P - 1, every prompt present.
        repeats: Bootstrap repeats R.
        seed: Of the resampling; the same seed draws the same prompts for another model (paired bootstrap).

    Returns:
        float (R, P, K): in each repeat, the shares of P prompts drawn with replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = int(prompt.max()) + 1
    counts = torch.zeros(prompts, one_hot.shape[1]).index_add_(0, prompt, one_hot.float())
    number = counts.sum(1)
    drawn = torch.randint(0, prompts, (repeats, prompts), generator=generator)
    result = torch.zeros(repeats, prompts, one_hot.shape[1])
    for p in range(prompts):
        where = drawn == p
        times = int(where.sum())
        if times:
            share = counts[p] / number[p]
            n = int(number[p])
            sample = torch.multinomial(share, times * n, replacement=True, generator=generator).view(times, n)
            result[where] = torch.zeros(times, len(share)).scatter_add_(1, sample, torch.ones(times, n)) / n
    return result


def judged(probabilities: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that the judge could judge, and their prompts renumbered 0 to P - 1.

    Args:
        probabilities: float (N, K), a row of NaN where no face was found.
        prompts: int64 (N,).
    """
    seen = ~probabilities.isnan().any(1)
    return probabilities[seen], torch.unique(prompts[seen], return_inverse=True)[1]


def prompt_shares(rows: Tensor, prompt: Tensor) -> Tensor:
    """Hard shares of each prompt: float (P, K) of what `judged` returned."""
    counts = prompt_counts(rows, prompt)
    return counts / counts.sum(1, keepdim=True)


def prompt_counts(rows: Tensor, prompt: Tensor) -> Tensor:
    """How many images of each prompt show each class: float (P, K) of what `judged` returned."""
    counts = torch.zeros(int(prompt.max()) + 1, rows.shape[1])
    return counts.index_put_((prompt, rows.argmax(1)), torch.ones(len(rows)), accumulate=True)


def bootstrap_discrepancy(
    probabilities: Tensor,
    prompts: Tensor,
    target: Tensor | None = None,
    repeats: int = 1000,
    seed: int = 0,
    pooled: bool = False,
) -> Tensor:
    """Bootstrap draws of the mean discrepancy over prompts, for a paired comparison.

    Args:
        probabilities: See `fairness_discrepancy`, as ``prompts``.
        prompts: Likewise.
        target: float (K,), the ideal shares; None is uniform.
        repeats: Bootstrap repeats R.
        seed: Of the bootstrap.
        pooled: Of all images together instead.

    Returns:
        float (R,).
    """
    rows, prompt = judged(probabilities, prompts)
    draws = bootstrap_shares(_hard(rows), prompt, repeats, seed)
    return discrepancy(draws.mean(1), target) if pooled else discrepancy(draws, target).mean(1)


def _hard(rows: Tensor) -> Tensor:
    return F.one_hot(rows.argmax(1), rows.shape[1]).float()


def fairness_discrepancy(
    probabilities: Tensor,
    prompts: Tensor,
    target: Sequence[float] | Tensor | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """How far the population of each prompt is from the ideal shares of an attribute's classes.

    Images that the judge could not judge are counted in ``missing`` and belong to no class. A prompt of which none could
    be judged has no discrepancy: the others' mean is given, and ``unjudged_prompts`` says how many it lacks.

    Args:
        probabilities: float (N, K), the judge's p(u | x); a row of NaN where it found no face.
        prompts: int64 (N,), number of the prompt each image was sampled for.
        target: K ideal shares; None is uniform.
        repeats: Bootstrap repeats.
        seed: Of the bootstrap; equal for models that are compared.

    Returns:
        Each with an interval from a bootstrap clustered by prompt: ``per_prompt`` (mean over prompts, hard labels: the
        headline), ``pooled`` (all images together), ``soft`` (mean over prompts of the mean probability: the paper's
        formula, which rewards an unsure judge), ``worst`` (largest prompt); ``rms`` is without what finite samples add, see
        `rms_discrepancy`; ``floor`` is what a perfectly uniform population would score per prompt on as many images.

    Raises:
        ValueError: No image could be judged.

    Examples:
        >>> rows = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
        >>> found = fairness_discrepancy(rows, torch.zeros(4, dtype=torch.long))
        >>> round(found["per_prompt"].value, 4), found["per_prompt"].n
        (0.3536, 4)
    """
    ideal = None if target is None else torch.as_tensor(target)
    rows, prompt = judged(probabilities, prompts)
    missing = len(probabilities) - len(rows)
    if not len(rows):
        raise ValueError(f"no image could be judged ({missing} missing).")
    hard = _hard(rows)
    number = torch.bincount(prompt).float()
    share = prompt_shares(rows, prompt)
    draws = bootstrap_shares(hard, prompt, repeats, seed)
    per_prompt = discrepancy(share, ideal)
    n = number.mean()
    estimates = {
        "per_prompt": (per_prompt.mean(), discrepancy(draws, ideal).mean(1)),
        "pooled": (discrepancy(hard.mean(0), ideal), discrepancy(draws.mean(1), ideal)),
        "worst": (per_prompt.max(), discrepancy(draws, ideal).amax(1)),
    }
    # The judge's confidence varies little within a prompt: resample prompts only.
    soft = torch.zeros_like(share).index_add_(0, prompt, rows.float()) / number[:, None]
    by_prompt = discrepancy(soft, ideal)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(by_prompt), (repeats, len(by_prompt)), generator=generator)
    estimates["soft"] = (by_prompt.mean(), by_prompt[chosen].mean(1))
    several = len(share) if len(share) > 1 else len(rows)
    draws_of = {"per_prompt": several, "pooled": several, "worst": int(number.min()), "soft": several}
    most = float(farthest(torch.full((share.shape[1],), 1 / share.shape[1]) if ideal is None else ideal))
    result = {
        name: Estimate.bootstrap(float(value), sample, len(rows), missing).with_the_unseen(draws_of[name], most)
        for name, (value, sample) in estimates.items()
    }
    rms = rms_discrepancy(prompt_counts(rows, prompt), ideal, seed)
    if rms is not None:
        result["rms"] = Estimate(rms.value, rms.low, rms.high, rms.n, missing)
    every = len(prompts.unique())
    if lost := every - len(number):
        _log.warning("%d of %d prompts show no face that could be judged; the mean is over the rest", lost, every)
        result["unjudged_prompts"] = Estimate.exact(float(lost), every, lost)
    level = floor(round(float(n)), rows.shape[1])
    result["floor"] = Estimate.exact(level, len(rows), missing)
    return result
