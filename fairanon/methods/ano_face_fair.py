"""Ano-Face-Fair, stage 1: an inpainting model learns an under-represented group without unlearning the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import ROLES, InpaintBatch
from fairanon.imaging import to_model
from fairanon.losses.denoising import per_sample_mse
from fairanon.losses.dreambooth import (
    DiffMode,
    ThetaMode,
    check_theta,
    cosines,
    focused_feature_enhancement,
    official_difference,
    optimised_theta,
    preserve,
    separate,
)
from fairanon.methods.base import DiffusionMethod, Noised

_log = logging.getLogger(__name__)


class AnoFaceFair(DiffusionMethod):
    """DreamBooth for inpainting with focused feature enhancement and a difference loss (Ano-Face-Fair, section 3).

    L = L_instance + ffe_weight L_FFE + prior_weight L_prior + diff_weight L_DIFF (equation 6). The instance loss is
    plain denoising of the group's images; FFE adds the error where it is largest; prior preservation is denoising of
    images that the starting model drew for the class; DIFF keeps the classes' embeddings apart, or where they were.

    Args:
        backbone: An inpainting model, 2C + 1 input channels; another one can be measured, not trained.
        theta: Share of the largest error above which an error is critical (equation 2), in [0, 1).
        theta_mode: ``fixed``; or chosen anew for each sample as the supplement's equations 3 and 4 ask for: ``paper``
            as printed (always one element), ``masked_mean`` the trade-off that was meant; see `optimised_theta`.
        theta_weight: Weight of the mask's entropy where theta is chosen.
        ffe_weight: Weight of FFE; 0 leaves it out. The paper's is 0.01.
        ffe_space: Errors of the U-Net's ``prediction`` (the official code), or of the frozen decoder's ``features`` of
            the clean latents that it implies ("features from intermediate layers", the paper's text).
        ffe_over_batch: One largest error for the whole batch, as the official code has it.
        prior_weight: Weight of prior preservation; 0 leaves it out.
        diff: ``separate``, ``preserve`` (with denoising of the difference set), ``official`` (no gradient) or None.
        diff_weight: Weight of DIFF.
        minimum_angle: theta_min of ``separate`` in degrees.
        classes: A prompt for each class whose embeddings DIFF compares.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        theta: float = 0.5,
        theta_mode: Literal["fixed", "paper", "masked_mean"] = "fixed",
        theta_weight: float = 0.1,
        ffe_weight: float = 0.01,
        ffe_space: Literal["prediction", "features"] = "prediction",
        ffe_over_batch: bool = False,
        prior_weight: float = 1.0,
        diff: DiffMode | None = "separate",
        diff_weight: float = 1.0,
        minimum_angle: float = 30.0,
        classes: Sequence[str] = (),
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        for name, value in (("ffe_weight", ffe_weight), ("prior_weight", prior_weight), ("diff_weight", diff_weight)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if diff in ("separate", "preserve"):
            if not backbone.trains_text_encoder:
                raise ValueError(
                    f"diff: {diff} compares embeddings of the text encoder, of which nothing trains; set "
                    "model.backbone.train_text_encoder to true, or diff to null."
                )
            if len(classes) < (2 if diff == "separate" else 1):
                raise ValueError(f"classes: {diff} needs a prompt for each class, got {list(classes)}.")
        self.theta, self.theta_mode, self.theta_weight = check_theta(theta), theta_mode, theta_weight
        self.ffe_weight, self.ffe_space, self.ffe_over_batch = ffe_weight, ffe_space, ffe_over_batch
        self.prior_weight, self.diff, self.diff_weight = prior_weight, diff, diff_weight
        self.minimum_angle, self.classes = minimum_angle, list(classes)

    def setup(self, stage: str) -> None:
        """Refuse to train a model that cannot see masks; measuring one is fine (``max_steps`` 0)."""
        if not self.backbone.inpaints and self.trainer.max_steps != 0:
            raise ValueError(
                "model.backbone.model: an inpainting model is needed, with channels for a mask and the masked image; "
                "name one, for example tiny-inpainting or stabilityai/stable-diffusion-2-inpainting."
            )

    def on_fit_start(self) -> None:
        """Say how far apart the classes are at the start: a hinge below every angle does nothing."""
        if self.diff != "separate":
            return
        with torch.no_grad():
            angles = torch.rad2deg(
                cosines(self.backbone.embed_prompts(self.classes, reference=True)).clamp(-1, 1).acos()
            )
        message = f"angles between the classes at the start: {angles.min():.1f} to {angles.max():.1f} degrees"
        if self.minimum_angle <= float(angles.min()):
            _log.warning("model.minimum_angle is %g, %s: the loss is inactive.", self.minimum_angle, message)
        else:
            _log.info("%s; minimum_angle %g", message, self.minimum_angle)

    def loss(self, batch: InpaintBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch; see `DiffusionMethod.loss`."""
        rows = {role: torch.tensor([k for k, r in enumerate(batch.roles) if r == role]) for role in ROLES}
        needed = {"instance": True, "prior": self.prior_weight > 0, "difference": self.diff in ("preserve", "official")}
        for role, wanted in needed.items():
            if wanted and not len(rows[role]):
                raise ValueError(f"data: the batch has no {role} images; set data.{role}, or leave that loss out.")
        x = self.noised(self.latents(batch.images, batch.keys), batch.keys, batch.captions)
        extra = self.backbone.mask_latents(to_model(batch.images), batch.masks)
        prediction = self.backbone.predict(torch.cat([x.noisy, extra], 1), x.timesteps, x.condition)
        errors = per_sample_mse(prediction, x.target)

        value = errors[rows["instance"]].mean()
        logs = {"error_instance": value.detach()}
        if self.ffe_weight:
            ffe = self._enhancement(x[rows["instance"]], prediction[rows["instance"]])
            value, logs["ffe"] = value + self.ffe_weight * ffe, ffe.detach()
        if self.prior_weight:
            prior = errors[rows["prior"]].mean()
            value, logs["error_prior"] = value + self.prior_weight * prior, prior.detach()
        if self.diff is not None:
            difference = self._difference(x.latents, errors, rows)
            value, logs["difference"] = value + self.diff_weight * difference, difference.detach()
        if self.diff == "separate":
            smallest = cosines(self.backbone.embed_prompts(self.classes).detach()).max()
            logs["smallest_angle"] = torch.rad2deg(smallest.clamp(-1, 1).acos())
        return value, logs

    def _enhancement(self, x: Noised, prediction: Tensor) -> Tensor:
        target = x.target
        if self.ffe_space == "features":
            drawn = self.backbone.predict_x0(x.noisy, prediction, x.timesteps)
            prediction = self.backbone.decoder_features(drawn)
            target = self.backbone.decoder_features(x.latents).detach()
        theta: float | Tensor = self.theta
        if self.theta_mode != "fixed":
            mode: ThetaMode = self.theta_mode
            theta = optimised_theta((prediction - target).detach().abs(), self.theta_weight, mode)
        return focused_feature_enhancement(prediction, target, theta, self.ffe_over_batch).mean()

    def _difference(self, latents: Tensor, errors: Tensor, rows: dict[str, Tensor]) -> Tensor:
        if self.diff == "separate":
            return separate(self.backbone.embed_prompts(self.classes), self.minimum_angle)
        if self.diff == "preserve":
            now, start = (self.backbone.embed_prompts(self.classes, reference=reference) for reference in (False, True))
            return preserve(now, start) + errors[rows["difference"]].mean()
        count = min(len(rows["instance"]), len(rows["difference"]))
        return official_difference(latents[rows["instance"][:count]], latents[rows["difference"][:count]])
