"""Inpainting by prompt and mask with a U-Net of 2C + 1 input channels, for any number C of latent channels.

diffusers' own pipeline refuses anything but 4 and 9 channels; on 9 the two give the same latents (a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from fairanon.backbones import Backbone, Sampling, tokenize
from fairanon.backbones.inpainting import mask_latents
from fairanon.imaging import dilate, to_model, to_pixels
from fairanon.seeding import Key, keyed_generator


class InpaintPipeline(DiffusionPipeline):
    """Inpaints what a mask hides, as a prompt says.

    Args:
        vae: Autoencoder.
        text_encoder: Encodes prompts.
        tokenizer: Its tokenizer.
        unet: With 2C + 1 input channels: latents, mask, latents of the masked image.
        scheduler: A sampler of diffusers.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        scheduler: object,
    ) -> None:
        super().__init__()
        channels, wanted = unet.config.in_channels, 2 * vae.config.latent_channels + 1
        if channels != wanted:
            raise ValueError(
                f"the U-Net has {channels} input channels, inpainting with this autoencoder needs {wanted}."
            )
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        images: Tensor,
        masks: Tensor,
        noise: Tensor,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        feather: int = 2,
    ) -> Tensor:
        """Inpaint a batch.

        Args:
            prompts: B prompts.
            images: uint8 (B, 3, H, W).
            masks: bool (B, 1, H, W), True where the image is inpainted.
            noise: Standard normal (B, C, h, w): the new identity's seed.
            num_inference_steps: Steps of the scheduler.
            guidance_scale: 1 is no guidance.
            negative_prompt: What guidance leads away from.
            feather: Width in pixels, inside the mask, over which the drawn part blends into the image.

        Returns:
            uint8 (B, 3, H, W) on the CPU; outside the mask exactly the image.

        Raises:
            ValueError: A mask is empty, or sizes do not fit.
        """
        latents = self.latents(prompts, images, masks, noise, num_inference_steps, guidance_scale, negative_prompt)
        scale = float(self.vae.config.scaling_factor)
        drawn = to_pixels(self.vae.decode((latents / scale).to(latents.dtype)).sample).cpu()
        return paste(images.cpu(), drawn, masks.cpu(), feather)

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[str],
        images: Tensor,
        masks: Tensor,
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt: str = "",
    ) -> Tensor:
        """The drawn latents (B, C, h, w), before they are decoded and pasted; see `__call__`."""
        if masks.shape != (len(images), 1, *images.shape[-2:]) or masks.dtype != torch.bool:
            raise ValueError(
                f"masks must be bool {(len(images), 1, *images.shape[-2:])}, got {masks.dtype} {tuple(masks.shape)}."
            )
        if empty := [n for n, mask in enumerate(masks) if not mask.any()]:
            raise ValueError(f"the mask of image {empty[0]} is empty: nothing would be drawn, and nobody anonymized.")
        if len(prompts) != len(images) or len(noise) != len(images):
            raise ValueError(f"{len(images)} images, {len(prompts)} prompts and {len(noise)} noises do not fit.")
        device = self.unet.device
        # A backbone of ours computes under autocast, from float32 to float32; a pipeline by itself in its own precision.
        dtype = torch.float32 if torch.is_autocast_enabled(device.type) else self.unet.dtype
        pixels, masks = to_model(images.to(device)), masks.to(device)
        extra = mask_latents(self.vae, pixels.to(dtype), masks).to(dtype)
        context = self._encode(prompts, dtype)
        guided = guidance_scale != 1
        if guided:
            context = torch.cat([self._encode([negative_prompt] * len(prompts), dtype), context])
            extra = torch.cat([extra, extra])
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = noise.to(device, dtype) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            both = torch.cat([latents, latents]) if guided else latents
            both = torch.cat([self.scheduler.scale_model_input(both, t), extra], 1)
            prediction = self.unet(both, t, encoder_hidden_states=context).sample
            if guided:
                free, asked = prediction.chunk(2)
                prediction = free + guidance_scale * (asked - free)
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        return latents

    def _encode(self, prompts: Sequence[str], dtype: torch.dtype) -> Tensor:
        tokens = tokenize(self.tokenizer, prompts).to(self.unet.device)
        return self.text_encoder(tokens).last_hidden_state.to(dtype)


