"""Learning which of two images people prefer: SimPO (Ano-Face-Fair, stage 2) and the family that it belongs to."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairanon.backbones import Backbone
from fairanon.batches import PreferenceBatch
from fairanon.losses.denoising import per_sample_mse
from fairanon.losses.preference import (
    dpo_loss,
    ipo_loss,
    mapo_loss,
    orpo_loss,
    saturated,
    simpo_logits,
    simpo_loss,
)
from fairanon.methods.base import DiffusionMethod, Noised

Objective = Literal["simpo", "simpo_hinge", "dpo", "ipo", "mapo", "orpo", "sft"]
_WITH_REFERENCE = ("dpo", "ipo")
_LARGEST_BETA, _LARGEST_RATIO = 2000.0, 1.5


class PreferenceMethod(DiffusionMethod):
    """Base of the methods that learn from pairs; winner and loser share noise, timestep and caption.

    Args:
        backbone: The diffusion model; its reference is the one that gains are measured against.
        prior_weight: Weight of plain denoising of the winners under the prompts that they were sampled from, as in
            DreamBooth's prior preservation; 0 leaves it out.
        min_timestep: Smallest timestep of the objective; the prior has all.
        micro_batch_size: Pairs whose activations are held at once; the rest is recomputed in the backward pass.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prior_weight: float = 0.0,
        min_timestep: int = 0,
        micro_batch_size: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        if prior_weight < 0:
            raise ValueError(f"prior_weight must not be negative, got {prior_weight}.")
        if not 0 <= min_timestep < backbone.num_timesteps:
            raise ValueError(f"min_timestep must be in [0, {backbone.num_timesteps}), got {min_timestep}.")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}.")
        self.prior_weight, self.min_timestep, self.micro_batch_size = prior_weight, min_timestep, micro_batch_size

    def winners(self, batch: PreferenceBatch) -> Noised:
        """The preferred images, noisy: P samples."""
        latents = self.latents(batch.winners, batch.keys, "winner")
        return self.noised(latents, batch.keys, batch.captions, self.min_timestep)

    def pairs(self, batch: PreferenceBatch, winners: Noised) -> Noised:
        """The winners and, behind them, the losers with the winners' noise and timesteps: 2P samples of P pairs."""
        both = winners[torch.arange(len(batch)).repeat(2)]
        losers = self.latents(batch.losers, batch.keys, "loser")
        return self.with_latents(both, torch.cat([winners.latents, losers]))

    def prior(self, batch: PreferenceBatch, winners: Noised) -> Tensor | None:
        """Denoising error of the winners under the prompts that they were sampled from, with noise of its own.

        Returns:
            A scalar; None where the data names no such prompts (columns prompt_0, prompt_1).
        """
        if batch.winner_prompts is None:
            return None
        condition = self.backbone.encode_prompts(batch.winner_prompts)
        keys = [f"{key}.prior" for key in batch.keys]
        return self.errors(self.noised(winners.latents, keys, condition)).mean()

    def errors(self, x: Noised) -> Tensor:
        """Per-sample errors of the model, (B,); in micro-batches whose activations are recomputed, if asked."""

        def some(rows: slice) -> Tensor:
            part = x[rows]
            return per_sample_mse(self.backbone.predict(part.noisy, part.timesteps, part.condition), part.target)

        parts = self._parts(len(x.noisy))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([some(rows) for rows in parts])
        return torch.cat([checkpoint(some, rows, use_reentrant=False) for rows in parts])

    @torch.no_grad()
    def reference_errors(self, x: Noised) -> Tensor:
        """Per-sample errors of the reference, (B,)."""
        found = []
        for part in (x[rows] for rows in self._parts(len(x.noisy))):
            predicted = self.backbone.predict_reference(part.noisy, part.timesteps, part.condition)
            found.append(per_sample_mse(predicted, part.target))
        return torch.cat(found)

    def _parts(self, count: int) -> list[slice]:
        size = count if self.micro_batch_size is None else self.micro_batch_size
        return [slice(first, first + size) for first in range(0, count, size)]


