"""Identity-guided latent harmonizer: two cross-attentions and a gate between them (ID2Face, equations 5 to 8).

It is installed as attention processors, so that diffusers' U-Net stays as it is; this file knows its attention modules by
the names of their parts alone. Shapes: B samples, W width of the tokens, T identity tokens, C channels at a layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedBranch(nn.Module):
    """What one cross-attention layer needs besides its own weights: keys and values of the identity, and the gate.

    Args:
        channels: C.
        context: W.
    """

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.key = nn.Linear(context, channels, bias=False)
        self.value = nn.Linear(context, channels, bias=False)
        hidden = max(8, channels // 4)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, 1))


class Harmonizer(nn.Module):
    """The gated branches of every cross-attention of a U-Net.

    The gate reads a block's features as they are before self-attention (equation 6), which only the block's
    self-attention sees: its processor hands them on. Gate logits leave through `gates`, filled anew by every forward
    pass of the U-Net, with gradients, under gradient checkpointing too.

    Args:
        unet: diffusers' UNet2DConditionModel; the branches begin as copies of its cross-attentions.
        tokens: T; the last T tokens of the U-Net's context are the identity's, those before them the rest.
    """

    def __init__(self, unet: Any, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.gates: dict[str, Tensor] = {}
        layers = dict(unet.named_modules())
        self.branches = nn.ModuleDict()
        processors: dict[str, Any] = dict(unet.attn_processors)
        for name in list(processors):
            if not name.endswith("attn2.processor"):
                continue
            layer = layers[name.removesuffix(".processor")]
            branch = GatedBranch(layer.to_k.out_features, layer.to_k.in_features)
            branch.key.load_state_dict(layer.to_k.state_dict())
            branch.value.load_state_dict(layer.to_v.state_dict())
            block = name.removesuffix(".attn2.processor")
            self.branches[block.replace(".", "/")] = branch
            before = _Before()
            processors[f"{block}.attn1.processor"] = before
            processors[name] = _Gated(self, block.replace(".", "/"), before)
        if not self.branches:
            raise ValueError("the U-Net has no cross-attention to harmonize.")
        unet.set_attn_processor(processors)

    def maps(self) -> list[Tensor]:
        """Gate logits of the last forward pass, one (B, 1, h, w) for each layer."""
        maps = []
        for logits in self.gates.values():
            side = math.isqrt(logits.shape[1])
            if side * side != logits.shape[1]:
                raise ValueError(f"gate maps of {logits.shape[1]} positions are no squares; use square images.")
            maps.append(logits.transpose(1, 2).unflatten(2, (side, side)))
        return maps


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    return F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2)


class _Before:
    """Ordinary self-attention that keeps what it was given."""

    def __init__(self) -> None:
        self.features: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        self.features = hidden_states
        attended = _attend(attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states), attn.heads)
        return attn.to_out[1](attn.to_out[0](attended))


class _Gated:
    """Cross-attention to the rest and to the identity, and the gate's choice between them at each position."""

    def __init__(self, owner: Harmonizer, name: str, before: _Before) -> None:
        self.owner, self.name, self.before = owner, name, before

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        branch = self.owner.branches[self.name]
        assert isinstance(branch, GatedBranch) and self.before.features is not None
        rest, identity = encoder_hidden_states.split(
            [encoder_hidden_states.shape[1] - self.owner.tokens, self.owner.tokens], dim=1
        )
        logits = branch.gate(self.before.features)
        self.before.features = None
        self.owner.gates[self.name] = logits
        query = attn.to_q(hidden_states)
        of_rest = _attend(query, attn.to_k(rest), attn.to_v(rest), attn.heads)
        of_identity = _attend(query, branch.key(identity), branch.value(identity), attn.heads)
        return attn.to_out[1](attn.to_out[0](torch.lerp(of_rest, of_identity, logits.sigmoid())))
