"""What a training's state takes of a GPU's memory and of the disk, counted on the meta device: no weights, no GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jsonargparse
import torch
from lightning.pytorch import LightningModule

from fairanon.backbones.base import without_weights
from fairanon.config.build import build
from fairanon.methods.base import DiffusionMethod

GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: What trains, float32, what is frozen, and half-precision copies that autocast keeps of what trains. With
            ``OVERLAY=shard`` a device's part, and what is gathered at once: two blocks, and what belongs to none.
        gradients: float32, for each objective that has its own; under DDP once more, in its buckets.
        optimizer: Its state.
        reference: The reference beside a model that trains as a whole; where its errors are made beforehand, it is gone.
        checkpoint: On the disk.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    checkpoint: int

    @property
    def total(self) -> int:
        """The GPU's memory before anything is computed; what a step keeps comes on top (`benchmarks/footprint.py`)."""
        return self.weights + self.gradients + self.optimizer + self.reference


def outline(config: jsonargparse.Namespace) -> DiffusionMethod | None:
    """An experiment's method on the meta device: configurations are read (from the hub, if need be), weights are not.

    Args:
        config: The experiment's resolved configuration.

    Returns:
        None for a method without a diffusion backbone.
    """
    with without_weights():
        method = build(config.model, LightningModule)
    return method if isinstance(method, DiffusionMethod) else None


def footprint(config: jsonargparse.Namespace, method: DiffusionMethod) -> Footprint:
    """Count an experiment.

    Args:
        config: Its resolved configuration.
        method: Its `outline`.
    """
    sizes = method.backbone.sizes()
    training = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in method.parameters() if not p.requires_grad)
    half = method.backbone.dtype != torch.float32
    if not method.trains:
        return Footprint(frozen, 0, 0, 0, 0)
    state, reference = _optimizer_state(config, training), 0 if method.frees_reference else sizes["reference"]
    if (devices := _devices(config)) is not None:
        network = method.backbone.laid_out
        held = sum(p.numel() * p.element_size() for p in network.parameters())
        blocks = [
            sum(p.numel() * p.element_size() for p in block.parameters()) for block in method.backbone.blocks(network)
        ]
        gathered = held - sum(blocks) + sum(sorted(blocks)[-2:])  # what is in no block, a block, and the next one
        return Footprint(
            weights=training + frozen - held + held // devices + gathered + (training // 2 if half else 0),
            gradients=training // devices,
            optimizer=state // devices,
            reference=reference,
            checkpoint=training + state,
        )
    return Footprint(
        weights=training + frozen + (training // 2 if half else 0),
        gradients=training * (method.gradient_rows + (str(config.trainer.strategy) == "ddp")),
        optimizer=state,
        reference=reference,
        checkpoint=training + state,
    )


def _devices(config: jsonargparse.Namespace) -> int | None:
    """Over how many devices what trains is laid; None where each holds all of it."""
    strategy, devices = config.trainer.strategy, config.trainer.devices
    if not str(getattr(strategy, "class_path", strategy)).endswith(".Sharded"):
        return None
    count = int(devices) if str(devices).isdigit() else len(devices) if isinstance(devices, list) else 0
    return (count or torch.cuda.device_count() or 1) * config.trainer.num_nodes


def _optimizer_state(config: jsonargparse.Namespace, training: int) -> int:
    """Two moments for Adam and its kin, a byte each where they are quantised."""
    optimizer = config.model.init_args.get("optimizer")
    name = str(
        optimizer.get("class_path", optimizer) if isinstance(optimizer, (dict, jsonargparse.Namespace)) else optimizer
    )
    if re.search("8bit", name):
        return training // 2
    return 0 if name.endswith(".SGD") else 2 * training
