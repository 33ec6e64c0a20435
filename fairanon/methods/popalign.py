"""PopAlign: population-level preference alignment of text-to-image models, with its rivals DPO and SFT."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import PreferenceBatch
from fairanon.losses.preference import dpo_loss, gain_sums, popalign_loss, population_mean
from fairanon.methods.base import ConstantWithWarmup, sum_over_ranks
from fairanon.methods.pairs import Noised, PairMethod


class PopAlign(PairMethod):
    """Aligns the population that a model draws for a neutral prompt (PopAlign, section 3.3).

    A step: winner and loser of a pair share noise and timestep; each sample's gain over the frozen starting
    point is compared with mu, the mean gain of the *global* batch; winners are pulled above it, losers pushed
    below. ``dpo`` compares within each pair instead, ``sft`` just denoises the winners.

    Args:
        backbone: The diffusion model; its frozen starting point is the reference.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
        objective: ``popalign`` (equation 9), ``dpo`` (Diffusion-DPO) or ``sft`` (the paper's baseline).
        beta: Divergence penalty of ``popalign`` and ``dpo``; the paper's 5000 suits SDXL's small errors.
        alpha: Weight of the winners in mu (appendix A.3); below 0.5 the training diverges.
        caption_dropout: Share of captions replaced by ""; the official code has 0.2.
        prior_weight: Weight of plain denoising of the winners under the prompts that they were sampled from (prior
            preservation as in DreamBooth): keeps what identity-specific prompts ask for. 0 is the paper.
        min_timestep: The least noisy timestep of the objective (the prior has all): who an image shows is decided
            at high noise, see docs/tuning-popalign-tiny.md. 0 is the paper.
        micro_batch_size: Pairs whose activations are held at once; the rest is recomputed in the backward pass.
            Use this instead of ``trainer.accumulate_grad_batches`` for a large batch whose mu must be exact;
            with accumulation, mu is that of each micro-step.
        seed: Names the noise of the run.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = ConstantWithWarmup,
        objective: Literal["popalign", "dpo", "sft"] = "popalign",
        beta: float = 5000.0,
        alpha: float = 0.5,
        caption_dropout: float = 0.2,
        prior_weight: float = 0.0,
        min_timestep: int = 0,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, caption_dropout, min_timestep, micro_batch_size, seed)
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}.")
        if prior_weight < 0:
            raise ValueError(f"prior_weight must not be negative, got {prior_weight}.")
        self.objective, self.beta, self.alpha, self.prior_weight = objective, beta, alpha, prior_weight

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of pairs; see `DiffusionMethod.loss`."""
        winners = self.winners(batch)
        value, logs = self._objective(batch, winners)
        if self.prior_weight:
            prior = self._prior(batch, winners)
            value, logs["error_prior"] = value + self.prior_weight * prior, prior.detach()
        return value, logs

    def _prior(self, batch: PreferenceBatch, winners: Tensor) -> Tensor:
        """Denoising error of the winners under the prompts that they were sampled from, with noise of its own."""
        if batch.winner_prompts is None:
            raise ValueError(
                "model.prior_weight: the data does not say from which prompts the winners were sampled (columns "
                "prompt_0, prompt_1); make it with `fairanon prepare`, or set prior_weight to 0."
            )
        noise, timesteps = self.draw_noise([f"{key}.prior" for key in batch.keys], winners.shape[1:], self.purpose)
        noisy = self.backbone.add_noise(winners, noise, timesteps)
        target = self.backbone.target(winners, noise, timesteps)
        return self.errors(Noised(noisy, timesteps, self.backbone.encode_prompts(batch.winner_prompts), target)).mean()

    def _objective(self, batch: PreferenceBatch, winners: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.objective == "sft":
            error = self.errors(self.noised(batch, winners, winners_only=True)).mean()
            return error, {"error_winner": error.detach()}

        x = self.noised(batch, winners)
        gain = self.reference_errors(x) - self.errors(x)
        label = torch.ones_like(gain)
        label[len(batch) :] = -1
        sums = sum_over_ranks(gain_sums(gain, label))
        mu = population_mean(sums, self.alpha)
        won, lost = gain.chunk(2)
        pairwise = self.objective == "dpo"
        value = dpo_loss(won, lost, self.beta) if pairwise else popalign_loss(gain, label, mu, self.beta)
        return value, {
            "gain_winner": sums[0] / sums[1],
            "gain_loser": sums[2] / sums[3],
            "mu": mu,
            "accuracy/pair": (won > lost).float().mean(),
            "accuracy/population": self._population_accuracy(won.detach(), lost.detach(), batch.captions),
        }

    @staticmethod
    def _population_accuracy(won: Tensor, lost: Tensor, captions: list[str]) -> Tensor:
        """Share of prompts whose winning set gained more than its losing set (appendix E, figure 8)."""
        hits = []
        for caption in dict.fromkeys(captions):
            rows = torch.tensor([text == caption for text in captions], device=won.device)
            hits.append(won[rows].sum() > lost[rows].sum())
        return torch.stack(hits).float().mean()
