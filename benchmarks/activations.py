"""What a training step keeps for its backward pass, counted on the meta device: what `footprint.py` adds to the state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.backbones import Backbone, Conditioning
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.preference import PreferenceMethod
from fairanon.run.footprint import GIB

CARDS = (24, 48, 80)
_ASIDE = 1.5 * GIB
"""CUDA's own, and what its allocator cannot use."""


def card(total: int) -> int | None:
    """The smallest of `CARDS` (GB) that holds so many bytes; None is none."""
    return next((size for size in CARDS if total + _ASIDE <= size * 1e9), None)


def activations(config: jsonargparse.Namespace, method: DiffusionMethod) -> int:
    """Bytes of one micro-step of an experiment, whose outline is of no use afterwards; 0 if nothing trains."""
    if not method.trains:
        return 0
    half = method.backbone.dtype != torch.float32
    data = config.data.init_args
    batch = int(data.batch_size)
    micro = min(batch, int(config.model.init_args.get("micro_batch_size") or batch))
    samples = micro * (2 if isinstance(method, PreferenceMethod) else 1)
    return _kept(method.backbone, samples, int(data.get("size") or 64), 2 if half else 4)


def _kept(backbone: Backbone, samples: int, size: int, element: int) -> int:
    """Bytes that a forward pass of the U-Net and of what trains beside it saves for its backward pass.

    With gradient checkpointing only what goes into each block is kept, and one block's own is there at a time.
    """
    checkpointed = bool(getattr(backbone.unet, "is_gradient_checkpointing", False))
    backbone.unet.disable_gradient_checkpointing()
    backbone.dtype = torch.float32  # autocast does not know the meta device: elements are counted, whatever their type
    for network in backbone.children():
        if isinstance(network, nn.Module):
            network.float()
    seen: dict[int, int] = {}
    blocks: list[tuple[int, int]] = []  # what a block saves, and what it is given
    opened: list[int] = []

    def save(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.untyped_storage()._cdata not in seen:
            seen[tensor.untyped_storage()._cdata] = tensor.numel()
            kept.append(tensor)
        return tensor

    kept: list[Tensor] = []  # alive, so that no address comes twice

    def enter(module: nn.Module, inputs: Any) -> None:
        opened.append(sum(seen.values()))

    def leave(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        blocks.append((sum(seen.values()) - opened.pop(), inputs[0].numel()))

    units = backbone.blocks()
    hooks = [unit.register_forward_pre_hook(enter) for unit in units]
    hooks += [unit.register_forward_hook(leave) for unit in units]
    with torch.device("meta"), _flash(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        side = size // backbone.scale_factor
        noisy = torch.empty(samples, int(backbone.unet.config.in_channels), side, side)
        condition = _condition(backbone, samples, size)
        backbone.train()
        backbone.predict(noisy, torch.zeros(samples, dtype=torch.long), condition)
    for hook in hooks:
        hook.remove()
    everything = sum(seen.values())
    if checkpointed and blocks:
        inside = sum(saved for saved, _ in blocks)
        everything += sum(input_size for _, input_size in blocks) + max(saved for saved, _ in blocks) - inside
    return everything * element


class _Flash(torch.autograd.Function):
    """Attention as GPUs compute it: queries, keys, values and results are kept, the matrix of weights is not."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("nothing is computed here, only counted.")


@contextmanager
def _flash() -> Iterator[None]:
    """On the meta device PyTorch counts its plain attention, which keeps the matrix."""
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Flash.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _condition(backbone: Backbone, samples: int, size: int) -> Conditioning:
    config = backbone.unet.config
    pooled = time_ids = None
    if config.addition_embed_type == "text_time":
        width = int(config.projection_class_embeddings_input_dim) - 6 * int(config.addition_time_embed_dim)
        pooled, time_ids = torch.empty(samples, width), torch.empty(samples, 6)
    control = None if backbone.control is None else torch.empty(samples, 3, size, size)
    return Conditioning(torch.empty(samples, 77, int(config.cross_attention_dim)), pooled, time_ids, control)
