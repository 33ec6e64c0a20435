"""Tiny random models in diffusers' layout, built from configuration: stand-ins for the large ones in tests and trials."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

_LETTERS = "abcdefghijklmnopqrstuvwxyz,.-"


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter: any prompt can be encoded."""
    ids = {token: number for number, token in enumerate(("<pad>", "<unk>", "<start>", "<end>", *_LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=77, pad_token="<pad>", unk_token="<unk>", bos_token="<start>",
        eos_token="<end>",
    )  # fmt: skip


def _text_config(projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=4 + len(_LETTERS), hidden_size=16, intermediate_size=32, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip


def _scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type,
        clip_sample=False, steps_offset=1,
    )  # fmt: skip


def save_random_stable_diffusion(
    folder: Path,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    inpainting: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random Stable Diffusion (32x32 images, 16x16 latents of 4 channels).

    Args:
        folder: Where to.
        prediction_type: What its U-Net claims to predict.
        inpainting: 9 input channels instead of 4.
        seed: Of the weights.

    Returns:
        ``folder``.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=9 if inpainting else 4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=_autoencoder(), text_encoder=CLIPTextModel(_text_config()), tokenizer=_tokenizer(), unet=unet,
        scheduler=_scheduler(prediction_type), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_random_sdxl(folder: Path, inpainting: bool = False, seed: int = 0) -> Path:
    """Write a random Stable Diffusion XL with two text encoders, pooled embedding and time ids.

    Args:
        folder: Where to.
        inpainting: 9 input channels instead of 4.
        seed: Of the weights.

    Returns:
        ``folder``.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=9 if inpainting else 4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=_autoencoder(), text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(24)), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        unet=unet, scheduler=_scheduler("epsilon"), add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder
