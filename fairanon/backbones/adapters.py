"""What trains in a U-Net or beside it, and the way back to the frozen starting point."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from fairanon.backbones import hub

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRAINED, REFERENCE = "default", "reference"


@dataclass
class Lora:
    """Low-rank adaptation of a U-Net.

    Args:
        rank: Rank of the update.
        alpha: Scale; None is ``rank``, the scale 1 that every reader of the file assumes.
        targets: Ends of the names of the layers it changes; the default is all attention projections.
        start_from: A LoRA file or folder in diffusers' format that training starts from; it stays the reference.
    """

    rank: int = 8
    alpha: int | None = None
    targets: tuple[str, ...] = ATTENTION
    start_from: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}.")


@dataclass
class Control:
    """A network that trains beside a frozen U-Net and steers it by a condition picture.

    Args:
        kind: ``controlnet``, a copy of the U-Net's encoder, or ``t2i_adapter``, a small network.
        start_from: A folder or hub id in diffusers' format that training starts from; None starts anew.
    """

    kind: Literal["controlnet", "t2i_adapter"]
    start_from: str | None = None


def build_control(control: Control, unet: UNet2DConditionModel, scale_factor: int) -> ControlNetModel | T2IAdapter:
    """A trainable control network that fits a U-Net.

    Args:
        control: Which one.
        unet: The U-Net that it steers.
        scale_factor: Picture size divided by latent size.

    Returns:
        The network, float32, everything in it trains.
    """
    config = unet.config
    if control.start_from is not None:
        folder = hub.resolve(control.start_from, key="model.backbone.control.start_from")
        network = (ControlNetModel if control.kind == "controlnet" else T2IAdapter).from_pretrained(folder)
    elif control.kind == "controlnet":
        widths = (16, 32, 96, 256)[: scale_factor.bit_length()]  # one halving per step from pictures to latents
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    else:
        # Where the first block has no attention its features are added behind its halving, as in SDXL's adapters.
        late = config.down_block_types[0] == "DownBlock2D"
        channels = list(config.block_out_channels)
        if late and len(channels) > 2:
            channels.append(channels[-1])  # a feature for the middle block
        network = T2IAdapter(
            channels=channels,
            num_res_blocks=2,
            downscale_factor=scale_factor * (2 if late else 1),
            adapter_type="full_adapter_xl" if late else "full_adapter",
        )
    return network.float().requires_grad_(True)


def attach(unet: UNet2DConditionModel, lora: Lora | None) -> UNet2DConditionModel | None:
    """Make a U-Net trainable.

    Args:
        unet: Changed in place: either everything trains, or adapters are added and only they do. What trains
            is float32, whatever the precision of the rest.
        lora: The adapters; None trains the whole U-Net.

    Returns:
        A frozen copy of the U-Net that serves as the reference when the whole U-Net trains, otherwise None.
    """
    unet.requires_grad_(False)
    if lora is None:
        reference = copy.deepcopy(unet).eval()
        unet.float().requires_grad_(True)
        return reference
    if lora.start_from is None:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha or lora.rank,
            target_modules=list(lora.targets),
            init_lora_weights="gaussian",
        )
        unet.add_adapter(config, TRAINED)
    else:
        unet.load_lora_adapter(lora.start_from, prefix="unet", adapter_name=REFERENCE)
        unet.load_lora_adapter(lora.start_from, prefix="unet", adapter_name=TRAINED)
        unet.set_adapter(TRAINED)
    for name, parameter in unet.named_parameters():
        if f".{TRAINED}." in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        else:
            parameter.requires_grad_(False)
    return None


@contextmanager
def frozen_start(unet: UNet2DConditionModel) -> Iterator[None]:
    """Inside, a U-Net with adapters computes what it computed before training; gradients flags are restored.

    Args:
        unet: As `attach` left it with a `Lora`.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    start = REFERENCE if REFERENCE in unet.peft_config else None
    try:
        if start is None:
            unet.disable_adapters()
        else:
            unet.set_adapter(start)
        yield
    finally:
        if start is None:
            unet.enable_adapters()
        else:
            unet.set_adapter(TRAINED)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def weighted(unet: UNet2DConditionModel, weight: float) -> Iterator[None]:
    """Inside, the adapters act ``weight`` times as strongly.

    Args:
        unet: As `attach` left it with a `Lora`.
        weight: 0 is the starting model, 1 the trained one.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    try:
        unet.set_adapters(TRAINED, weight)
        yield
    finally:
        unet.set_adapters(TRAINED, 1.0)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
