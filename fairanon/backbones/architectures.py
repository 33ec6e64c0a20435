"""The published models' true architectures, without weights: to count, to plan and to try at true size.

Their tokenizers have CLIP's vocabulary, which open_clip carries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ARCHITECTURES = ("sd15", "sd21-base", "sd21", "sd2-inpainting", "sdxl")
_TWO = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21-base": _TWO,
    "sd21": {**_TWO, "sample_size": 96},
    "sd2-inpainting": {**_TWO, "in_channels": 9},
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
_TEXTS: dict[str, dict[str, Any]] = {
    "vit-l": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768},
    "vit-h": {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
    "vit-g": {
        "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}  # fmt: skip


def unet(name: str, **changes: Any) -> UNet2DConditionModel:
    """A U-Net with random weights.

    Args:
        name: One of `ARCHITECTURES`.
        changes: Settings that are otherwise, for example narrower channels.
    """
    base = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}
    return UNet2DConditionModel(**{**base, **_UNETS[name], **changes})


def autoencoder(name: str, **changes: Any) -> AutoencoderKL:
    """An autoencoder with random weights; arguments as in `unet`."""
    large = name == "sdxl"
    base = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
        "sample_size": 1024 if large else 512, "scaling_factor": 0.13025 if large else 0.18215,
    }  # fmt: skip
    return AutoencoderKL(**{**base, **changes})


def text_encoders(name: str, **changes: Any) -> list[CLIPTextModel]:
    """The text encoders with random weights, two for SDXL; arguments as in `unet`."""

    def one(kind: str, model: type[Any]) -> Any:
        settings = {**_TEXTS[kind], **changes}
        settings.setdefault("intermediate_size", 4 * settings["hidden_size"])
        return model(CLIPTextConfig(**settings, bos_token_id=49406, eos_token_id=49407))

    if name == "sdxl":
        return [one("vit-l", CLIPTextModel), one("vit-g", CLIPTextModelWithProjection)]
    return [one("vit-l" if name == "sd15" else "vit-h", CLIPTextModel)]


def scheduler(name: str) -> DDPMScheduler:
    """The noise schedule the model was trained with."""
    kind = "v_prediction" if name == "sd21" else "epsilon"
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind, clip_sample=False,
        steps_offset=1,
    )  # fmt: skip


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, from the vocabulary that open_clip carries."""
    from open_clip.tokenizer import SimpleTokenizer

    source = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in source.encoder.items()}
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.get)
    return CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in merges], model_max_length=77,
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token=pad,
    )  # fmt: skip


def write(
    name: str,
    folder: Path,
    narrow: Callable[[str], dict[str, Any]] | None = None,
    tokenizers: Callable[[], Any] = tokenizer,
) -> Path:
    """Write a whole model with random weights in diffusers' layout.

    Args:
        name: One of `ARCHITECTURES`.
        folder: Where to.
        narrow: For "unet", "vae" and "text_encoder" what is otherwise, for example channel widths; None is true size.
        tokenizers: Makes the tokenizer.

    Returns:
        ``folder``.
    """
    less = narrow or (lambda _: {})
    parts: dict[str, Any] = {
        "unet": unet(name, **less("unet")), "vae": autoencoder(name, **less("vae")), "scheduler": scheduler(name),
        "tokenizer": tokenizers(),
    }  # fmt: skip
    parts["text_encoder"], *second = text_encoders(name, **less("text_encoder"))
    if second:
        parts |= {"text_encoder_2": second[0], "tokenizer_2": tokenizers()}
        extra: dict[str, Any] = {"add_watermarker": False}
        kind: Any = StableDiffusionXLPipeline
    else:
        kind = StableDiffusionInpaintPipeline if name == "sd2-inpainting" else StableDiffusionPipeline
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    kind(**parts, **extra).save_pretrained(folder)
    return folder
