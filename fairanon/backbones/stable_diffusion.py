"""Stable Diffusion 1.5 and 2.x (and the embedded model): one text encoder, 4 or 9 input channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from fairanon.backbones import hub
from fairanon.backbones.adapters import Control, Lora
from fairanon.backbones.base import HALF, Backbone, Conditioning, DType, load, load_scheduler, tokenize

_PIPELINES: dict[str, type[DiffusionPipeline]] = {
    "text_to_image": StableDiffusionPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
    "controlnet": StableDiffusionControlNetPipeline,
    "t2i_adapter": StableDiffusionAdapterPipeline,
}


class StableDiffusion(Backbone):
    """Stable Diffusion 1.5 or 2.x, text-to-image or inpainting, epsilon or velocity.

    Args:
        model: ``tiny``, ``tiny-inpainting``, a local folder in diffusers' layout, or a hub id.
        revision: Branch, tag or commit of a hub id.
        lora: Adapters that train, in the U-Net unless it names none of its layers.
        train_text_encoder: The text encoder trains too: as a whole, or adapters in it where ``lora`` is given; with ``lora.targets``
            empty it trains alone.
        control: A control network that trains beside the frozen U-Net. Neither trains the whole U-Net.
        frozen: Nothing trains: for sampling and measuring a model as it is, without a copy of its U-Net.
        dtype: Precision of the computation and of what is frozen, see `Backbone`. None is float32; an experiment gives
            what its ``trainer.precision`` says.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        channels_last: Memory layout of the convolutions; faster on GPUs, slower on most CPUs.
    """

    def __init__(
        self,
        model: str = "tiny",
        revision: str | None = None,
        lora: Lora | None = None,
        train_text_encoder: bool = False,
        control: Control | None = None,
        frozen: bool = False,
        dtype: DType | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        settings = {"lora": lora, "control": control, "frozen": frozen, "train_text_encoder": train_text_encoder}
        wanted = self.wanted(model=model, revision=revision, dtype=dtype, **settings)["model"]
        parts, folder = wanted.parts, hub.model_folder(*wanted)
        self._unet_folder = folder / "unet"
        self._fingerprint = f"{model} {hub.digest(self._unet_folder, parts['unet'])}"
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = load(CLIPTextModel, folder / "text_encoder", parts["text_encoder"])
        self.vae = load(AutoencoderKL, folder / "vae", parts["vae"])
        self.unet = load(UNet2DConditionModel, folder / "unet", parts["unet"])
        self._files = {part: (folder / part, parts[part]) for part in ("vae", "text_encoder")}
        self.scheduler = load_scheduler(folder / "scheduler")
        text_encoder = self.text_encoder if train_text_encoder else None
        self._finish(lora, control, frozen, dtype, gradient_checkpointing, channels_last, text_encoder)

    @staticmethod
    def wanted(**settings: Any) -> dict[str, hub.Wanted]:
        """See `Backbone.wanted`."""
        half = settings["dtype"] in HALF
        trains_whole = not (settings["lora"] or settings["control"] or settings["frozen"])
        parts = {"unet": half and not trains_whole, "vae": half, "tokenizer": False, "scheduler": False}
        parts["text_encoder"] = half and not settings["train_text_encoder"]
        return {"model": hub.Wanted(settings["model"], settings["revision"], "model.backbone.model", parts)}

    def encode_prompts(self, prompts: Sequence[str], reference: bool = False) -> Conditioning:
        """See `Backbone.encode_prompts`."""
        trained = self.trains_text_encoder and not reference
        return Conditioning(self._read(prompts, reference).last_hidden_state, trained=trained)

    def embed_prompts(self, prompts: Sequence[str], reference: bool = False) -> Tensor:
        """One vector per prompt: the text encoder's pooled output, with gradient if it trains.

        Args:
            prompts: B prompts.
            reference: By the reference, without gradient.

        Returns:
            float32 (B, D).
        """
        pooled: Tensor = self._read(prompts, reference).pooler_output
        return pooled.float()

    def _read(self, prompts: Sequence[str], reference: bool) -> Any:
        """What the text encoder, or its reference, says of prompts."""
        tokens = tokenize(self.tokenizer, prompts).to(self.device)
        if reference:
            with torch.no_grad(), self.trainable.reference(), self.computing():
                return self.trainable.copies.get("text_encoder", self.text_encoder)(tokens)
        with torch.set_grad_enabled(self.trains_text_encoder and torch.is_grad_enabled()), self.computing():
            return self.text_encoder(tokens)

    def _unet_arguments(self, conditioning: Conditioning) -> dict[str, object]:
        return {"encoder_hidden_states": conditioning.context}

    def build_pipeline(self, reference: bool = False, steered: bool = False) -> DiffusionPipeline:
        """See `Backbone.build_pipeline`; an inpainting pipeline for a U-Net of 2C + 1 channels."""
        own = self.trainable.pipeline() if steered else None
        kind, extra = own or ("inpaint" if self.inpaints else "text_to_image", {})
        return _PIPELINES[kind](
            vae=self.vae,
            tokenizer=self.tokenizer,
            **{"unet": self.unet, "text_encoder": self.text_encoder, **(self.trainable.copies if reference else {})},
            scheduler=self.sampler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **extra,
        )
