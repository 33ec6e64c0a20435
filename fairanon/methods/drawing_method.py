"""Methods that draw their images in training: they go through the sampler's steps themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.backbones.base import Conditioning
from fairanon.batches import PromptBatch
from fairanon.methods.base import DiffusionMethod

Encoded = tuple[Conditioning, Conditioning]
"""Of prompts, and of the empty one as often."""


class DrawingMethod(DiffusionMethod):
    """Draws by DDIM what it learns from.

    Args:
        backbone: The diffusion model.
        sampling_steps: DDIM steps.
        guidance_scale: How strongly a prompt acts; 1 is no guidance.
        shared: See `DiffusionMethod`.
    """

    def __init__(self, backbone: Backbone, sampling_steps: int, guidance_scale: float, **shared: Any) -> None:
        super().__init__(backbone, **shared)
        if not 1 <= sampling_steps <= backbone.num_timesteps:
            raise ValueError(f"model.sampling_steps must be 1 to {backbone.num_timesteps}, got {sampling_steps}.")
        if self.caption_dropout:
            raise ValueError("model.caption_dropout: every image is drawn of its prompt; set it to 0.")
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale

    def starting_noise(self, batch: PromptBatch) -> Tensor:
        """Of B images, float (B, C, h, w)."""
        return self.backbone.starting_noise([(self.noise_seed, "train", key) for key in batch.keys])

    def encoded(self, batch: PromptBatch) -> tuple[Encoded, Encoded]:
        """B prompts and the empty one, by the model that trains and by its reference: the same where the text encoder stays."""

        def by(reference: bool) -> Encoded:
            asked, nothing = (
                self.backbone.encode_prompts(texts, reference) for texts in (batch.prompts, [""] * len(batch))
            )
            return asked, nothing

        now = by(False)
        return now, by(True) if self.backbone.trains_text_encoder else now

    def schedule(self) -> tuple[Tensor, list[int]]:
        """The signal's share of the variance, float (S,), and the timestep of each step, from noise to image."""
        count = self.backbone.num_timesteps
        steps = [round(count * (1 - k / self.sampling_steps)) - 1 for k in range(self.sampling_steps)]
        return self.backbone.alphas_cumprod(torch.tensor(steps)), steps

    def guided(
        self, noisy: Tensor, timestep: int, condition: Conditioning, nothing: Conditioning, reference: bool = False
    ) -> Tensor:
        """A guided prediction, (B, C, h, w)."""
        predict = self.backbone.predict_reference if reference else self.backbone.predict
        when = torch.full((len(noisy),), timestep, device=noisy.device)
        asked = predict(noisy, when, condition)
        if self.guidance_scale == 1:
            return asked
        plain = predict(noisy, when, nothing)
        return plain + self.guidance_scale * (asked - plain)
