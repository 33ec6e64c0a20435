"""PopAlign: population-level preference alignment of text-to-image models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import PreferenceBatch
from fairanon.losses.preference_losses import gain_sums, popalign_loss, population_mean
from fairanon.methods.base import sum_over_ranks
from fairanon.methods.preference import PreferenceMethod


class PopAlign(PreferenceMethod):
    """Aligns the population that a model draws for a neutral prompt (PopAlign, section 3.3).

    A step: winner and loser of a pair share noise and timestep; each sample's gain over the reference is compared with
    mu, the mean gain of the *global* batch; winners are pulled above it, losers pushed below. (`PairwisePreference`
    compares within each pair instead: ``dpo``; or just denoises the winners: ``sft``.)

    Args:
        backbone: The diffusion model; its reference is the one that gains are measured against.
        beta: Divergence penalty; the paper's 5000 suits SDXL's small errors.
        alpha: Weight of the winners in mu (appendix A.3); below 0.5 the training diverges.
        caption_dropout: Share of captions replaced by ""; the official code has 0.2.
        shared: See `PreferenceMethod`. With accumulation instead of ``micro_batch_size``, mu is that of each micro-step.
    """

    def __init__(
        self,
        backbone: Backbone,
        beta: float = 5000.0,
        alpha: float = 0.5,
        caption_dropout: float = 0.2,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, caption_dropout=caption_dropout, **shared)
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}.")
        self.beta, self.alpha = beta, alpha

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of pairs; see `DiffusionMethod.loss`."""
        winners = self.winners(batch)
        x = self.pairs(batch, winners)
        gain = self.reference_errors(batch, x) - self.errors(x)
        label = torch.ones_like(gain)
        label[len(batch) :] = -1
        sums = sum_over_ranks(gain_sums(gain, label))
        mu = population_mean(sums, self.alpha)
        won, lost = gain.detach().chunk(2)
        value = popalign_loss(gain, label, mu, self.beta)
        logs = {
            "gain_winner": sums[0] / sums[1],
            "gain_loser": sums[2] / sums[3],
            "mu": mu,
            "accuracy/pair": (won > lost).float().mean(),
            "accuracy/population": self._population_accuracy(won, lost, batch.captions),
        }
        if self.prior_weight:
            prior = self.prior(batch, winners)
            if prior is None:
                raise ValueError(
                    "model.prior_weight: the data does not say from which prompts the winners were sampled (columns "
                    "prompt_0, prompt_1); make it with `fairanon prepare`, or set prior_weight to 0."
                )
            value, logs["error_prior"] = value + self.prior_weight * prior, prior.detach()
        return value, logs

    @staticmethod
    def _population_accuracy(won: Tensor, lost: Tensor, captions: list[str]) -> Tensor:
        """Share of prompts whose winning set gained more than its losing set (appendix E, figure 8)."""
        hits = []
        for caption in dict.fromkeys(captions):
            rows = torch.tensor([text == caption for text in captions], device=won.device)
            hits.append(won[rows].sum() > lost[rows].sum())
        return torch.stack(hits).float().mean()
