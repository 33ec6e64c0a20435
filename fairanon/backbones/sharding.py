"""What trains, laid over several devices: each holds a part of the weights, gradients and optimizer state (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def shard(network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> nn.Module:
    """Lay a network over a mesh, in place.

    Nothing is cast: autocast rounds what it rounds on one device, and the norms stay in float32.

    Args:
        network: What trains, and what of it is frozen.
        blocks: Parts of it that are gathered one after the other.
        mesh: One-dimensional.

    Returns:
        The network's outline on the meta device, for `whole`.
    """
    if not all(p.is_contiguous() for p in network.parameters()):
        raise ValueError(
            "model.backbone.channels_last: weights in that order are not laid over devices; set it to false."
        )
    values = (*network.parameters(), *network.buffers())
    outline = copy.deepcopy(network, {id(value): _empty(value) for value in values})
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # also where no backward pass follows
    return outline


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside, every device holds all of a network, and each computes as often as it likes; where it is whole nothing changes."""
    parts = [part for part in network.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:  # in this order: a part whose forward pass failed does not let go otherwise
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole(network: nn.Module, outline: nn.Module) -> nn.Module:
    """A network that was laid over devices, for each of them, in the main memory; all of them must ask.

    Args:
        network: As `shard` left it.
        outline: What `shard` returned; it becomes the whole network.
    """
    values: dict[str, Tensor] = {
        name: _full(value.detach()).cpu()  # one after the other: the parts of all others are still on the device
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }
    outline.load_state_dict(values, strict=False, assign=True)
    left = [name for name, value in (*outline.named_parameters(), *outline.named_buffers()) if value.is_meta]
    if left:
        raise RuntimeError(f"{left[0]} was not put together again.")
    return outline.train(network.training)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, of all devices' parts."""
    return _full(torch.nn.utils.get_total_norm(gradients))


def _empty(value: Tensor) -> Tensor:
    """A parameter or buffer without values, on the meta device."""
    empty = value.detach().to("meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
