"""Learning which of two images people prefer: SimPO (Ano-Face-Fair, stage 2) and the family that it belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairanon.backbones import Backbone
from fairanon.batches import PreferenceBatch
from fairanon.config.experiments import UserError
from fairanon.losses.denoising import per_sample_mse
from fairanon.losses.preference_losses import (
    dpo_loss,
    ipo_loss,
    mapo_loss,
    orpo_loss,
    saturated,
    simpo_logits,
    simpo_loss,
)
from fairanon.methods.base import DiffusionMethod, Noised
from fairanon.methods.beforehand import Beforehand
from fairanon.progress import progress_bar

Objective = Literal["simpo", "simpo_hinge", "dpo", "ipo", "mapo", "orpo", "sft"]
_WITH_REFERENCE = ("dpo", "ipo")
_KEPT_EVERY = 200
"""Batches after which the reference's errors are written."""
_LARGEST_BETA, _LARGEST_RATIO = 2000.0, 1.5


class PreferenceMethod(DiffusionMethod):
    """Base of the methods that learn from pairs; winner and loser share noise, timestep and caption.

    Args:
        backbone: The diffusion model; its reference is the one that gains are measured against.
        prior_weight: Weight of plain denoising of the winners under the prompts that they were sampled from, as in
            DreamBooth's prior preservation; 0 leaves it out.
        min_timestep: Smallest timestep of the objective; the prior has all.
        micro_batch_size: Pairs whose activations are held at once; the rest is recomputed in the backward pass.
        reference: ``copy``: the model as it was before training stands beside the one that trains, where that trains as a
            whole. ``beforehand``: its errors are made before the first step, for all pairs that will come, and kept
            (`Beforehand`); then it is freed. The numbers are the same.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prior_weight: float = 0.0,
        min_timestep: int = 0,
        micro_batch_size: int | None = None,
        reference: Literal["copy", "beforehand"] = "copy",
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        if prior_weight < 0:
            raise ValueError(f"model.prior_weight must not be negative, got {prior_weight}.")
        if not 0 <= min_timestep < backbone.num_timesteps:
            raise ValueError(f"model.min_timestep must be in [0, {backbone.num_timesteps}), got {min_timestep}.")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"model.micro_batch_size must be at least 1, got {micro_batch_size}.")
        if reference not in ("copy", "beforehand"):
            raise ValueError(f"model.reference must be copy or beforehand, got {reference!r}.")
        self.frees_reference = reference == "beforehand"
        self._beforehand: Beforehand | None = None
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

    def reference_errors(self, batch: PreferenceBatch, x: Noised) -> Tensor:
        """Per-sample errors of the reference, (2P,), of P pairs as `pairs` has them."""
        moment = self._moment
        known = None if self._beforehand is None else self._beforehand.get(moment, batch)
        if known is not None:
            return known.to(x.noisy.device)
        errors = self._reference_errors(x)
        if self._beforehand is not None:
            self._beforehand.put(moment, batch, errors)
        return errors

    @torch.no_grad()
    def _reference_errors(self, x: Noised) -> Tensor:
        errors = []
        for part in (x[rows] for rows in self._parts(len(x.noisy))):
            predicted = self.backbone.predict_reference(part.noisy, part.timesteps, part.condition)
            errors.append(per_sample_mse(predicted, part.target))
        return torch.cat(errors)

    def _parts(self, count: int) -> list[slice]:
        size = count if self.micro_batch_size is None else self.micro_batch_size
        return [slice(first, first + size) for first in range(0, count, size)]

    # --- the reference's errors beforehand ---------------------------------------------------------------

    @property
    def _moment(self) -> str:
        """What an error depends on beside its pair: training has other noise, and a trainer's autocast rounds otherwise."""
        rounded = torch.is_autocast_enabled(self.device.type)
        return f"{'training' if self.training else 'validation'}{', autocast' if rounded else ''}"

    @property
    def asks_reference(self) -> bool:
        """Whether the objective is about the reference's errors."""
        return True

    def setup(self, stage: str) -> None:
        """Open what is kept of the reference's errors."""
        if not self.frees_reference or stage != "fit":
            return
        if self.trainer.max_steps < 0:
            raise UserError(
                "model.reference: the reference's errors can be made beforehand where the length of the training is "
                "known; set trainer.max_steps, or model.reference to copy."
            )
        origin = [
            self.backbone.origin(),
            self.trainer.precision,
            self.noise_seed,
            self.caption_dropout,
            self.min_timestep,
        ]
        self._beforehand = Beforehand(Path(self.trainer.default_root_dir).parent / ".reference", origin)

    def on_train_start(self) -> None:
        """Make the reference's errors of all pairs that will come, and free it."""
        if self._beforehand is None:
            return
        if self.asks_reference:
            # Adapters are their own reference: where they are sharded, one rank may compute what another one reads.
            with self.backbone.gathered() if self.backbone.trains_adapters else nullcontext():
                self._meet_all(self._beforehand)
            self._beforehand.write()
        self.backbone.free_reference()

    def _meet_all(self, known: Beforehand) -> None:
        trainer, modes = self.trainer, [(module, module.training) for module in self.modules()]
        data, precision = trainer.datamodule, trainer.strategy.precision_plugin  # type: ignore[attr-defined]  # set by a connector
        steps = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        with precision.train_step_context():
            self._meet(known, data.train_dataloader(), steps)
        self.eval()
        limit = trainer.limit_val_batches
        with precision.val_step_context():
            self._meet(known, data.val_dataloader(), limit if isinstance(limit, int) else None)
        for module, mode in modes:
            module.training = mode

    def _meet(self, known: Beforehand, batches: Iterable[PreferenceBatch], count: int | None) -> None:
        """Go through the first so many batches without training; those that the file has are only read."""
        progress = progress_bar(
            itertools.islice(batches, count),
            desc=f"the reference's errors, {'training' if self.training else 'validation'}",
            total=count,
            unit="batch",
            disable=self.global_rank > 0,
        )
        for number, batch in enumerate(progress):
            if number and number % _KEPT_EVERY == 0:
                known.write()  # a run that is killed here goes on from here
            if known.get(self._moment, batch) is None:
                there = batch.to(self.device)
                known.put(self._moment, there, self._reference_errors(self.pairs(there, self.winners(there))))


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

    @property
    def asks_reference(self) -> bool:
        """See `PreferenceMethod`."""
        return self.objective in _WITH_REFERENCE

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
            reference = self.reference_errors(batch, x) if self.asks_reference else None
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
        before = self.reference_errors(batch, x)
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
