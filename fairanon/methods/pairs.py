"""What methods that learn from pairs share: latents of both images, errors of the model and of the reference."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairanon.backbones import Backbone, Conditioning
from fairanon.batches import PreferenceBatch
from fairanon.losses.denoising import per_sample_mse
from fairanon.methods.base import ConstantWithWarmup, DiffusionMethod


class Noised(NamedTuple):
    """Noisy latents of B samples, all that the model is asked about them, and what it should answer."""

    noisy: Tensor
    timesteps: Tensor
    condition: Conditioning
    target: Tensor


class PairMethod(DiffusionMethod):
    """Base of the methods that learn from pairs; winner and loser share noise, timestep and caption.

    Args:
        backbone: The diffusion model; its frozen starting point is the reference.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
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
        caption_dropout: float = 0.0,
        min_timestep: int = 0,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, caption_dropout, seed)
        if not 0 <= min_timestep < backbone.num_timesteps:
            raise ValueError(f"min_timestep must be in [0, {backbone.num_timesteps}), got {min_timestep}.")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}.")
        self.min_timestep, self.micro_batch_size = min_timestep, micro_batch_size

    @property
    def purpose(self) -> Literal["train", "val"]:
        """Which noise is drawn."""
        return "train" if self.training else "val"

    def winners(self, batch: PreferenceBatch) -> Tensor:
        """Latents of the preferred images, (P, C, h, w)."""
        return self.latents(batch.winners, batch.keys, "winner")

    def noised(self, batch: PreferenceBatch, winners: Tensor, winners_only: bool = False) -> Noised:
        """The winners and, behind them, the losers with the winners' noise and timesteps: 2P samples of P pairs."""
        latents = winners
        noise, timesteps = self.draw_noise(batch.keys, latents.shape[1:], self.purpose, self.min_timestep)
        condition = self.condition(batch.captions, batch.keys)
        if not winners_only:
            latents = torch.cat([winners, self.latents(batch.losers, batch.keys, "loser")])
            noise, timesteps = torch.cat([noise, noise]), torch.cat([timesteps, timesteps])
            condition = condition[torch.arange(len(batch)).repeat(2)]
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        return Noised(noisy, timesteps, condition, self.backbone.target(latents, noise, timesteps))

    def errors(self, x: Noised) -> Tensor:
        """Per-sample errors of the model, (B,); in micro-batches whose activations are recomputed, if asked."""

        def some(rows: slice) -> Tensor:
            return per_sample_mse(
                self.backbone.predict(x.noisy[rows], x.timesteps[rows], x.condition[rows]), x.target[rows]
            )

        parts = self._parts(len(x.noisy))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([some(rows) for rows in parts])
        return torch.cat([checkpoint(some, rows, use_reentrant=False) for rows in parts])

    @torch.no_grad()
    def reference_errors(self, x: Noised) -> Tensor:
        """Per-sample errors of the frozen starting point, (B,)."""
        return torch.cat(
            [
                per_sample_mse(
                    self.backbone.predict_reference(x.noisy[rows], x.timesteps[rows], x.condition[rows]), x.target[rows]
                )
                for rows in self._parts(len(x.noisy))
            ]
        )

    def _parts(self, count: int) -> list[slice]:
        size = count if self.micro_batch_size is None else self.micro_batch_size
        return [slice(first, first + size) for first in range(0, count, size)]
