"""What trains in a U-Net, and the way back to the frozen starting point."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

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


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
