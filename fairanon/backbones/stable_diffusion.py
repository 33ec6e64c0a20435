"""Stable Diffusion 1.5 and 2.x (and the embedded model): one text encoder, 4 or 9 input channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import AutoTokenizer, CLIPTextModel

from fairanon.backbones import hub
from fairanon.backbones.adapters import Control, Lora
from fairanon.backbones.base import Backbone, Conditioning, DType


class StableDiffusion(Backbone):
    """Stable Diffusion 1.5 or 2.x, text-to-image or inpainting, epsilon or velocity.

    Args:
        model: ``tiny``, a local folder in diffusers' layout, or a hub id.
        revision: Branch, tag or commit of a hub id.
        lora: Adapters in the U-Net that train.
        control: A control network that trains beside the frozen U-Net. Neither trains the whole U-Net.
        dtype: Precision of what is frozen; what trains is float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        channels_last: Memory layout of the convolutions; faster on GPUs, slower on most CPUs.
    """

    def __init__(
        self,
        model: str = "tiny",
        revision: str | None = None,
        lora: Lora | None = None,
        control: Control | None = None,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        folder = hub.resolve(model, revision)
        self._fingerprint = f"{model} {hub.digest(folder / 'unet')}"
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self._finish(lora, control, dtype, gradient_checkpointing, channels_last)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """See `Backbone.encode_prompts`."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            return Conditioning(self.text_encoder(tokens.to(self.device)).last_hidden_state)

    def _unet_arguments(self, conditioning: Conditioning) -> dict[str, object]:
        return {"encoder_hidden_states": conditioning.context.to(self.unet.dtype)}

    def build_pipeline(self, unet: UNet2DConditionModel, steered: bool = False) -> DiffusionPipeline:
        """See `Backbone.build_pipeline`; an inpainting pipeline for a U-Net of 2C + 1 channels."""
        kind: type[DiffusionPipeline] = StableDiffusionPipeline
        extra = {}
        if steered and isinstance(self.control, T2IAdapter):
            kind, extra = StableDiffusionAdapterPipeline, {"adapter": self.control}
        elif steered:
            kind, extra = StableDiffusionControlNetPipeline, {"controlnet": self.control}
        elif unet.config.in_channels == 2 * self.latent_channels + 1:
            kind = StableDiffusionInpaintPipeline
        return kind(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=self.sampler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **extra,
        )
