"""FairHuman: global, face and hand objectives under minimum potential delay fairness, and its rivals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import REGIONS, RegionBatch
from fairanon.imaging import latent_masks
from fairanon.losses.region_errors import RegionMode, region_errors, region_presence, squared_errors
from fairanon.methods.base import DiffusionMethod, Noised
from fairanon.seeding import keyed_uniform
from fairanon.solvers import FairGrad, Solver
from fairanon.solvers.objectives import GramMode, ObjectiveGradients, Part


class FairHuman(DiffusionMethod):
    """Fine-tunes on people so that faces and hands gain as well as the whole image (FairHuman, section 3).

    A step: one prediction, K objectives on it (equations 2 to 4), K gradients, their weights by a solver (equation 8
    for `FairGrad`), one update by the weighted sum. Gradients are exact over ranks, micro-batches and loss scaling.

    Args:
        backbone: The diffusion model; what trains is its ``lora``, its ``control`` or the whole U-Net.
        solver: Weights the objectives.
        regions: Those that have an objective; none leaves the global one alone.
        region_loss: ``area`` (by the region's own area) or an official script's form, see `fairanon.losses.region_errors`.
        gram: Where the gradients' inner products are taken, see `ObjectiveGradients`.
        every: Optimizer steps between two solutions.
        clip: Largest norm of the update; None does not clip. (Lightning's own clipping knows automatic optimization
            only.)
        condition_dropout: Share of condition images replaced by black; supplement, section 3.
        micro_batch_size: Samples whose activations are held at once. (Instead of ``accumulate_grad_batches``, which
            knows automatic optimization only.)
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        solver: Solver | None = None,
        regions: tuple[Literal["face", "hand"], ...] = ("face", "hand"),
        region_loss: RegionMode = "area",
        gram: GramMode = "full",
        every: int = 1,
        clip: float | None = 1.0,
        condition_dropout: float = 0.3,
        micro_batch_size: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}.")
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout must be in [0, 1), got {condition_dropout}.")
        self.automatic_optimization = False
        self.names = ("global", *regions)
        self.region_loss, self.condition_dropout, self.micro_batch_size = (
            region_loss,
            condition_dropout,
            micro_batch_size,
        )
        self.objectives = ObjectiveGradients(
            [p for p in self.parameters() if p.requires_grad],
            solver or FairGrad(),
            gram,
            every,
            clip,
            backbone.last_block(),
        )
        self.skipped = 0

    @property
    def gradient_rows(self) -> int:
        """One for each objective, where the solver compares all of them."""
        objectives = self.objectives
        return len(self.names) if objectives.solver.needs_gram and objectives.gram == "full" else 1

    def training_step(self, batch: RegionBatch, batch_idx: int) -> None:  # type: ignore[override]  # no loss to return
        """K gradients, one update."""
        parts = self._parts(batch)
        scale = self._loss_scale()
        update = self.objectives.backward(parts, self.global_step, scale)
        self.check_finite(update.losses if scale is not None else torch.stack([*update.losses, update.norm]), batch)
        if update.skipped:
            self.skipped += 1
        else:
            self.optimizers().step()  # type: ignore[union-attr]  # there is one
            self.lr_schedulers().step()  # type: ignore[union-attr]  # likewise
            self.objectives.observe(parts)
        names = [name for name, active in zip(self.names, update.active, strict=True) if active]
        rows = [k for k, active in enumerate(update.active) if active]
        logs = {f"loss/{name}": update.losses[k] for k, name in zip(rows, names, strict=True)}
        logs |= {f"weight/{name}": update.weights[k] for k, name in zip(rows, names, strict=True)}
        logs |= {"gradient_norm": update.norm, "solver/regularised": update.regularised.double()}
        self.log_dict({f"train/{name}": value.float() for name, value in logs.items()}, batch_size=len(batch))
        self.log("train/solver/skipped", float(self.skipped))

    def loss(self, batch: RegionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objectives' plain sum, for validation; see `DiffusionMethod.loss`."""
        part = self._part(*self._task(batch))
        losses = part.sums(part.predict()) / part.counts.clamp_min(1)
        present = {name: losses[k].detach() for k, name in enumerate(self.names) if part.counts[k]}
        return losses.sum(), {f"loss/{name}": value for name, value in present.items()}

    def held_out(self, batch: RegionBatch, reference: bool) -> dict[str, Tensor]:
        """The objectives on validation data; see `DiffusionMethod`."""
        x, masks = self._task(batch)
        errors, present = self._region_errors(x, masks, self._predict(x, reference)), self._presence(masks)
        values = errors.masked_fill(~present, float("nan")).T
        return {f"loss/val/{name}": rows for name, rows in zip(self.names, values, strict=True)}

    # --- pieces ------------------------------------------------------------------------------------------

    def _task(self, batch: RegionBatch) -> tuple[Noised, Tensor]:
        """What the model is asked for a batch, and the regions' masks at latent size."""
        latents = self.latents(batch.images, batch.keys)
        condition = self.condition(batch.captions, batch.keys)
        if batch.frames is not None:
            condition = self.backbone.framed(condition, batch.frames)
        if batch.controls is not None and self.backbone.control is not None:
            control = batch.controls.float() / 255
            if self.training and self.condition_dropout:
                u = keyed_uniform([(self.noise_seed, "condition", key) for key in batch.keys]).to(control)
                control = control * (u >= self.condition_dropout).to(control)[:, None, None, None]
            condition = replace(condition, control=control)
        masks = batch.masks[:, [REGIONS.index(name) for name in self.names[1:]]]
        return self.noised(latents, batch.keys, condition), latent_masks(masks, *latents.shape[-2:])

    def _parts(self, batch: RegionBatch) -> list[Part]:
        x, masks = self._task(batch)
        size = self.micro_batch_size or len(batch)
        rows = [slice(first, first + size) for first in range(0, len(batch), size)]
        return [self._part(x[part], masks[part]) for part in rows]

    def _part(self, x: Noised, masks: Tensor) -> Part:
        return Part(
            lambda: self._predict(x),
            lambda prediction: self._region_errors(x, masks, prediction).sum(0),
            self._presence(masks).float().sum(0),
        )

    def _presence(self, masks: Tensor) -> Tensor:
        return region_presence(masks, self.region_loss)

    def _predict(self, x: Noised, reference: bool = False) -> Tensor:
        predict = self.backbone.predict_reference if reference else self.backbone.predict
        return predict(x.noisy, x.timesteps, x.condition)

    def _region_errors(self, x: Noised, masks: Tensor, prediction: Tensor) -> Tensor:
        drawn = self.backbone.predict_x0(x.noisy, prediction, x.timesteps)
        abar = self.backbone.alphas_cumprod(x.timesteps)
        error = squared_errors(self.region_loss, prediction, x.target, drawn, x.latents, abar)
        return region_errors(error, masks, self.region_loss)

    def _loss_scale(self) -> Tensor | None:
        """The scale that fp16 training multiplies losses by."""
        plugin = self.trainer.precision_plugin
        if not isinstance(plugin, MixedPrecision) or plugin.scaler is None:
            return None
        return plugin.scaler.scale(torch.ones((), device=self.device))

    # --- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the solver remembers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["objectives"] = self.objectives.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the solver remembers."""
        super().on_load_checkpoint(checkpoint)
        self.objectives.load_state_dict(checkpoint["objectives"])
