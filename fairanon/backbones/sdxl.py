"""Stable Diffusion XL: two text encoders, a pooled embedding and time ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from fairanon.backbones import hub
from fairanon.backbones.adapters import Control, Lora
from fairanon.backbones.base import HALF, Backbone, Conditioning, DType, load, load_scheduler, tokenize

_PIPELINES: dict[str, type[DiffusionPipeline]] = {
    "text_to_image": StableDiffusionXLPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
    "controlnet": StableDiffusionXLControlNetPipeline,
    "t2i_adapter": StableDiffusionXLAdapterPipeline,
}


class StableDiffusionXL(Backbone):
    """Stable Diffusion XL, base model.

    Args:
        model: A local folder in diffusers' layout, or a hub id.
        revision: Branch, tag or commit of a hub id.
        vae: Another autoencoder; SDXL's own overflows in float16, ``madebyollin/sdxl-vae-fp16-fix`` does not.
        unet: Another U-Net of the same shape (a folder or hub id with a ``unet`` subfolder), for example
            Diffusion-DPO's; it is then where training starts, and the reference.
        lora: Adapters in the U-Net that train.
        control: A control network that trains beside the frozen U-Net. Neither trains the whole U-Net.
        frozen: Nothing trains: for sampling and measuring a model as it is, without a copy of its U-Net.
        dtype: Precision of the computation and of what is frozen, see `Backbone`. None is float32; an experiment gives
            what its ``trainer.precision`` says.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        channels_last: Memory layout of the convolutions.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        vae: str | None = None,
        unet: str | None = None,
        lora: Lora | None = None,
        control: Control | None = None,
        frozen: bool = False,
        dtype: DType | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        settings = {"lora": lora, "control": control, "frozen": frozen, "vae": vae, "unet": unet}
        wanted = self.wanted(model=model, revision=revision, dtype=dtype, **settings)
        folders = {key: hub.model_folder(*wanted_model) for key, wanted_model in wanted.items()}
        half = {part: enough for wanted_model in wanted.values() for part, enough in wanted_model.parts.items()}
        folder = folders["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.tokenizer_2 = AutoTokenizer.from_pretrained(folder / "tokenizer_2")
        self.text_encoder = load(CLIPTextModel, folder / "text_encoder", half["text_encoder"])
        self.text_encoder_2 = load(CLIPTextModelWithProjection, folder / "text_encoder_2", half["text_encoder_2"])
        vae_file = (folders["vae"], half[""]) if vae else (folder / "vae", half["vae"])
        self.vae = load(AutoencoderKL, *vae_file)
        self._files = {"vae": vae_file} | {
            part: (folder / part, half[part]) for part in ("text_encoder", "text_encoder_2")
        }
        self._unet_folder = folders.get("unet", folder) / "unet"
        self.unet = load(UNet2DConditionModel, self._unet_folder, half["unet"])
        self._fingerprint = f"{unet or model} {hub.digest(self._unet_folder, half['unet'])}"
        self.scheduler = load_scheduler(folder / "scheduler")
        self._finish(lora, control, frozen, dtype, gradient_checkpointing, channels_last)

    @staticmethod
    def wanted(**settings: Any) -> dict[str, hub.Wanted]:
        """See `Backbone.wanted`; another autoencoder or U-Net takes the place of the model's own."""
        half = settings["dtype"] in HALF
        trains_whole = not (settings["lora"] or settings["control"] or settings["frozen"])
        parts = {"text_encoder": half, "text_encoder_2": half, "tokenizer": False, "tokenizer_2": False}
        parts |= {"scheduler": False, "vae": half, "unet": half and not trains_whole}
        replacements: dict[str, hub.Wanted] = {}
        for part, inner in (("vae", ""), ("unet", "unet")):
            if settings[part]:
                enough = parts.pop(part)
                replacements[part] = hub.Wanted(settings[part], None, f"model.backbone.{part}", {inner: enough})
        return {
            "model": hub.Wanted(settings["model"], settings["revision"], "model.backbone.model", parts),
            **replacements,
        }

    def encode_prompts(self, prompts: Sequence[str], reference: bool = False) -> Conditioning:
        """See `Backbone.encode_prompts`; its text encoders never train. The time ids say: neither scaled nor cropped."""
        hidden = []
        pooled = None
        with torch.no_grad(), self.computing():
            for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
                out = encoder(tokenize(tokenizer, prompts).to(self.device), output_hidden_states=True)
                hidden.append(out.hidden_states[-2])
                pooled = out[0]
        context = torch.cat(hidden, dim=-1)
        # The pipeline replaces the empty prompt's embeddings by zeros (`force_zeros_for_empty_prompt`): so do we.
        empty = torch.tensor([not prompt for prompt in prompts], device=context.device)
        assert pooled is not None
        side = float(self.unet.config.sample_size * self.scale_factor)
        time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=context.device).expand(len(prompts), -1)
        return Conditioning(
            context.masked_fill(empty[:, None, None], 0.0), pooled.masked_fill(empty[:, None], 0.0), time_ids
        )

    def framed(self, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """See `Backbone.framed`: original size and crop corner take their places in the time ids."""
        assert conditioning.time_ids is not None
        time_ids = torch.cat([frames.to(conditioning.time_ids), conditioning.time_ids[:, 4:]], 1)
        return replace(conditioning, time_ids=time_ids)

    def _unet_arguments(self, conditioning: Conditioning) -> dict[str, object]:
        assert conditioning.pooled is not None and conditioning.time_ids is not None
        return {
            "encoder_hidden_states": conditioning.context,
            "added_cond_kwargs": {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids},
        }

    def build_pipeline(self, reference: bool = False, steered: bool = False) -> DiffusionPipeline:
        """See `Backbone.build_pipeline`; an inpainting pipeline for a U-Net of 2C + 1 channels."""
        own = self.trainable.pipeline() if steered else None
        kind, extra = own or ("inpaint" if self.inpaints else "text_to_image", {})
        if kind != "t2i_adapter":
            extra = {"add_watermarker": False, **extra}
        return _PIPELINES[kind](
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.trainable.copies.get("unet", self.unet) if reference else self.unet,
            scheduler=self.sampler(),
            **extra,
        )