def inpaint(
    backbone: Backbone,
    prompts: Sequence[str],
    keys: Sequence[Sequence[Key]],
    images: Tensor,
    masks: Tensor,
    sampling: Sampling,
    feather: int = 2,
) -> Tensor:
    """Inpaint with a backbone; image i depends on its prompt, image, mask and key, not on its place in the batch.

    Args:
        backbone: An inpainting model, or a Stable Diffusion of 4 channels.
        prompts: B prompts.
        keys: B keys of the starting noise: the identities' seeds.
        images: uint8 (B, 3, H, W).
        masks: bool (B, 1, H, W), True where the image is inpainted.
        sampling: How.
        feather: See `seam`.

    Returns:
        uint8 (B, 3, H, W) on the CPU.
    """
    steps, guidance_scale = sampling.steps, sampling.guidance_scale
    with backbone.sampling(reference=sampling.reference, lora_weight=sampling.lora_weight) as stock:
        noise, pipeline = backbone.starting_noise(keys, images.shape[-1]), _inpainting(stock, backbone.inpaints)
        if isinstance(pipeline, InpaintPipeline):
            return pipeline(prompts, images, masks, noise, steps, guidance_scale, feather=feather)
        latents = pipeline(
            prompt=list(prompts), image=to_model(images), mask_image=masks.float(), latents=noise, strength=1.0,
            height=images.shape[-2], width=images.shape[-1], num_inference_steps=steps,
            guidance_scale=guidance_scale, output_type="latent",
            generator=[keyed_generator(*key, "posterior") for key in keys],  # it samples what the mask leaves
        ).images  # fmt: skip
        return paste(images, to_pixels(backbone.decode(latents)).cpu(), masks, feather)


_WRAPPED: WeakKeyDictionary[DiffusionPipeline, DiffusionPipeline] = WeakKeyDictionary()
"""The inpainting pipelines of stock pipelines: faces come one by one."""


def _inpainting(stock: DiffusionPipeline, inpaints: bool) -> DiffusionPipeline:
    """What inpaints with a stock pipeline's parts.

    Of a text-to-image model it is diffusers' own, which keeps what the mask leaves at every step.
    """
    if isinstance(stock, StableDiffusionXLInpaintPipeline):
        return stock
    if stock not in _WRAPPED:
        if inpaints:
            names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
            _WRAPPED[stock] = InpaintPipeline(**{name: stock.components[name] for name in names})
        else:
            _WRAPPED[stock] = StableDiffusionInpaintPipeline(**stock.components, requires_safety_checker=False)
        _WRAPPED[stock].set_progress_bar_config(disable=True)
    return _WRAPPED[stock]


def seam(masks: Tensor, feather: int) -> Tensor:
    """How much of what was drawn is taken: rises from the border of the mask inwards.

    Args:
        masks: bool (B, 1, H, W).
        feather: Width in pixels; 0 is a hard seam. Pixels deeper than that inside the mask are entirely drawn.

    Returns:
        float (B, 1, H, W) in [0, 1], 0 outside the mask.
    """
    weight = masks.float()
    for k in range(1, feather + 1):  # the k-th ring from outside
        inner = ~dilate(~masks, k)
        weight = torch.where(masks & ~inner & (weight == 1), torch.tensor(k / (feather + 1)), weight)
    return weight


def paste(images: Tensor, drawn: Tensor, masks: Tensor, feather: int) -> Tensor:
    """Put what was drawn into the images, with a soft seam inside the mask.

    Args:
        images: uint8 (B, 3, H, W).
        drawn: uint8, same shape.
        masks: bool (B, 1, H, W).
        feather: See `seam`.

    Returns:
        uint8 (B, 3, H, W); outside the mask exactly the images.
    """
    mixed = images + seam(masks, feather) * (drawn.float() - images)
    return mixed.round().clamp(0, 255).to(torch.uint8)
