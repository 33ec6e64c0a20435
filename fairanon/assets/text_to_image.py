"""Builds the embedded text-to-image model: autoencoder, text encoder, U-Net, saved as a diffusers pipeline.

All sizes are chosen for two CPU cores and for 8 MB in half precision: latents of 8 x 16 x 16 (factor 4),
cross-attention at 8 x 8 only.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from data_modules.synthetic_faces.captions import VOCABULARY, captions
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import PARTS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.assets.loop import train_asset
from fairanon.backbones import tokenize
from fairanon.config.precision import mixed
from fairanon.files import atomic_write
from fairanon.imaging import to_model
from fairanon.progress import progress_bar

BATCH = 32
AUTOENCODER_STEPS, DIFFUSION_STEPS = 3000, 24_000
POOL = 64_000
"""Different images in the diffusion training."""
MAX_TOKENS = 24
_SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")

# Weights of the reconstruction error: small parts carry the identity and the expression, flat ones do not.
_REGION_WEIGHTS = {"face": 1.5, "eyes": 5.0, "brows": 3.0, "nose": 3.0, "lips": 5.0, "hair": 0.5, "left_hand": 2.0,
                   "right_hand": 2.0}  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the captions' vocabulary; unknown words become ``<unk>``."""
    words = {word: number for number, word in enumerate((*_SPECIAL, *VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", words["<start>"]), ("<end>", words["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
    )


def build_text_encoder() -> CLIPTextModel:
    """Two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(_SPECIAL) + len(VOCABULARY),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=_SPECIAL.index("<pad>"),
            bos_token_id=_SPECIAL.index("<start>"),
            eos_token_id=_SPECIAL.index("<end>"),
        )
    )


def build_autoencoder() -> AutoencoderKL:
    """64x64x3 to 16x16x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 48),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """3.2 M parameters, cross-attention at 8x8."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 96),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR: otherwise the starting noise, not the prompt, decides the tone."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        steps_offset=0,
    )


def _images(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and the weight of each pixel's error, both for one step."""
    drawn = render(draw_scenes(seed, range(step * BATCH, (step + 1) * BATCH)), masks=True)
    assert drawn.masks is not None
    scale = torch.tensor([_REGION_WEIGHTS[name] for name in PARTS]).view(1, -1, 1, 1)
    return to_model(drawn.image), 1 + (drawn.masks[:, : len(PARTS)] * scale).sum(1, keepdim=True)


def train_autoencoder(steps: int, work: Path) -> AutoencoderKL:
    """Train the autoencoder on the biased population's images.

    Absolute error weighted by region, plus the same on horizontal and vertical differences (edges), plus a
    weak KL term; afterwards ``scaling_factor`` makes the latents' standard deviation 1.
    """
    torch.manual_seed(0)
    model = build_autoencoder()

    def loss(step: int) -> dict[str, Tensor]:
        x, weight = _images(101, step)
        torch.manual_seed(step)
        with mixed("cpu"):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        error = y.float() - x
        weight = weight / weight.mean()
        edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
            error.diff(dim=-2).abs() * weight[..., 1:, :]
        ).mean()
        return {"pixels": (error.abs() * weight).mean(), "edges": edges, "kl": 1e-5 * posterior.kl().mean() / 64}

    train_asset(model, loss, name="autoencoder", steps=steps, learning_rate=2e-3, work=work)
    with torch.no_grad():
        latents = torch.cat([model.encode(_images(102, step)[0]).latent_dist.mean for step in range(8)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return model


class _Denoiser(nn.Module):
    """What the diffusion training optimises: U-Net and text encoder together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder()


def _latents(model: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, pool: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (bfloat16) and token ids of ``pool`` scenes of the biased population."""
    latents, tokens = [], []
    for first in progress_bar(range(0, pool, 64), desc="latents", mininterval=2.0):
        scenes = draw_scenes(103, range(first, min(first + 64, pool)))
        with torch.no_grad(), mixed("cpu"):
            mean = model.encode(to_model(render(scenes).image)).latent_dist.mean
        latents.append((mean.float() * model.config.scaling_factor).bfloat16())
        tokens.append(tokenize(tokenizer, captions(scenes)))
    return torch.cat(latents), torch.cat(tokens)


def train_diffusion(model: AutoencoderKL, steps: int, work: Path, pool: int = POOL) -> _Denoiser:
    """Train U-Net and text encoder from nothing on the biased population.

    Velocity prediction, 10 % of the captions empty. Half of the captions name the tone and then show it
    uniformly (`draw_scenes`): tone words are learnt last otherwise.

    Args:
        model: The trained autoencoder.
        steps: Optimizer steps of `BATCH` images.
        work: Folder of unfinished work.
        pool: Number of different images.

    Returns:
        The trained U-Net and text encoder.
    """
    torch.manual_seed(1)
    denoiser = _Denoiser()
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    latents, tokens = _latents(model, tokenizer, pool)
    empty = tokenize(tokenizer, [""])

    def loss(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, pool, (BATCH,), generator=generator)
        x = latents[rows].float()
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        drop = torch.rand(BATCH, 1, generator=generator) < 0.1
        noisy, target = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        with mixed("cpu"):
            context = denoiser.text_encoder(torch.where(drop, empty, tokens[rows])).last_hidden_state
            prediction = denoiser.unet(noisy, t, context).sample
        return {"velocity": (prediction.float() - target).square().mean()}

    train_asset(denoiser, loss, name="diffusion", steps=steps, learning_rate=8e-4, work=work)
    return denoiser


def save_pipeline(model: AutoencoderKL, denoiser: _Denoiser, out: Path) -> None:
    """Write a folder that ``StableDiffusionPipeline.from_pretrained`` loads, half precision."""
    pipeline = StableDiffusionPipeline(
        vae=model,
        text_encoder=denoiser.text_encoder,
        tokenizer=build_tokenizer(),
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with atomic_write(out) as partial:
        pipeline.to(torch.float16).save_pretrained(partial)
        # transformers loads in the type that the configuration names, diffusers in float32: make both float32.
        path = partial / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")


def build(out: Path, work: Path, autoencoder_steps: int, diffusion_steps: int, pool: int = POOL) -> None:
    """Train and save the whole model; see `train_autoencoder` and `train_diffusion`."""
    model = train_autoencoder(autoencoder_steps, work)
    denoiser = train_diffusion(model, diffusion_steps, work, pool)
    save_pipeline(model, denoiser, out)
