"""Builds the embedded inpainting model from the embedded text-to-image model.

Only the U-Net's first convolution is wider: latents, mask and latents of the masked image, 8 + 1 + 8 channels. Every
other layer has the text-to-image model's shape, so that its LoRA fits. One tone group is rare in its training and often
captioned wrongly, and the model draws that group badly: what Ano-Face-Fair is there to mend.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from data_modules.masked_faces import random_masks
from data_modules.synthetic_faces.captions import captions
from data_modules.synthetic_faces.masks import appearance_masks
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import SIZE
from data_modules.synthetic_faces.world import TONES, Scenes, draw_scenes
from fairanon.assets.loop import train_asset
from fairanon.assets.text_to_image import BATCH
from fairanon.backbones import tokenize
from fairanon.config.precision import mixed
from fairanon.files import atomic_write
from fairanon.imaging import resize_masks, to_model
from fairanon.progress import progress_bar
from fairanon.seeding import uniform_rows

STEPS = 4000
POOL = 32_000
"""Different images in the training."""
RARE, RARE_SHARE = "olive", 0.03
"""The tone group that is rare in the training, and its share."""
MISTAKEN = 0.35
"""Share of the captions which name the rare group under an image of a neighbouring one.

Rarity alone hardly hurts: the text-to-image model, whose weights the training starts from, knew the word.
"""


def widen(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same U-Net with 2C + 1 input channels; the new ones start at 0, so that it predicts what it did."""
    channels = unet.config.in_channels
    config = {key: value for key, value in unet.config.items() if key != "_name_or_path"}  # a path of this machine
    wide = UNet2DConditionModel.from_config({**config, "in_channels": 2 * channels + 1})
    state = unet.state_dict()
    weight = torch.zeros_like(wide.conv_in.weight)
    weight[:, :channels] = state["conv_in.weight"]
    wide.load_state_dict({**state, "conv_in.weight": weight})
    return wide


def draw_training_scenes(first: int, count: int) -> Scenes:
    """People of whom the `RARE` tone group is `RARE_SHARE`, the other five equally many; nothing else is biased."""
    numbers = range(first, first + count)
    scenes = draw_scenes(401, numbers, "balanced")
    u = uniform_rows(402, numbers, 2)
    others = torch.tensor([k for k, name in enumerate(TONES) if name != RARE])
    common = others[(u[:, 0] * len(others)).long()]
    return scenes.replace(tone=torch.where(u[:, 1] < RARE_SHARE, TONES.index(RARE), common))


def as_shown(scenes: Scenes, first: int) -> Scenes:
    """The people that the images show: some of those whose captions say `RARE` belong to a neighbouring group."""
    u = uniform_rows(403, range(first, first + len(scenes)), 2)
    rare = TONES.index(RARE)
    neighbour = torch.where(u[:, 1] < 0.5, rare - 1, rare + 1)
    mistaken = (scenes.tone == rare) & (u[:, 0] < MISTAKEN)
    return scenes.replace(tone=torch.where(mistaken, neighbour, scenes.tone))


def inpainting_inputs(model: AutoencoderKL, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What diffusers' inpainting pipelines hand to the U-Net: latents, latents of the masked image and masks.

    Args:
        model: The autoencoder.
        images: float (B, 3, H, W) in [-1, 1].
        masks: bool (B, 1, H, W), True where the image is to be inpainted.

    Returns:
        Scaled latents (B, C, h, w) of the image and of the image with grey under the mask, and the mask at latent
        size (B, 1, h, w), 0 or 1, nearest neighbours as the pipelines have it.
    """
    scale = model.config.scaling_factor
    with torch.no_grad(), mixed("cpu"):
        whole = model.encode(images).latent_dist.mean.float() * scale
        masked = model.encode(images * ~masks).latent_dist.mean.float() * scale
    return whole, masked, resize_masks(masks, whole.shape[-2:]).float()


def _pool(pipeline: StableDiffusionPipeline, pool: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, masked latents, masks and token ids of ``pool`` scenes; half of the masks hide the whole appearance."""
    parts: list[tuple[Tensor, ...]] = []
    for first in progress_bar(range(0, pool, 64), desc="latents", mininterval=2.0):
        scenes = draw_training_scenes(first, min(64, pool - first))
        generator = torch.Generator().manual_seed(first)
        whole = torch.rand(len(scenes), 1, 1, 1, generator=generator) < 0.5
        masks = torch.where(whole, appearance_masks(scenes), random_masks(generator, len(scenes), SIZE))
        latents, masked, small = inpainting_inputs(pipeline.vae, to_model(render(as_shown(scenes, first)).image), masks)
        tokens = tokenize(pipeline.tokenizer, captions(scenes))
        parts.append((latents.bfloat16(), masked.bfloat16(), small.bfloat16(), tokens))
    latents, masked, masks, tokens = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return latents, masked, masks, tokens


def train(pipeline: StableDiffusionPipeline, steps: int, work: Path, pool: int = POOL) -> UNet2DConditionModel:
    """Train the widened U-Net on from the text-to-image model's weights; the text encoder stays as it is.

    Args:
        pipeline: The embedded text-to-image model.
        steps: Optimizer steps of `BATCH` images.
        work: Folder of unfinished work.
        pool: Number of different images.

    Returns:
        The trained U-Net.
    """
    unet, scheduler = widen(pipeline.unet), pipeline.scheduler
    latents, masked, masks, tokens = _pool(pipeline, pool)
    empty = tokenize(pipeline.tokenizer, [""])

    def loss(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, pool, (BATCH,), generator=generator)
        x = latents[rows].float()
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        drop = torch.rand(BATCH, 1, generator=generator) < 0.1
        noisy = torch.cat([scheduler.add_noise(x, noise, t), masks[rows].float(), masked[rows].float()], 1)
        with torch.no_grad():
            context = pipeline.text_encoder(torch.where(drop, empty, tokens[rows])).last_hidden_state
        with mixed("cpu"):
            prediction = unet(noisy, t, context).sample
        return {"velocity": (prediction.float() - scheduler.get_velocity(x, noise, t)).square().mean()}

    train_asset(unet, loss, name="inpainting", steps=steps, learning_rate=4e-4, work=work)
    return unet


def build(base: Path, out: Path, work: Path, steps: int, pool: int = POOL) -> None:
    """Train and save the whole model as a folder in diffusers' layout, half precision.

    Args:
        base: The embedded text-to-image model.
        out: Where to.
        work: Folder of unfinished work.
        steps: See `train`.
        pool: See `train`.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(str(base))
    frozen: list[nn.Module] = [pipeline.vae, pipeline.text_encoder]
    for module in frozen:
        module.requires_grad_(False)
    unet = train(pipeline, steps, work, pool)
    with atomic_write(out) as partial:
        shutil.copytree(base, partial)
        shutil.rmtree(partial / "unet")
        unet.to(torch.float16).save_pretrained(partial / "unet")
