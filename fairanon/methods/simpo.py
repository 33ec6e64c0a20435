"""Ano-Face-Fair, stage 2: simple preference optimization of a diffusion model, and the family it belongs to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import PreferenceBatch
from fairanon.losses.preference import (
    dpo_loss,
    ipo_loss,
    mapo_loss,
    orpo_loss,
    saturated,
    simpo_logits,
    simpo_loss,
)
from fairanon.methods.base import ConstantWithWarmup
from fairanon.methods.pairs import PairMethod

Objective = Literal["simpo", "simpo_hinge", "dpo", "ipo", "mapo", "orpo", "sft"]
_WITH_REFERENCE = ("dpo", "ipo")
_LARGEST_BETA, _LARGEST_RATIO = 2000.0, 1.5


class SimPO(PairMethod):
    """Learns which of two images people prefer (Ano-Face-Fair, equation 9), one objective of a family.

    Only ``dpo`` and ``ipo`` ask the reference model; the others read the model's own errors, so that their step costs
    little more than a step of plain denoising.

    Args:
        backbone: The diffusion model; its frozen starting point is the reference.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
        objective: ``simpo`` or ``simpo_hinge`` (algorithm 3), ``dpo``, ``ipo``, ``mapo``, ``orpo`` (in its style) or
            ``sft`` (denoising of the winners).
        beta: Reward scale (``simpo``), divergence penalty (``dpo``, ``ipo``) or weight of the ratio (``mapo``,
            ``orpo``).
        margin: By how much the winner's error should be smaller (``simpo``), in the unit of ``margin_unit``.
        margin_unit: ``error``: a difference of mean squared errors, as the official code has it. ``reward``: the
            paper's gamma, beta times that.
        allow_unstable: Accept a beta above 2,000 or a margin above 1.5 of the error.
        anchor_weight: Weight of plain denoising of the winners; keeps their error from rising with the losers'. 0 is
            the paper.
        caption_dropout: Share of captions replaced by "".
        min_timestep: The least noisy timestep.
        micro_batch_size: Pairs whose activations are held at once; the rest is recomputed in the backward pass.
        seed: Names the noise of the run.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = ConstantWithWarmup,
        objective: Objective = "simpo",
        beta: float = 200.0,
        margin: float = 0.5,
        margin_unit: Literal["error", "reward"] = "error",
        allow_unstable: bool = False,
        anchor_weight: float = 0.0,
        caption_dropout: float = 0.0,
        min_timestep: int = 0,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, caption_dropout, min_timestep, micro_batch_size, seed)
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}.")
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        if margin < 0 or anchor_weight < 0:
            raise ValueError(f"margin and anchor_weight must not be negative, got {margin} and {anchor_weight}.")
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
        self.objective, self.beta, self.margin, self.anchor_weight = objective, beta, ratio, anchor_weight

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of pairs; see `DiffusionMethod.loss`."""
        winners = self.winners(batch)
        if self.objective == "sft" and self.training:  # the losers are only needed to report the reward accuracy
            error = self.errors(self.noised(batch, winners, winners_only=True)).mean()
            return error, {"error_winner": error.detach()}

        x = self.noised(batch, winners)
        won, lost = self.errors(x).chunk(2)
        logs = {
            "reward_accuracy": (won < lost).float().mean(),
            "loss_ratio": (won.mean() / lost.mean()).detach(),
            "margin": (lost - won).mean().detach(),
            "error_winner": won.mean().detach(),
            "error_loser": lost.mean().detach(),
        }
        value = self._value(won, lost, self.reference_errors(x) if self.objective in _WITH_REFERENCE else None, logs)
        return value + self.anchor_weight * won.mean(), logs

    def held_out(self, batch: PreferenceBatch, start: bool) -> dict[str, Tensor]:
        """Reward accuracy and errors on held-out pairs; see `DiffusionMethod.held_out`.

        The reward is the model's own (equation 8): right where the winner's error is the smaller one. Next to it the
        implicit reward of Diffusion-DPO, which compares with the reference: right where the winner gained more.
        """
        x = self.noised(batch, self.winners(batch))
        reference = self.reference_errors(x)
        won, lost = (reference if start else self.errors(x)).chunk(2)
        values = {"reward_accuracy/val": (won < lost).float(), "loss/val/winner": won, "loss/val/loser": lost}
        if not start:
            gain_won, gain_lost = (reference - torch.cat([won, lost])).chunk(2)
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