class PairwisePreference(PreferenceMethod):
    """One objective of a family: SimPO (Ano-Face-Fair, equation 9), Diffusion-DPO, IPO, MaPO, ORPO's style, SFT.

    Only ``dpo`` and ``ipo`` ask the reference; the others read the model's own errors, so that their step costs little
    more than a step of plain denoising.

    Args:
        backbone: See `PreferenceMethod`.
        objective: ``simpo`` or ``simpo_hinge`` (algorithm 3), ``dpo``, ``ipo``, ``mapo``, ``orpo`` (in its style) or
            ``sft`` (denoising of the winners).
        beta: Reward scale (``simpo``), divergence penalty (``dpo``, ``ipo``) or weight of the ratio (``mapo``,
            ``orpo``).
        margin: By how much the winner's error should be smaller (``simpo``), in the unit of ``margin_unit``.
        margin_unit: ``error``: a difference of mean squared errors, as the official code has it. ``reward``: the
            paper's gamma, beta times that.
        allow_unstable: Accept a beta above 2,000 or a margin above 1.5 of the error.
        shared: See `PreferenceMethod`. Where the data names no prompts of their own for the winners, those of
            ``prior_weight`` are their captions, and their errors in the pairs are at hand: it keeps them from rising with
            the losers'. 0 is the paper.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective = "simpo",
        beta: float = 200.0,
        margin: float = 0.5,
        margin_unit: Literal["error", "reward"] = "error",
        allow_unstable: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}.")
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        if margin < 0:
            raise ValueError(f"margin must not be negative, got {margin}.")
        ratio = margin if margin_unit == "error" else margin / beta
        if objective.startswith("simpo") and not allow_unstable:
            if beta > _LARGEST_BETA:
                raise ValueError(
                    f"beta is {beta}: above 2000 the paper saw gradients explode (supplement, B); choose a smaller one, "
                    "or set allow_unstable."
                )
            if ratio > _LARGEST_RATIO:
                raise ValueError(
                    f"the margin is {ratio} of the error: above 1.5 the paper saw training destabilise (supplement, B); "
                    "choose a smaller one, or set allow_unstable."
                )
        self.objective, self.beta, self.margin = objective, beta, ratio

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of pairs; see `DiffusionMethod.loss`."""
        winners = self.winners(batch)
        if self.objective == "sft" and self.training:  # the losers are only needed to report the reward accuracy
            won = value = self.errors(winners).mean()
            logs = {"error_winner": won.detach()}
        else:
            x = self.pairs(batch, winners)
            better, worse = self.errors(x).chunk(2)
            won = better.mean()
            logs = {
                "reward_accuracy": (better < worse).float().mean(),
                "loss_ratio": (won / worse.mean()).detach(),
                "margin": (worse - better).mean().detach(),
                "error_winner": won.detach(),
                "error_loser": worse.mean().detach(),
            }
            reference = self.reference_errors(x) if self.objective in _WITH_REFERENCE else None
            value = self._value(better, worse, reference, logs)
        if self.prior_weight:
            prior = self.prior(batch, winners)
            prior = won if prior is None else prior
            value, logs["error_prior"] = value + self.prior_weight * prior, prior.detach()
        return value, logs

    def held_out(self, batch: PreferenceBatch, reference: bool) -> dict[str, Tensor]:
        """Reward accuracy and errors on held-out pairs; see `DiffusionMethod`.

        The reward is the model's own (equation 8): right where the winner's error is the smaller one. Next to it the
        implicit reward of Diffusion-DPO, which compares with the reference: right where the winner gained more.
        """
        x = self.pairs(batch, self.winners(batch))
        before = self.reference_errors(x)
        won, lost = (before if reference else self.errors(x)).chunk(2)
        values = {"reward_accuracy/val": (won < lost).float(), "loss/val/winner": won, "loss/val/loser": lost}
        if not reference:
            gain_won, gain_lost = (before - torch.cat([won, lost])).chunk(2)
            values["reward_accuracy/implicit"] = (gain_won > gain_lost).float()
        return values

    def _value(self, won: Tensor, lost: Tensor, reference: Tensor | None, logs: dict[str, Tensor]) -> Tensor:
        if reference is not None:
            gain_won, gain_lost = (reference - torch.cat([won, lost])).chunk(2)
            logs["gain_winner"], logs["gain_loser"] = gain_won.mean().detach(), gain_lost.mean().detach()
            logs["reward_accuracy"] = (gain_won > gain_lost).float().mean()
            return (dpo_loss if self.objective == "dpo" else ipo_loss)(gain_won, gain_lost, self.beta)
        if self.objective == "mapo":
            return mapo_loss(won, lost, self.beta, float(self.backbone.num_timesteps))
        if self.objective == "orpo":
            return orpo_loss(won, lost, self.beta)
        if self.objective == "sft":
            return won.mean()
        logits = simpo_logits(won, lost, self.beta, self.margin)
        logs["saturated"] = saturated(logits.detach())
        return simpo_loss(logits, "hinge" if self.objective == "simpo_hinge" else "sigmoid")
