"""Fairness discrepancy as a metric."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.discrepancy import bootstrap_shares, debiased, discrepancy, floor
from fairanon.metrics.functional.intervals import interval

_log = logging.getLogger(__name__)


class FairnessDiscrepancy(Metric):
    """How far the population of each prompt is from the ideal shares of an attribute's classes.

    Images that the judge could not judge (NaN rows) are counted in ``missing`` and belong to no class. A prompt of which
    none could be judged has no discrepancy: the others' mean is given, and ``unjudged_prompts`` says how many it lacks.

    Results, each with a 95 % interval from a bootstrap clustered by prompt: ``per_prompt`` (mean over prompts,
    hard labels: the headline), ``pooled`` (all images together), ``soft`` (mean over prompts of the mean
    probability: the paper's formula, which rewards an unsure judge), ``debiased`` (``per_prompt`` without the
    finite-sample floor), ``worst`` (largest prompt); ``floor`` is what a perfectly uniform population would score
    per prompt on as many images.

    Args:
        classes: Number of classes K.
        target: Ideal shares; None is uniform.
        repeats: Bootstrap repeats.
        seed: Names the bootstrap; equal for models that are compared.

    Raises:
        ValueError: ``target`` is not K shares that sum to 1.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    probabilities: list[Tensor]
    prompts: list[Tensor]

    def __init__(
        self, classes: int, target: tuple[float, ...] | None = None, repeats: int = 1000, seed: int = 0
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}.")
        if target is not None and (len(target) != classes or abs(sum(target) - 1) > 1e-6 or min(target) < 0):
            raise ValueError(f"target must be {classes} shares that sum to 1, got {target}.")
        self.classes, self.repeats, self.seed = classes, repeats, seed
        self.target = None if target is None else torch.tensor(target)
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("prompts", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, prompts: Tensor) -> None:
        """Add images.

        Args:
            probabilities: float (N, K), the judge's p(u | x); a row of NaN where it found no face.
            prompts: int64 (N,), number of the prompt each image was sampled for.
        """
        if probabilities.dim() != 2 or probabilities.shape[1] != self.classes:
            raise ValueError(f"probabilities must be (N, {self.classes}), got {tuple(probabilities.shape)}.")
        self.probabilities.append(probabilities)
        self.prompts.append(prompts)

    def state(self) -> tuple[Tensor, Tensor, int]:
        """Judged rows, their prompts renumbered 0 to P - 1, and how many rows could not be judged."""
        rows, prompts = dim_zero_cat(self.probabilities).cpu(), dim_zero_cat(self.prompts).cpu()
        judged = ~rows.isnan().any(1)
        return rows[judged], torch.unique(prompts[judged], return_inverse=True)[1], int((~judged).sum())

    def judged_prompts(self) -> tuple[set[int], set[int]]:
        """Prompts of which at least one image was judged, and all prompts."""
        rows, prompts = dim_zero_cat(self.probabilities), dim_zero_cat(self.prompts)
        return set(prompts[~rows.isnan().any(1)].tolist()), set(prompts.tolist())

    def shares(self) -> Tensor:
        """Hard shares per prompt: float (P, K)."""
        rows, prompt, _ = self.state()
        counts = torch.zeros(int(prompt.max()) + 1, self.classes)
        counts.index_put_((prompt, rows.argmax(1)), torch.ones(len(rows)), accumulate=True)
        return counts / counts.sum(1, keepdim=True)

    def bootstrap(self) -> Tensor:
        """Bootstrap draws of ``per_prompt``, float (R,), for a paired comparison."""
        rows, prompt, _ = self.state()
        hard = torch.nn.functional.one_hot(rows.argmax(1), self.classes)
        return discrepancy(bootstrap_shares(hard, prompt, self.repeats, self.seed), self.target).mean(1)

    def compute(self) -> dict[str, dict[str, float]]:
        """value, low, high, n and missing of each result."""
        rows, prompt, missing = self.state()
        if not len(rows):
            raise ValueError(f"no image could be judged ({missing} missing).")
        hard = torch.nn.functional.one_hot(rows.argmax(1), self.classes).float()
        number = torch.bincount(prompt).float()
        share = self.shares()
        soft = torch.zeros_like(share).index_add_(0, prompt, rows.float()) / number[:, None]
        draws = bootstrap_shares(hard, prompt, self.repeats, self.seed)
        per_prompt = discrepancy(share, self.target)
        n = number.mean()
        estimates = {
            "per_prompt": (per_prompt.mean(), discrepancy(draws, self.target).mean(1)),
            "pooled": (discrepancy(hard.mean(0), self.target), discrepancy(draws.mean(1), self.target)),
            "debiased": (debiased(share, number, self.target).mean(), debiased(draws, n, self.target).mean(1)),
            "worst": (per_prompt.max(), discrepancy(draws, self.target).amax(1)),
        }
        # The judge's confidence varies little within a prompt: resample prompts only.
        generator = torch.Generator().manual_seed(self.seed)
        by_prompt = discrepancy(soft, self.target)
        chosen = torch.randint(0, len(by_prompt), (self.repeats, len(by_prompt)), generator=generator)
        estimates["soft"] = (by_prompt.mean(), by_prompt[chosen].mean(1))
        result = {}
        for name, (value, sample) in estimates.items():
            estimate = interval(float(value), sample)
            result[name] = {**estimate._asdict(), "n": float(len(rows)), "missing": float(missing)}
        judged, every = self.judged_prompts()
        lost = float(len(every) - len(judged))
        if lost:
            _log.warning(
                "%d of %d prompts show no face that could be judged; the mean is over the rest", lost, len(every)
            )
            result["unjudged_prompts"] = {
                "value": lost,
                "low": lost,
                "high": lost,
                "n": float(len(every)),
                "missing": lost,
            }
        level = floor(round(float(n)), self.classes)
        result["floor"] = {
            "value": level,
            "low": level,
            "high": level,
            "n": float(len(rows)),
            "missing": float(missing),
        }
        return result
