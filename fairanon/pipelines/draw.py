"""What a model makes of prompts, or of images that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fairanon.backbones import Backbone
from fairanon.batches import PromptRow, stacked
from fairanon.pipelines.inpaint import inpaint
from fairanon.seeding import Key


def draw(
    backbone: Backbone,
    rows: Sequence[PromptRow],
    keys: Sequence[Sequence[Key]],
    *,
    steps: int,
    guidance_scale: float,
    reference: bool = False,
    lora_weight: float = 1.0,
) -> Tensor:
    """Sample images of prompts, or inpaint those that come with them.

    Args:
        backbone: The model.
        rows: B prompts; each has an image and a mask, or none has.
        keys: B keys of the starting noise.
        steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        reference: By the reference instead of the trained model.
        lora_weight: How strongly trained adapters act.

    Returns:
        uint8 (B, 3, H, W) on the CPU.
    """
    prompts = [row.prompt for row in rows]
    settings: dict[str, Any] = {
        "steps": steps, "guidance_scale": guidance_scale, "reference": reference, "lora_weight": lora_weight,
    }  # fmt: skip
    images, masks = stacked(row.image for row in rows), stacked(row.mask for row in rows)
    if images is None or masks is None:
        return backbone.sample(prompts, keys, controls=stacked(row.control for row in rows), **settings)
    return inpaint(backbone, prompts, keys, images, masks, **settings)
