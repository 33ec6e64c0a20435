"""Low-rank adapters: adding them, stepping back from them, making them part of the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from fairanon.backbones.lora_files import read_lora

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TRAINED, REFERENCE = "default", "reference"
START_FROM = "model.backbone.lora.start_from"

_log = logging.getLogger(__name__)


@dataclass
class Lora:
    """Low-rank adaptation of a U-Net, and of its text encoder if that trains.

    Args:
        rank: Rank of the update.
        alpha: Scale; None is ``rank``, the scale 1 that every reader of the file assumes.
        targets: Ends of the names of the U-Net's layers that it changes; the default is all attention projections, and none leaves
            the U-Net as it is. In a text encoder it changes all attention projections.
        start_from: A LoRA that training starts from, see `read_lora`; it stays the reference. Rank and alpha are then its own.
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
    """A network that trains beside a frozen U-Net and steers it by a condition image.

    Args:
        kind: ``controlnet``, a copy of the U-Net's encoder, or ``t2i_adapter``, a small network.
        start_from: A folder or hub id in diffusers' format that training starts from; None starts anew.
    """

    kind: Literal["controlnet", "t2i_adapter"]
    start_from: str | None = None


def cast_network(network: nn.Module, dtype: torch.dtype) -> None:
    """Hold a frozen network in a precision, in place: those weights that autocast would cast in every forward pass.

    Normalizations and embeddings stay float32, as under autocast. So a frozen copy computes bit for bit what its float32
    original computes under autocast, and a reference model differs from the model that trains by training alone.

    Args:
        network: Of float32 weights, without adapters.
        dtype: The precision that it will compute in.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.to(dtype)


def add_adapters(network: Any, lora: Lora, dtype: torch.dtype) -> None:
    """Add adapters that train to a U-Net or a text encoder.

    Args:
        network: Of float32 weights, changed in place: what is frozen is held in ``dtype``, what trains is float32.
        lora: The adapters.
        dtype: The precision of the computation.
    """
    network.requires_grad_(False)
    cast_network(network, dtype)
    if lora.start_from is None:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha or lora.rank,
            target_modules=list(lora.targets if isinstance(network, UNet2DConditionModel) else TEXT_ATTENTION),
            init_lora_weights="gaussian",
        )
        network.add_adapter(config, TRAINED)
    else:
        if not isinstance(network, UNet2DConditionModel):
            raise ValueError(f"{START_FROM}: adapters of a text encoder cannot be trained on; train anew.")
        start = read_lora(lora.start_from, network, START_FROM)
        rank = {int(value.shape[0]) for name, value in start.state.items() if "lora_A" in name}
        if rank != {lora.rank}:
            ranks = ", ".join(map(str, sorted(rank)))
            _log.info(
                "%s: its adapters have rank %s; model.backbone.lora.rank (%d) is not used", START_FROM, ranks, lora.rank
            )
        start.load(network, REFERENCE)
        start.load(network, TRAINED)
        network.set_adapter(TRAINED)
    for name, parameter in network.named_parameters():
        if f".{TRAINED}." in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        else:
            parameter.requires_grad_(False)


@contextmanager
def _kept_flags(network: nn.Module) -> Iterator[None]:
    """Whatever peft does to ``requires_grad`` inside, afterwards every parameter has its flag again."""
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def frozen_start(network: Any) -> Iterator[None]:
    """Inside, a network with adapters computes what it computed before training.

    Args:
        network: As `add_adapters` left it.
    """
    start = REFERENCE if REFERENCE in network.peft_config else None
    with _kept_flags(network):
        try:
            if start is None:
                network.disable_adapters()
            else:
                network.set_adapter(start)
            yield
        finally:
            if start is None:
                network.enable_adapters()
            else:
                network.set_adapter(TRAINED)


@contextmanager
def weighted(network: nn.Module, weight: float) -> Iterator[None]:
    """Inside, the adapters act ``weight`` times as strongly.

    Args:
        network: As `add_adapters` left it.
        weight: 0 is the reference, 1 the trained model.
    """
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    try:
        for layer in layers:
            layer.set_scale(TRAINED, weight)
        yield
    finally:
        for layer in layers:
            layer.set_scale(TRAINED, 1.0)


def fuse(network: Any, weight: float) -> None:
    """Add adapters, times ``weight``, to a network's own weights and take them away."""
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(TRAINED, weight)
            module.merge(adapter_names=[TRAINED])
    recurse_remove_peft_layers(network)
    del network.peft_config
    network._hf_peft_config_loaded = False  # or `save_pretrained` would look for adapters


def add_fused(unet: UNet2DConditionModel, lora: str, weight: float) -> None:
    """Add a LoRA file's update to a U-Net's weights.

    Args:
        unet: Has no adapters.
        lora: See `read_lora`.
        weight: How strongly it acts.
    """
    adapters = read_lora(lora, unet, "start_from.lora")
    with _kept_flags(unet):
        adapters.load(unet, TRAINED)
        fuse(unet, weight)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
