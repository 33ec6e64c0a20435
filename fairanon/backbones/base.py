"""The shared diffusion backbone: what every method may ask of a text-to-image model.

Shapes: B batch, C latent channels, h x w latent size, H x W picture size, L tokens, D width of the context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn

from fairanon.backbones.adapters import DTYPES, Lora, attach, frozen_start
from fairanon.imaging import to_pixels
from fairanon.seeding import Key, keyed_randn

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Attributes:
        context: float (B, L, D), one vector per token.
        pooled: float (B, P), one vector per prompt; None where the model has none.
        time_ids: float (B, 6), original size, crop corner and target size (height before width); None likewise.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        return Conditioning(
            self.context[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.time_ids is None else self.time_ids[rows],
        )


class Backbone(nn.Module, ABC):
    """A U-Net, an autoencoder, text encoders and a noise schedule.

    Only the U-Net (or adapters in it) trains; everything else is frozen, in evaluation mode and held in ``dtype``.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any  # a diffusers noise schedule
    _fingerprint: str

    def _finish(self, lora: Lora | None, dtype: DType, gradient_checkpointing: bool, channels_last: bool) -> None:
        """Freeze, attach what trains and set precision and memory layout; called last by every constructor."""
        self.requires_grad_(False).to(DTYPES[dtype])
        copy = attach(self.unet, lora)
        # Kept out of the module tree: a frozen copy belongs neither in the checkpoint nor in DDP's buckets.
        self._reference_unet = (copy,)
        self._lora = lora
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        self.train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Only the U-Net follows the mode; what is frozen stays in evaluation mode."""
        super().train(False)
        self.unet.train(mode)
        return self

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # nn.Module's own signature
        """Move the reference copy with the rest."""
        if (reference := getattr(self, "_reference_unet", (None,))[0]) is not None:
            reference._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """What the U-Net predicts."""
        return self.scheduler.config.prediction_type

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.vae.config.latent_channels)

    @property
    def scale_factor(self) -> int:
        """Picture size divided by latent size."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def fingerprint(self) -> str:
        """Names the exact base model: its id and a digest of its weight files."""
        return self._fingerprint

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters train, or the whole U-Net."""
        return self._lora is not None

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    def encode_images(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures to scaled latents, without gradient.

        Args:
            images: float (B, 3, H, W) in [-1, 1].
            noise: Standard normal (B, C, h, w) to sample the posterior; None takes its mean.

        Returns:
            float32 (B, C, h, w), standard deviation about 1.
        """
        with torch.no_grad():
            posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
            latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
            return latents.float() * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to pictures: float32 (B, 3, H, W), about [-1, 1]; differentiable."""
        scaled = latents / float(self.vae.config.scaling_factor)
        return self.vae.decode(scaled.to(self.vae.dtype)).sample.float()

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts to the U-Net's conditioning, without gradient; "" is the unconditional prompt."""

    @abstractmethod
    def build_pipeline(self, unet: UNet2DConditionModel) -> DiffusionPipeline:
        """A diffusers pipeline round ``unet`` and this backbone's other modules, with a DPM-Solver++ sampler."""

    @abstractmethod
    def _unet_arguments(self, conditioning: Conditioning) -> dict[str, object]:
        """Keyword arguments of the U-Net."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Forward diffusion: sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; all (B, C, h, w), timesteps int64 (B,)."""
        signal, spread = self._levels(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net should predict: the noise, or the velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x0."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._levels(timesteps, latents)
        return signal * noise - spread * latents

    def predict_x0(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction implies; differentiable in ``prediction``."""
        signal, spread = self._levels(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - spread * prediction) / signal
        return signal * noisy - spread * prediction

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.scheduler.alphas_cumprod.to(like.device)[timesteps].to(like.dtype).view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction: float32 (B, C, h, w).

        Args:
            noisy: float (B, C, h, w); 2C + 1 channels for an inpainting model.
            timesteps: int64 (B,).
            conditioning: Encoded prompts of B rows.
        """
        return self._forward(self.unet, noisy, timesteps, conditioning)

    def predict_reference(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the frozen starting point predicts, without gradient."""
        with torch.no_grad(), self.reference():
            return self._forward(self._reference_unet[0] or self.unet, noisy, timesteps, conditioning)

    def _forward(
        self, unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return unet(noisy.to(unet.dtype), timesteps, **self._unet_arguments(conditioning)).sample.float()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapters step back to the frozen starting point: off, or the adapter training began from.

        A backbone that trains its whole U-Net keeps a frozen copy instead, see `predict_reference`.
        """
        with nullcontext() if self._lora is None else frozen_start(self.unet):
            yield

    def sample(
        self,
        prompts: Sequence[str],
        keys: Sequence[Sequence[Key]],
        *,
        steps: int,
        guidance_scale: float,
        size: int | None = None,
        start: bool = False,
    ) -> Tensor:
        """Sample pictures; picture i depends on ``prompts[i]`` and ``keys[i]``, not on its place in the batch.

        Args:
            prompts: B prompts.
            keys: B keys of the starting noise.
            steps: DPM-Solver++ steps.
            guidance_scale: 1 is no guidance.
            size: Picture side; None is the model's own.
            start: Sample from the frozen starting point instead of the trained model.

        Returns:
            uint8 (B, 3, size, size) on the CPU.
        """
        side = int(self.unet.config.sample_size) if size is None else size // self.scale_factor
        noise = keyed_randn(keys, (self.latent_channels, side, side)).to(self.device, self.unet.dtype)
        training = self.unet.training
        self.eval()
        pipeline = self.build_pipeline((start and self._reference_unet[0]) or self.unet)
        pipeline.set_progress_bar_config(disable=True)
        with torch.no_grad(), self.reference() if start else nullcontext():
            latents = pipeline(
                prompt=list(prompts),
                latents=noise,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                height=side * self.scale_factor,
                width=side * self.scale_factor,
                output_type="latent",
            ).images
            pixels = to_pixels(self.decode(latents)).cpu()
        self.train(training)
        return pixels

    def sampler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ for this model's noise schedule."""
        return DPMSolverMultistepScheduler.from_config(self.scheduler.config)
